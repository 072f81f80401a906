"""The convention of training/distributed.py, in real processes: K workers give the gradient of one, and hence its step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch, Needs
from tests.training.gloo import Gloo
from tests.training.objectives.reference import task
from training import distributed
from training.config import TrainSettings
from training.encoder import build_encoder
from training.objectives import ObjectiveUnion
from training.objectives.base import Embeddings, Loss, ObjectiveSettings
from training.objectives.clip import ClipSettings
from training.state import TrainState, unwrap
from training.step import _agreed, train_step

ROWS, TOKENS, VOCABULARY, STEPS = 12, 5, 50, 3
TASK = task(
    **{
        "num_images": 30,
        "num_texts": 40,
        "embed_dim": 6,
        "image_width": 24,
        "states_width": 8,
        "image_states_width": 24,
        "frozen_widths": (7, 7),
    },
    **{"vocabulary_size": VOCABULARY, "steps_per_epoch": 2, "total_steps": 6},
)


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(4) as workers:
        yield workers


def objectives() -> list[type[ObjectiveSettings]]:
    """Members of the registry, whether it has one or many."""
    union = get_args(ObjectiveUnion)[0] if get_args(ObjectiveUnion) else ObjectiveUnion
    return list(get_args(union)) or [union]


every_objective = pytest.mark.parametrize("objective", [o.model_fields["name"].default for o in objectives()])
world_sizes = pytest.mark.parametrize("world_size", [2, 3])


# What VICReg has none of, and a head no larger than the towers.
OTHER: dict[str, dict[str, Any]] = {"vicreg": {}, "slip": {"temperature": 0.05, "hidden": 16, "width": 8}}
# Steeper, through BatchNorm, what falls to float32 grows to the bound.
OTHER["siglip2"] = {
    **{"temperature": 0.05, "decoder": {"width": 8, "layers": 1, "heads": 2}},
    "teacher": {"begin": 0.0, "parts": 2, "prototypes": 12, "hidden": 8, "bottleneck": 4},
}
OTHER["declip"] = {"temperature": 0.2, "hidden": 8, "queue": 50}


def settings(objective: str, **changes: Any) -> TrainSettings:
    """Small towers without dropout; plain momentum SGD, so that parameters move in proportion to gradients."""
    tree: dict[str, Any] = {
        "name": "test",
        "data": {"path": "nowhere"},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [16, 24]},
        "text_tower": {"name": "bag", "width": 8, "max_tokens": TOKENS},
        "embed_dim": 6,
        "objective": {"name": objective} | OTHER.get(objective, {"temperature": 0.05}),
        # Of what falls to it in float32, VICReg's steep loss would make much.
        "optimizer": {"name": "sgd", "lr": 0.01 if objective == "vicreg" else 0.1, "weight_decay": 0.01},
        "epochs": 1,
        "global_batch_size": ROWS,
    }
    if objective == "distill":
        tree["frozen_encoders"] = {"image_encoder": {"name": "conv"}, "text_encoder": {"name": "bag"}}  # never built
    return TrainSettings.model_validate(tree | changes)


def several_texts(random: torch.Generator, needs: Needs) -> dict[str, Tensor]:
    """The columns of other captions and of label columns, of which not every pair has each; weights, of which some are 0."""
    more, label = ((ROWS, count) for count in (needs.captions - 1, len(needs.texts)))
    texts = {
        name: torch.randint(VOCABULARY, (*shape, TOKENS), generator=random) for name, shape in (("more", more), ("label", label))
    }
    columns = {f"{name}_text": ids for name, ids in texts.items()} | {f"{n}_mask": torch.ones_like(i) for n, i in texts.items()}
    columns |= {"more_id": torch.randint(40, more, generator=random), "label_there": torch.rand(label, generator=random) < 0.7}
    weights = torch.rand(ROWS, len(needs.numbers), generator=random) * (torch.arange(ROWS)[:, None] % 4 > 0)
    kept = {"more": more[1], "label": label[1]}
    return {name: column for name, column in columns.items() if kept[name.partition("_")[0]]} | {"numbers": weights}


def global_batch(step: int, needs: Needs) -> dict[str, Tensor]:
    """All columns that an objective may need. Captions and images repeat, within a worker's part and across parts."""
    random = torch.Generator().manual_seed(step)
    image_id = torch.arange(ROWS) + 10
    text_id = torch.arange(ROWS) + 20
    text_id[[4, 5, 11]] = 20
    image_id[[3, 7]] = 11
    images = torch.randint(256, (ROWS, 3, 16, 16), generator=random, dtype=torch.uint8)
    texts = torch.randint(VOCABULARY, (ROWS, TOKENS), generator=random)
    hidden = torch.rand(ROWS, TOKENS, generator=random) < 0.3
    return {
        "image": images[image_id - 10],
        "text": texts[text_id - 20],
        "text_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64),
        "image_id": image_id,
        "text_id": text_id,
        "strong": torch.randint(256, (ROWS, 2, 3, 16, 16), generator=random, dtype=torch.uint8),
        "whole": torch.randint(256, (ROWS, 3, 16, 16), generator=random, dtype=torch.uint8),
        "codes": torch.rand(ROWS, 3, 13, generator=random),
        "masked_text": texts[text_id - 20].masked_fill(hidden, 0),
        "masked_labels": texts[text_id - 20].masked_fill(~hidden, -100),
        "other_text": texts[text_id - 20].flip(1),
        "other_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64),
        **several_texts(random, needs),
        "sample_id": 50 + torch.arange(ROWS),
        "draw": torch.randint(2**62, (ROWS,), generator=random),
        "neighbour_ids": torch.stack([image_id, image_id // 2, text_id // 2], dim=1),
        "frozen_image_features": torch.nn.functional.normalize(torch.randn(ROWS, 3, 7, generator=random), dim=-1),
        "frozen_text_features": torch.nn.functional.normalize(torch.randn(ROWS, 3, 7, generator=random), dim=-1),
    }


@dataclass
class Outcome:
    """What a few steps did."""

    encoder: dict[str, Tensor]  # how far each parameter moved
    objective: dict[str, Tensor]  # parameters and state at the end
    teacher: dict[str, Tensor]
    losses: list[float]  # over the global batch
    norms: list[float]


def train(settings: TrainSettings) -> Outcome:
    """A few steps of `train_step` on this worker's part of each global batch, as the loop does them."""
    torch.manual_seed(0)
    image, text = settings.image_tower, settings.text_tower
    widths, places = (None, None), settings.objective.needs.image_states
    encoder: Any = build_encoder(image, text, settings.heads, settings.embed_dim, widths, VOCABULARY, image_states=places)
    objective, teacher = settings.objective.build(TASK), settings.objective.build_teacher(encoder, TASK)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    if distributed.world_size() > 1:
        encoder = DistributedDataParallel(encoder, broadcast_buffers=False)
    optimizer = settings.optimizer.build([encoder, objective])
    state = TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    size = ROWS // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    losses, norms = [], []
    for step in range(STEPS):
        needs = settings.objective.needs
        used = {"strong": needs.strong, "codes": needs.codes, "masked_text": needs.masked == "apart"}
        used |= {"masked_labels": needs.masked != "no", "other_text": needs.other_words}
        unused = {name for name, need in used.items() if not need}
        part: Any = {name: column[own] for name, column in global_batch(step, needs).items() if name not in unused}
        loss, norm = train_step(state, Batch(**part), settings, settings.optimizer.lr)
        losses.append(float(distributed.mean(loss.total)))
        norms.append(float(norm))
    assert (state.step, state.samples) == (STEPS, STEPS * ROWS)
    moved = {name: value - before[name] for name, value in unwrap(encoder).state_dict().items()}
    own_state, teachers = ({name: value.clone() for name, value in m.state_dict().items()} for m in (objective, teacher))
    return Outcome(moved, own_state, teachers, losses, norms)


@cache
def expected_of(objective: str) -> Outcome:
    """One worker, whole batches."""
    return train(settings(objective))


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Equal up to float32: each tensor against its own scale."""
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.norms, expected.norms, rtol=1e-4, atol=1e-6)
    for part in ("encoder", "objective", "teacher"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            finite = theirs[name][theirs[name].isfinite()]
            scale = float(finite.abs().max()) if finite.numel() else 0.0
            torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-4 * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@every_objective
@pytest.mark.parametrize("accumulate", [1, 2])
@world_sizes
def test_workers_step_as_one(gloo: Gloo, objective: str, accumulate: int, world_size: int) -> None:
    """Encoder and objective after three steps of K workers are those of one worker on the whole batches."""
    expected = expected_of(objective)
    assert all(value.abs().max() > 0 for value in expected.encoder.values()), "a parameter that never moves tests nothing"
    found = gloo(world_size, train, settings(objective, accumulate=accumulate))
    for outcome in found:
        assert_same(outcome, expected)


@every_objective
@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_step_as_the_whole(objective: str, accumulate: int) -> None:
    """Accumulation on one worker: the loss still sees the whole batch."""
    assert_same(train(settings(objective, accumulate=accumulate)), expected_of(objective))


def _clip_of_a_repeated_pair(same_caption: bool) -> float:
    """CLIP's global loss of four pairs where the third looks like the first; they sit on different workers."""
    rows = torch.eye(4)[[0, 1, 0, 3]]
    image_id = torch.arange(4)
    text_id = torch.tensor([0, 1, 0 if same_caption else 2, 3])
    size = 4 // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    batch = Batch(image_id=image_id[own], text_id=text_id[own])
    objective = ClipSettings(temperature=0.05).build(TASK)
    return float(distributed.mean(objective(Embeddings(*[rows[own]] * 4), batch).total))


def test_false_negatives_are_found_across_workers(gloo: Gloo) -> None:
    """Two of four rows have a rival as near as their own: log 2 each, and nothing once it is known for the same caption."""
    for same_caption, expected in ((True, 0.0), (False, math.log(2) / 2)):
        for found in [_clip_of_a_repeated_pair(same_caption), *gloo(2, _clip_of_a_repeated_pair, same_caption)]:
            assert found == pytest.approx(expected, abs=1e-6)


def _all_gather_and_its_gradient() -> tuple[Tensor, Tensor, Tensor]:
    """The gathered rows, the gradient of sum(weight_r * gathered) over ranks r, and gathered integers."""
    own = distributed.rank()
    rows = torch.arange(4.0).reshape(2, 2) + 10 * own
    rows.requires_grad_()
    gathered = distributed.all_gather(rows)
    weight = (own + 1) * torch.arange(gathered.numel(), dtype=torch.float32).reshape(gathered.shape)
    (gathered * weight).sum().backward()
    assert rows.grad is not None
    # A transposed view is not contiguous: gathering must not mix its rows up.
    ids = distributed.all_gather(torch.tensor([[own, own], [10 + own, 20 + own]]).T[:, 1])
    return gathered.detach(), rows.grad, ids


@world_sizes
def test_all_gather(gloo: Gloo, world_size: int) -> None:
    found = gloo(world_size, _all_gather_and_its_gradient)
    expected = torch.cat([torch.arange(4.0).reshape(2, 2) + 10 * rank for rank in range(world_size)])
    total = sum(range(1, world_size + 1)) * torch.arange(expected.numel(), dtype=torch.float32).reshape(expected.shape)
    for rank, (gathered, gradient, ids) in enumerate(found):
        assert torch.equal(gathered, expected)
        assert torch.equal(gradient, total[2 * rank : 2 * rank + 2])
        assert ids.tolist() == [n for r in range(world_size) for n in (10 + r, 20 + r)]


def _shares_and_their_gradients() -> dict[str, Any]:
    """Seven rows: what each worker is sent, and the gradient of sums that weigh the row, its receiver and its share."""
    own, size = distributed.rank(), distributed.world_size()
    everything = torch.arange(14.0).reshape(7, 2)
    with distributed.global_batch(7):
        found: dict[str, Any] = {"weight": distributed.weight()}
        for name in ("gather", "ring", "blocks"):
            rows = everything.tensor_split(size)[own].clone().requires_grad_()
            blocks = [distributed.all_gather(rows)] if name == "gather" else list(distributed.around(rows, name == "ring"))
            received = torch.cat(blocks)
            (received.square() * (own + 1)).sum().backward()
            found[name], found[f"{name} gradient"] = received.detach(), rows.grad
        found["ids"] = distributed.all_gather(torch.arange(7).tensor_split(size)[own])
        found["stacked"] = distributed.stacked(torch.tensor([own, 9]))
        found["mean"] = distributed.mean(everything.tensor_split(size)[own].mean())
        found["total"] = distributed.total(torch.tensor(own))
        found["places"] = distributed.first_row(len(rows)), distributed.all_rows(len(rows))
        counts = torch.tensor(2.0 * own)  # of values that are 10 each
        found["counted"] = distributed.mean(distributed.mean_over_workers(10 * counts, counts))
        try:
            distributed.all_gather(torch.zeros(len(rows) + 1))
        except ValueError as error:
            found["refused"] = str(error)
    return found


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_seven_rows_on_any_number_of_workers(gloo: Gloo, world_size: int) -> None:
    everything = torch.arange(14.0).reshape(7, 2)
    own = everything.tensor_split(world_size)
    receivers = sum(range(1, world_size + 1))
    for rank, found in enumerate(gloo(world_size, _shares_and_their_gradients)):
        senders = [(rank - hop) % world_size for hop in range(world_size)]
        assert torch.equal(found["gather"], everything)
        assert torch.equal(found["ring"], torch.cat([own[sender] for sender in senders]))
        assert torch.equal(found["blocks"], found["ring"])
        for name in ("gather", "ring", "blocks"):
            assert torch.equal(found[f"{name} gradient"], 2 * receivers * own[rank])
        assert found["ids"].tolist() == list(range(7))
        assert found["stacked"].tolist() == [[r, 9] for r in range(world_size)]
        assert float(found["mean"]) == pytest.approx(float(everything.mean()))
        assert int(found["total"]) == receivers - world_size
        assert found["places"] == (sum(len(rows) for rows in own[:rank]), 7)
        assert found["weight"] == pytest.approx(world_size * len(own[rank]) / 7)
        assert float(found["counted"]) == pytest.approx(10)
        assert f"{len(own[rank]) + 1} rows" in found["refused"] and "stacked" in found["refused"]


def test_more_workers_than_rows_are_refused(gloo: Gloo) -> None:
    assert gloo(4, _refusal) == ["3 rows cannot be shared by 4: each needs at least one"] * 4


def _refusal() -> str:
    with pytest.raises(ValueError, match="shared") as caught, distributed.global_batch(3):
        pass
    return str(caught.value)


def _around_and_its_gradient(ring: bool) -> tuple[list[Tensor], Tensor, list[list[int]]]:
    """Blocks as they come; the gradient of sum(weight * block), weights by receiver r, sender s and place; and integers."""
    own, size = distributed.rank(), distributed.world_size()
    rows = (torch.arange(6.0).reshape(3, 2) + 10 * own).requires_grad_()
    blocks = list(distributed.around(rows.T, ring))
    weights = [_weight(own, (own - hop) % size) for hop in range(size)]
    torch.stack([(weight * block).sum() for weight, block in zip(weights, blocks, strict=True)]).sum().backward()
    assert rows.grad is not None
    ids = [block.tolist() for block in distributed.around(torch.tensor([own, 10 * own]), ring)]
    return [block.detach() for block in blocks], rows.grad, ids


def _weight(receiver: int, sender: int) -> Tensor:
    return (1 + receiver + 5 * sender) * torch.arange(6.0).reshape(2, 3) + receiver


@pytest.mark.parametrize("ring", [True, False])
@world_sizes
def test_around(gloo: Gloo, ring: bool, world_size: int) -> None:
    """Every worker's block once, the own one first; a block's gradient is the sum of what all workers make of it."""
    for rank, (blocks, gradient, ids) in enumerate(gloo(world_size, _around_and_its_gradient, ring)):
        senders = [(rank - hop) % world_size for hop in range(world_size)]
        assert len(blocks) == world_size
        for sender, block in zip(senders, blocks, strict=True):
            assert torch.equal(block, (torch.arange(6.0).reshape(3, 2) + 10 * sender).T)
        assert torch.equal(gradient.T, torch.stack([_weight(receiver, rank) for receiver in range(world_size)]).sum(0))
        assert ids == [[sender, 10 * sender] for sender in senders]


@pytest.mark.parametrize("ring", [True, False])
def test_around_one_worker_there_are_its_own_rows(ring: bool) -> None:
    rows = torch.ones(2, 2, requires_grad=True)
    (block,) = distributed.around(rows, ring)
    assert torch.equal(block, rows)
    block.sum().backward()
    assert rows.grad is not None and torch.equal(rows.grad, torch.ones(2, 2))


def _exchange() -> dict[str, Any]:
    own = distributed.rank()
    module = torch.nn.Module()
    module.used, module.unused = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    module.frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    module.used.grad = torch.tensor([float(own), 1.0])
    if own == 1:  # on the others it has no gradient at all
        module.unused.grad = torch.tensor([6.0, 0.0])
    distributed.average_gradients(module)
    value = torch.tensor(float(own), requires_grad=True)
    mean = distributed.mean(value)
    return {
        "place": (distributed.rank(), distributed.world_size(), distributed.first_row(5)),
        "objects": distributed.gather_objects({"rank": own, "rows": [own] * own}),
        "mean": (float(mean), mean.requires_grad, float(value)),
        "flags": distributed.from_rank_zero([own == 0, own != 0, True]),
        "used": module.used.grad.tolist(),
        "unused": module.unused.grad.tolist(),
        "frozen": module.frozen.grad,
    }


@world_sizes
def test_exchange(gloo: Gloo, world_size: int) -> None:
    for rank, found in enumerate(gloo(world_size, _exchange)):
        assert found["place"] == (rank, world_size, 5 * rank)
        assert found["objects"] == [{"rank": r, "rows": [r] * r} for r in range(world_size)]
        assert found["mean"] == ((world_size - 1) / 2, False, rank)
        assert found["flags"] == [True, False, True], "rank 0 decides for all"
        assert found["used"] == [(world_size - 1) / 2, 1.0]
        assert found["unused"] == [6.0 / world_size, 0.0]
        assert found["frozen"] is None


def _agree(poisoned: int | None, asked: int | None) -> tuple[bool, bool]:
    """What the step's one exchange says, where one rank's loss is no number and one was asked to stop."""
    value = math.nan if distributed.rank() == poisoned else 1.0
    loss = Loss(torch.tensor(value), {}, {"seen": torch.zeros(2)})
    return _agreed(loss, torch.tensor(1.0), distributed.rank() == asked)


@world_sizes
@pytest.mark.parametrize("poisoned", [None, 0, 1])
@pytest.mark.parametrize("asked", [None, 0, 1])
def test_all_workers_count_a_step_and_stop_at_it_or_none_does(
    gloo: Gloo, world_size: int, poisoned: int | None, asked: int | None
) -> None:
    assert gloo(world_size, _agree, poisoned, asked) == [(poisoned is None, asked is not None)] * world_size


def test_one_worker_is_the_identity() -> None:
    rows = torch.ones(2, 2, requires_grad=True)
    assert distributed.all_gather(rows) is rows
    assert (distributed.world_size(), distributed.rank(), distributed.first_row(7)) == (1, 0, 0)
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.from_rank_zero([True, False]) == [True, False]
    assert not distributed.mean(rows.sum()).requires_grad
