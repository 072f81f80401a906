"""What every objective obeys: any number of workers and parts is one, forward can be replayed, state survives, it descends.

In float64 with small networks, through `train_step`, in real processes.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple, get_args

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch, columns
from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, parse_overrides, validate
from tests.training.gloo import Gloo
from training import distributed
from training.config import TrainSettings
from training.objectives import ObjectiveUnion
from training.objectives.base import Embeddings, Objective, Task
from training.state import TrainState
from training.step import over_workers, train_step
from training.tensor_tree import decode, encode

ROWS, WIDTH, EMBED_DIM, STEPS = 12, 7, 5, 6
UNEVEN = 7  # pairs that no number of workers but one shares equally
TASK = Task(
    num_images=23,
    num_texts=29,
    embed_dim=EMBED_DIM,
    image_width=EMBED_DIM,
    steps_per_epoch=2,
    total_steps=8,
    seed=3,
    states_width=EMBED_DIM,
    image_states_width=EMBED_DIM,
    vocabulary_size=11,
    frozen_widths=(6, 6),
)

# Pairs of a batch by image and by caption: the same image twice, the same caption twice, and one pair twice.
IMAGES = torch.tensor([0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 7])
TEXTS = torch.tensor([0, 1, 2, 2, 3, 4, 5, 5, 5, 6, 8, 8])

NAMES = [settings.model_fields["name"].default for settings in get_args(get_args(ObjectiveUnion)[0])]

# Temperatures at which every pair counts, schedules and teachers that move within a few steps.
SOFT: dict[str, dict[str, Any]] = {name: {"name": name, "temperature": 0.2} for name in NAMES} | {
    "vicreg": {"name": "vicreg", "invariance": 0.5, "variance": 1.0, "covariance": 0.1},
    "siglip": {"name": "siglip", "temperature": 0.2, "bias": -1.0},
    "siglip2": {
        **{"name": "siglip2", "temperature": 0.2, "bias": -1.0},
        "decoder": {"width": 4, "layers": 1, "heads": 2},
        "teacher": {
            **{"begin": 0.0, "momentum": 0.6, "parts": 2, "centre_momentum": 0.5, "teacher_temperature": 0.2},
            **{"student_temperature": 0.4, "prototypes": 6, "hidden": 4, "bottleneck": 3},
        },
    },
    "isogclr": {"name": "isogclr", "temperature": 0.2, "max_temperature": 0.4, "rho": 0.5},
    "fastclip": {"name": "fastclip", "temperature": 0.2, "temperature_lr": 0.01},
    "albef": {"name": "albef", "temperature": 0.2, "teacher": {"name": "ema", "momentum": 0.6, "final_momentum": 0.6}},
    "slip": {"name": "slip", "temperature": 0.2, "view_temperature": 0.5, "hidden": 6, "width": 4},
    "mcd": {"name": "mcd", "temperature": 0.2, "teacher": {"name": "ema", "momentum": 0.6, "final_momentum": 0.6}},
    "declip": {"name": "declip", "temperature": 0.2, "hidden": 6, "queue": 31, "image": 0.5},
    "clip-ping": {"name": "clip-ping", "temperature": 0.2, "neighbour_temperature": 0.3},
    "a-clip-ping": {"name": "a-clip-ping", "temperature": 0.2, "neighbour_temperature": 0.3, "queue": 31},
    "distill": {"name": "distill", "temperature": 0.2, "teacher_temperature": 0.3, "feature": 0.5},
    "dcl": {"name": "dcl", "temperature": 0.2, "learn_temperature": True},
    "negclip": {"name": "negclip", "temperature": 0.2, "negatives": ["swapped", "other"]},
    "captions": {"name": "captions", "temperature": 0.2, "captions": 3},
    "matryoshka": {"name": "matryoshka", "temperature": 0.2, "widths": [2, 3]},
    "uniclip": {"name": "uniclip", "temperature": 0.2, "image_temperature": 0.3, "text_temperature": 0.4},
}
VARIANTS = SOFT | {
    "clip-unmasked": SOFT["clip"] | {"mask_false_negatives": False},
    "siglip-gather": SOFT["siglip"] | {"exchange": "gather"},
    "siglip-unmasked": SOFT["siglip"] | {"mask_false_negatives": False},
    "siglip2-unmasked": SOFT["siglip2"] | {"parallel": 0.7, "captioning": 0.5, "mask_false_negatives": False},
    "siglip2-later": SOFT["siglip2"] | {"teacher": SOFT["siglip2"]["teacher"] | {"begin": 0.5}},
    "psd-self": SOFT["psd"] | {"teacher": {"name": "self"}},
    "psd-self-sharpened": SOFT["psd"] | {"teacher": {"name": "self"}, "swap_directions": False, "sharpening": 0.5},
    "psd-swap": SOFT["psd"] | {"swap_directions": True, "schedule": "cosine"},
    "psd-block": SOFT["psd"] | {"scope": "block", "schedule": "constant", "soft_fraction": 0.5},
    "sogclr-unit": SOFT["sogclr"] | {"grad_scale": "unit"},
    "sogclr-hinge": SOFT["sogclr"] | {"hinge": 1.0},
    "onlineclr-zero": SOFT["onlineclr"] | {"init": "zero"},
    "onlineclr-unmasked": SOFT["onlineclr"] | {"mask_false_negatives": False},
    "albef-wraps": SOFT["albef"] | {"queue": 17},
    "albef-short": SOFT["albef"] | {"queue": 7},
    "albef-no-queue": SOFT["albef"] | {"queue": 0},
    "slip-unmasked": SOFT["slip"] | {"mask_false_negatives": False},
    "uniclip-others-only": SOFT["uniclip"] | {"self_pair": False},
    "clip-ping-crossed": SOFT["clip-ping"] | {"cross": "other_modality", "own_features": 0.5, "nearest": 2.0},
    "clip-ping-unmasked": SOFT["clip-ping"] | {"mask_false_negatives": False},
    "a-clip-ping-short": SOFT["a-clip-ping"] | {"queue": 7, "own_features": 0.5},
    "a-clip-ping-crossed": SOFT["a-clip-ping"] | {"cross": "other_modality", "mask_false_negatives": False},
    "distill-live": SOFT["distill"] | {"live": True, "relation": 0.0},
    "distill-unmasked": SOFT["distill"] | {"mask_false_negatives": False},
    "mcd-huber": SOFT["mcd"] | {"distance": "huber", "mlm": 0},
    "mcd-unmasked": SOFT["mcd"] | {"distance": "absolute", "mask_false_negatives": False},
    "mcd-contrast": SOFT["mcd"] | {"progress": 0.0, "mlm": 0},
    "mcd-weighted": SOFT["mcd"] | {"positive": 0.5, "negative": 2.0, "noisy": 0.0, "progress": 0.7},
    "declip-short": SOFT["declip"] | {"queue": 7, "mlm": 0},
    "declip-unmasked": SOFT["declip"] | {"mask_false_negatives": False, "queue": 200},
    "dcl-weighted": SOFT["dcl"] | {"sigma": 0.5, "mask_false_negatives": False},
    "captions-unmasked": SOFT["captions"] | {"mask_false_negatives": False},
    "weighted-unmasked": SOFT["weighted"] | {"mask_false_negatives": False},
    "uniclip-plain": SOFT["uniclip"] | {"codes": False},
    "uniclip-unmasked": SOFT["uniclip"] | {"mask_false_negatives": False},
}

every_objective = pytest.mark.parametrize("name", NAMES)
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(4) as workers:
        yield workers


def settings_of(objective: dict[str, Any], accumulate: int = 1, rows: int = ROWS) -> TrainSettings:
    tree: dict[str, Any] = {
        "name": "laws",
        "data": {"path": "nowhere"},
        "image_tower": {"name": "conv"},
        "text_tower": {"name": "bag"},
        "embed_dim": EMBED_DIM,
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.0},
        "epochs": 1,
        "global_batch_size": ROWS,
        "accumulate": accumulate,
    }
    if objective["name"] == "distill":
        tree["frozen_encoders"] = {"image_encoder": {"name": "conv"}, "text_encoder": {"name": "bag"}}  # never built
    # Fewer than an objective's least batch are too few to train well, but not for the laws.
    return validate(TrainSettings, tree | {"objective": objective}, "laws").model_copy(update={"global_batch_size": rows})


# What is to be seen at four places, beside what an image shows everywhere.
PLACES = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(401), dtype=torch.float64)
WORDS = torch.randn(TASK.vocabulary_size, WIDTH, generator=torch.Generator().manual_seed(400), dtype=torch.float64)


SEVERAL: dict[str, Any] = {"more": "more_features", "label": "label_text"}  # columns of several texts of a pair


class Linear(nn.Module):
    """Two linear maps in float64, which `DualEncoder` never is."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(WIDTH, EMBED_DIM, dtype=torch.float64) for _ in range(2))

    def forward(self, batch: Batch) -> Embeddings:
        image, text = self.image(batch["image_features"]), self.text(batch["text_features"])
        others = {"text_states": self.text(WORDS[batch["masked_text"]]), "other_projection": self.text(batch["other_text"])}
        others |= {f"{kind}_projection": self.text(batch[column]) for kind, column in SEVERAL.items()}
        return Embeddings(F.normalize(image), F.normalize(text), text_projection=text, **self.images(batch), **others)

    def images(self, batch: Batch) -> dict[str, Tensor]:
        image = batch["image"] if "image" in batch else batch["image_features"]
        columns = {"image_projection": self.image(image), "image_states": self.image(image[:, None] * PLACES)}
        if "strong" in batch:
            columns |= dict.fromkeys(("strong_features", "strong_projection"), self.image(batch["strong"]))
        if "hidden" in batch:  # what is hidden is known by what is around it
            seen = (batch["whole"][:, None] * PLACES).masked_fill(batch["hidden"][..., None], 0.0)
            columns["masked_states"] = self.image(seen + seen.mean(1, keepdim=True) * PLACES)
        return columns


def frozen_columns(ids: Tensor, image_width: int, text_width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Made-up neighbours, the same ones for several samples, and features that belong to their ids."""
    found = torch.stack([ids, (ids + 1) // 2 * 3 % 20, (ids + 5) // 2], dim=1)
    random = torch.Generator().manual_seed(300)
    widths = {"frozen_image_features": image_width, "frozen_text_features": text_width}
    tables = {name: torch.randn(100, width, generator=random, dtype=torch.float64) for name, width in widths.items()}
    return {"neighbour_ids": found} | {name: F.normalize(table[found], dim=-1).to(dtype) for name, table in tables.items()}


def hidden_words(step: int) -> dict[str, Tensor]:
    """Captions of five words, unequally many of them hidden, and none at all on the first worker of three."""
    random = torch.Generator().manual_seed(500 + step)
    texts = torch.randint(TASK.vocabulary_size, (ROWS, 5), generator=random)
    hidden = (torch.rand(ROWS, 5, generator=random) < 0.4) & (torch.arange(ROWS)[:, None] >= 4)
    return {"masked_text": texts.masked_fill(hidden, 1), "masked_labels": texts.masked_fill(~hidden, -100)}


def captions(step: int) -> dict[str, Tensor]:
    """Tokens of captions of one to five, and a random number for each pair."""
    random = torch.Generator().manual_seed(700 + step)
    texts = torch.randint(TASK.vocabulary_size, (ROWS, 5), generator=random)
    lengths = torch.randint(1, 6, (ROWS, 1), generator=random)
    draws = torch.randint(2**62, (ROWS,), generator=random)
    return {"text": texts, "text_mask": (torch.arange(5) < lengths).long(), "draw": draws}


def several_texts(step: int) -> dict[str, Tensor]:
    """Ids of two other captions of every pair, of which some are the pair's own or another's; and what is there of two labels:
    of some pairs nothing, and of the first worker of three nothing at all. Weights, of which some are 0."""
    random = torch.Generator().manual_seed(600 + step)
    own = (TEXTS + 5 * step) % TASK.num_texts
    ids = torch.where(
        torch.rand(ROWS, 2, generator=random) < 0.3, own[:, None], torch.randint(TASK.num_texts, (ROWS, 2), generator=random)
    )
    there = (torch.rand(ROWS, 2, generator=random) < 0.7) & (torch.arange(ROWS)[:, None] >= 4)
    weights = 0.02 * torch.rand(ROWS, 1, generator=random, dtype=torch.float64)
    return {"more_id": ids, "label_there": there, "numbers": weights * (torch.arange(ROWS)[:, None] % 4 > 0)}


def batch_of(step: int, shuffle: int = 0, rows: int = ROWS) -> Batch:
    """A step's global batch. Samples come back in later steps, on other workers; `shuffle` deals them out in another way."""
    image_id, text_id = (IMAGES + 5 * step) % TASK.num_images, (TEXTS + 5 * step) % TASK.num_texts
    random = torch.Generator().manual_seed(100)
    images, texts = torch.randn(2, TASK.num_texts, WIDTH, generator=random, dtype=torch.float64).unbind()
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1000 * shuffle + step))
    batch = {"image_features": images[image_id], "text_features": texts[text_id], "image_id": image_id, "text_id": text_id}
    shifts = torch.randn(ROWS, 2, WIDTH, generator=torch.Generator().manual_seed(200 + step), dtype=torch.float64)
    batch |= frozen_columns(image_id, *TASK.frozen_widths, torch.float64) | {"sample_id": image_id + 40}
    batch["neighbour_ids"][step % ROWS, 1] = -1  # an image that nothing is near to
    batch |= hidden_words(step) | {"other_text": texts[text_id].flip(1)}
    batch |= several_texts(step) | captions(step)
    batch |= {"more_features": texts[batch["more_id"]], "label_text": texts[batch["more_id"].flip(0)]}
    batch["strong"] = batch["image_features"][:, None] + 0.5 * shifts
    batch["whole"] = batch["image_features"] + 0.2 * shifts.flip(1)[:, 0]
    return Batch(**{name: column[order] for name, column in batch.items()})  # type: ignore[typeddict-item]


def part_of(batch: Batch) -> Batch:
    """This worker's rows."""
    place, size = distributed.rank(), distributed.world_size()
    return Batch(**{name: column.tensor_split(size)[place] for name, column in batch.items()})  # type: ignore[typeddict-item,attr-defined]


def as_begun(batch: Batch, step: int, settings: TrainSettings) -> Batch:
    """Without the strong views that a run begins without."""
    views = settings.objective.needs.strong
    if views is None or step >= views.first_step(TASK.total_steps):
        return batch
    return Batch(**{name: column for name, column in batch.items() if name not in ("strong", "whole")})  # type: ignore[typeddict-item]


def state_of(settings: TrainSettings, seed: int = 0) -> TrainState:
    """All of a run, in float64."""
    torch.manual_seed(seed)
    encoder: Any = Linear()
    objective = settings.objective.build(TASK).double()
    teacher = settings.objective.build_teacher(encoder, TASK)
    if distributed.world_size() > 1:
        encoder = DistributedDataParallel(encoder, broadcast_buffers=False)
    optimizer = settings.optimizer.build([encoder, objective])
    return TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))


class Outcome(NamedTuple):
    """What some steps did."""

    losses: list[Tensor]  # of the global batch, each step
    gradients: list[list[Tensor]]  # of encoder and objective, each step
    state: dict[str, Tensor]  # of encoder, objective and teacher, at the end
    saved: tuple[bytes, str]  # a checkpoint


def steps(
    objective: dict[str, Any],
    first: int,
    last: int,
    saved: tuple[bytes, str] | None = None,
    accumulate: int = 1,
    shuffle: int = 0,
    rows: int = ROWS,
) -> Outcome:
    """Train on this worker's rows of global batches, from a checkpoint where there is one."""
    settings = settings_of(objective, accumulate, rows)
    state = state_of(settings, seed=0 if saved is None else 99)
    if saved is not None:
        state.load_state_dict(decode(safetensors.torch.load(saved[0]), saved[1]))
    assert state.step == first
    losses, gradients = [], []
    for step in range(first, last):
        batch = as_begun(part_of(batch_of(step, shuffle, rows)), step, settings)
        loss, _ = train_step(state, batch, settings, settings.optimizer.lr)
        assert loss.total.dtype == torch.float64
        losses.append(torch.tensor(over_workers(loss, settings)["loss"], dtype=torch.float64))
        parameters = [p for module in (state.encoder, state.objective) for p in module.parameters() if p.requires_grad]
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
        assert len(gradients[-1]) == len(parameters)
    written = state.state_dict()
    tensors = {f"{part}.{name}": t.clone() for part in ("encoder", "objective", "teacher") for name, t in written[part].items()}
    assert {t.dtype for t in tensors.values()} <= {torch.float64, torch.int64}
    weights, rest = encode(written)
    return Outcome(losses, gradients, tensors, (safetensors.torch.save(weights), rest))


@cache
def expected_of(variant: str) -> Outcome:
    """One worker, whole batches."""
    return steps(VARIANTS[variant], 0, STEPS)


def assert_same(found: Outcome, expected: Outcome) -> None:
    """Up to the rounding of float64: sums in float32 on the way would show."""
    close = {"rtol": 1e-7, "atol": 1e-10}
    number = len(found.losses)
    torch.testing.assert_close(found.losses, expected.losses[-number:], **close)
    torch.testing.assert_close(found.gradients, expected.gradients[-number:], **close)
    assert found.state.keys() == expected.state.keys()
    for name, value in found.state.items():
        torch.testing.assert_close(value, expected.state[name], **close, msg=lambda m, n=name: f"{n}: {m}")


def test_the_batches_of_these_tests_hold_what_can_go_wrong() -> None:
    """Same images and same captions on one worker and on two, and samples that meet another worker the next time."""
    for name in ("image_id", "text_id"):
        for world_size in (2, 3):
            homes: dict[int, set[int]] = {}  # of a sample over all steps
            within, across = [], []
            for step in range(STEPS):
                ids = batch_of(step)[name].tolist()  # type: ignore[literal-required]
                for i in range(ROWS):
                    home = i * world_size // ROWS
                    homes.setdefault(ids[i], set()).add(home)
                    for j in range(i):
                        if ids[i] == ids[j]:
                            (within if home == j * world_size // ROWS else across).append((step, i, j))
            assert len(within) >= 3 and len(across) >= 3
            assert sum(len(workers) > 1 for workers in homes.values()) > 5


@every_variant
def test_training_moves_all_there_is(variant: str) -> None:
    """Else equal outcomes would mean little."""
    found = expected_of(variant)
    start = state_of(settings_of(VARIANTS[variant])).state_dict()
    for name, value in found.state.items():
        part, key = name.split(".", 1)
        if variant != "albef-no-queue" or key not in ("images", "texts", "ids", "pushed"):
            assert not torch.equal(value, start[part][key]), name
    first = (
        1 if variant.startswith("a-clip-ping") else 4 if variant == "siglip2-later" else 0
    )  # before that, nothing to learn from
    gradients = [gradient for step in found.gradients[first:] for gradient in step if gradient.ndim]
    assert all(float(gradient.abs().max()) > 1e-4 for gradient in gradients)


@pytest.mark.slow
@every_variant
def test_any_number_of_workers_is_one(gloo: Gloo, variant: str) -> None:
    """Of three: loss and gradients at every step, weights and state at the end, on every worker. Two: below."""
    for found in gloo(3, steps, VARIANTS[variant], 0, STEPS):
        assert_same(found, expected_of(variant))


@every_variant
def test_any_number_of_parts_is_one(variant: str) -> None:
    assert_same(steps(VARIANTS[variant], 0, STEPS, None, 3), expected_of(variant))


@pytest.mark.slow
@every_variant
def test_a_run_may_resume_with_other_workers(gloo: Gloo, variant: str) -> None:
    """Two workers, then three, then one, by checkpoints: as one worker all along, at every step and on every worker."""
    firsts = gloo(2, steps, VARIANTS[variant], 0, 2)
    seconds = gloo(3, steps, VARIANTS[variant], 2, 4, firsts[1].saved)
    third = steps(VARIANTS[variant], 4, STEPS, seconds[2].saved)
    for first, second in product(firsts, seconds):
        losses, gradients = ([*a, *b, *c] for a, b, c in zip(first[:2], second[:2], third[:2], strict=True))
        assert_same(third._replace(losses=losses, gradients=gradients), expected_of(variant))


@cache
def uneven_expected_of(variant: str) -> Outcome:
    """One worker, whole batches of seven pairs."""
    return steps(VARIANTS[variant], 0, STEPS, rows=UNEVEN)


@pytest.mark.slow
@every_variant
def test_workers_with_unequal_shares_are_one(gloo: Gloo, variant: str) -> None:
    """Seven pairs on four workers, then three, then two with three parts each, by checkpoints: as one worker all along."""
    expected, saved = uneven_expected_of(variant), None
    for first, (workers, parts) in zip((0, 2, 4), ((4, 1), (3, 1), (2, 3)), strict=True):
        outcomes = gloo(workers, steps, VARIANTS[variant], first, first + 2, saved, parts, 0, UNEVEN)
        now = Outcome(expected.losses[: first + 2], expected.gradients[: first + 2], {}, b"")
        for found in outcomes:
            assert_same(found._replace(state={}), now)
        saved = outcomes[-1].saved
    for found in outcomes:
        assert_same(found, expected)


@every_variant
def test_a_checkpoint_holds_all_of_it(variant: str) -> None:
    """To the last bit, into an objective and a teacher that were built anew."""
    before = steps(VARIANTS[variant], 0, 3)
    after = steps(VARIANTS[variant], 3, STEPS, before.saved)
    expected = expected_of(variant)
    assert all(torch.equal(a, b) for a, b in zip(after.losses, expected.losses[3:], strict=True))
    for ours, theirs in zip(after.gradients, expected.gradients[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.equal(value, expected.state[name]) for name, value in after.state.items())


@pytest.mark.slow
@every_variant
def test_samples_may_be_dealt_out_in_any_order(gloo: Gloo, variant: str) -> None:
    """Two workers and batches in another order: the same loss, gradients and state, sample by sample.

    PSD chooses soft pairs by their place in the batch, so here it chooses all. A queue that a batch does not fill evenly loses
    the pairs in the places that are written over, so here it takes whole batches, and is compared as a set.
    """
    objective = VARIANTS[variant]
    if objective["name"] == "psd":
        objective = objective | {"soft_fraction": 0.99, "schedule": "constant"}
    if objective["name"] in ("declip", "a-clip-ping"):
        objective = objective | {"queue": 2 * ROWS if objective["name"] == "declip" else ROWS}
    if objective["name"] == "albef":
        objective = objective | {"queue": min(objective.get("queue", ROWS), ROWS) // ROWS * ROWS}
    expected = expected_of(variant) if objective == VARIANTS[variant] else steps(objective, 0, STEPS)
    for found in gloo(2, steps, objective, 0, STEPS, None, 1, 5):
        assert_same(_as_sets(found), _as_sets(expected))


def _as_sets(outcome: Outcome) -> Outcome:
    """With products over the rows of a queue, which do not know their order, in its place."""
    state = dict(outcome.state)
    if "objective.ids" in state:
        names = [f"objective.{name}" for name in ("images", "texts", "queue", "ids")]
        queue = [state.pop(name).double() for name in names if name in state]
        state["queue"] = torch.cat(queue, dim=1).T @ torch.cat(queue, dim=1)
    return outcome._replace(state=state)


def trained(objective: dict[str, Any]) -> tuple[TrainState, Batch, Embeddings]:
    """After a few steps, the next batch with its teacher's columns, and what the encoder makes of it."""
    settings = settings_of(objective)
    state = state_of(settings)
    for step in range(3):
        train_step(state, batch_of(step), settings, settings.optimizer.lr)
    with torch.no_grad():
        batch = state.teacher(batch_of(3))
        return state, batch, state.encoder(batch)


def leaves(rows: Embeddings) -> Embeddings:
    """Copies that take a gradient."""
    return Embeddings(**{name: part.clone().requires_grad_() for name, part in rows.items()})


@every_variant
def test_forward_can_be_replayed(variant: str) -> None:
    """Twice the same loss, metrics and gradient, and nothing has changed: no parameter, no state, no batch."""
    state, batch, rows = trained(VARIANTS[variant])
    objective, before = state.objective, {name: value.clone() for name, value in state.objective.state_dict().items()}
    columns_before = {name: column.clone() for name, column in batch.items()}  # type: ignore[attr-defined]
    found = []
    for _ in range(2):
        objective.zero_grad()
        embeddings = leaves(rows)
        loss = objective(embeddings, batch)
        loss.total.backward()
        inputs = [*embeddings.values(), *objective.parameters()]
        found.append((loss, [torch.zeros(()) if p.grad is None else p.grad.clone() for p in inputs]))
        assert any(bool(gradient.any()) for gradient in found[-1][1])
    (first, first_gradients), (second, second_gradients) = found
    assert torch.equal(first.total, second.total)
    assert all(torch.equal(a, b) for a, b in zip(first_gradients, second_gradients, strict=True))
    for one, other in ((first.metrics, second.metrics), (first.state, second.state)):
        assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())
    after = objective.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(batch[name], column) for name, column in columns_before.items())  # type: ignore[literal-required]
    assert not any(v.requires_grad for v in (*first.metrics.values(), *first.state.values())), "a log must not hold the graph"
    assert all(value.ndim == 0 for value in (first.total, *first.metrics.values()))
    told = {name: value.clone() for name, value in second.metrics.items()}
    objective.update(batch, second)
    assert all(torch.equal(told[name], value) for name, value in second.metrics.items()), "what was found does not change later"


class Recorded(dict[str, Tensor]):
    """A batch that knows what was read of it."""

    def __init__(self, columns: dict[str, Tensor]):
        super().__init__(columns)
        self.read: set[str] = set()

    def copy(self) -> "Recorded":
        """What is read of the copy counts."""
        other = Recorded(self)
        other.read = self.read
        return other

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


@every_variant
def test_it_asks_for_what_it_reads_and_no_more(variant: str) -> None:
    """With its own columns and its teacher's it works, and reads each of them."""
    state, batch, rows = trained(VARIANTS[variant])
    needs = settings_of(VARIANTS[variant]).objective.needs
    wanted = columns(needs, True, True) - {
        "image_features",
        "text_features",
        "strong",
        "whole",
        "codes",
        "masked_text",
        "other_text",
        "other_mask",
        "more_features",
        "label_text",
        "label_mask",
    }
    wanted |= set(batch) - set(batch_of(3))
    if needs.frozen_encoders == "live":
        wanted = wanted - {"frozen_text", "frozen_mask"} | {"frozen_image_features", "frozen_text_features"}
    own = {"image_id", "text_id", "sample_id", "masked_labels", "neighbour_ids", "frozen_image_features", "frozen_text_features"}
    own |= {"more_id", "label_there", "numbers", "text", "text_mask", "draw"}
    assert wanted <= own | {f"teacher_{name}" for name in ("image", "text", "strong", "whole", "states")} | {"hidden"}
    recorded: Any = Recorded({name: batch[name] for name in wanted})  # type: ignore[literal-required]
    embeddings = leaves(rows)
    state.objective.update(recorded, state.objective(embeddings, recorded))
    unmasked = VARIANTS[variant].get("mask_false_negatives") is False
    if variant.startswith("a-clip-ping"):  # which pairs show one image it must always know
        assert recorded.read | {"text_id"} == wanted | {"neighbour_ids"}
    else:
        assert recorded.read == wanted
        assert not (unmasked and needs.ids) or variant.startswith("declip")  # whose captions must not find themselves


def objective_of(name: str, **changes: Any) -> Objective:
    return settings_of(SOFT[name] | changes).objective.build(TASK)


@every_objective
def test_a_batch_without_negatives_is_finite_or_refused(name: str) -> None:
    """One image twelve times."""
    rows = [torch.randn(ROWS, EMBED_DIM, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    strong = torch.randn(ROWS, 2, EMBED_DIM, generator=torch.Generator().manual_seed(9))
    states = torch.randn(ROWS, 5, EMBED_DIM, generator=torch.Generator().manual_seed(10))
    others = {"strong_features": strong, "strong_projection": strong, "text_states": states, "other_projection": rows[3]}
    others |= {"image_states": states[:, :4], "masked_states": states[:, 1:]}
    others |= {f"{kind}_projection": strong for kind in SEVERAL}
    embeddings = leaves(Embeddings(F.normalize(rows[0]), F.normalize(rows[1]), rows[2], rows[3], **others))
    batch: Any = {"image_id": torch.full((ROWS,), 3), "text_id": torch.arange(ROWS)}
    batch |= {"teacher_image": embeddings.image.detach(), "teacher_text": embeddings.text.detach()}
    hidden = torch.arange(4).expand(ROWS, -1) > 1
    batch |= {"teacher_whole": rows[2], "teacher_states": states[:, 1:].detach(), "hidden": hidden}
    batch |= {"teacher_strong": F.normalize(strong, dim=-1)} | hidden_words(0) | several_texts(0) | captions(0)
    batch |= frozen_columns(batch["image_id"], *TASK.frozen_widths, torch.float32) | {"sample_id": torch.arange(ROWS)}
    objective = objective_of(name)
    if name == "onlineclr":
        with pytest.raises(ValueError, match="onlineclr"):
            objective(embeddings, batch)
        return
    loss = objective(embeddings, batch)
    loss.total.backward()
    gradients = [part.grad for part in (*embeddings.values(), *objective.parameters()) if part.grad is not None]
    assert gradients and all(bool(value.isfinite().all()) for value in (loss.total, *gradients))
    before = {key: value.clone() for key, value in objective.state_dict().items() if "log_u" in key or "velocity" in key}
    objective.update(batch, loss)
    assert all(torch.equal(objective.state_dict()[key], value) for key, value in before.items()), "nothing was learned"


class Free(nn.Module):
    """An embedding of its own for every image and every caption."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.image, self.text = nn.Embedding(size, width), nn.Embedding(size, width)
        self.shifts = nn.Buffer(0.1 * torch.randn(size, 2, width))

    def forward(self, batch: Batch) -> Embeddings:
        images, text = self.images(batch), self.text(batch["text_id"])
        other, image = text + 0.1 * text.detach().flip(1), images["image_projection"]
        others = {"other_projection": other, "more_projection": other[:, None].expand(-1, 2, -1)}
        others["label_projection"] = text.detach().flip(0)[:, None]  # another pair's caption
        return Embeddings(F.normalize(image), F.normalize(text), text_projection=text, **images, **others)

    def images(self, batch: Batch) -> dict[str, Tensor]:
        image = self.image(batch["image_id"])
        strong = image[:, None] + self.shifts[batch["image_id"]]
        return {"image_projection": image, "strong_features": strong, "strong_projection": strong}


def _margin(rows: Embeddings) -> float:
    """Mean over pairs of the own cosine less the best other one, both ways."""
    cosines = (rows.image @ rows.text.T).tolist()
    size, total = len(cosines), 0.0
    for i in range(size):
        for other in ([cosines[i][j] for j in range(size) if j != i], [cosines[j][i] for j in range(size) if j != i]):
            total += cosines[i][i] - max(other)
    return total / (2 * size)


# A teacher that keeps up with so short a run; ALBEF's own hardly moves in it.
DESCENT = {name: {"name": name} for name in NAMES} | {
    "albef": {"name": "albef", "teacher": {"name": "ema", "momentum": 0.5, "final_momentum": 0.5}},
    "mcd": {"name": "mcd", "mlm": 0},
    "siglip2": {"name": "siglip2", "captioning": 0, "self_distillation": 0, "masked_prediction": 0},
    "slip": {"name": "slip", "hidden": 64},  # 4,096 take a third of a minute
    "declip": {"name": "declip", "mlm": 0, "hidden": 64},
}


@every_objective
def test_it_descends(name: str) -> None:
    """Twenty-four free pairs in batches of twelve: after some dozen steps pairs find one another, measured by itself."""
    torch.manual_seed(1)
    size, batches = 2 * ROWS, 60
    widths: Any = {"embed_dim": 16, "image_width": 16, "frozen_widths": (16, 16)}
    task = Task(num_images=size, num_texts=size, steps_per_epoch=2, total_steps=batches, seed=0, **widths)
    settings = settings_of(DESCENT[name])
    encoder = Free(size, 16)
    objective, teacher = settings.objective.build(task), settings.objective.build_teacher(encoder, task)
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()])
    state = TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    everything: Any = {"image_id": torch.arange(size), "text_id": torch.arange(size)}
    with torch.no_grad():
        before = encoder(everything)
    losses = []
    for step in range(batches):
        chosen = torch.randperm(size, generator=torch.Generator().manual_seed(step // 2))[step % 2 :: 2]
        batch: Any = {"image_id": chosen, "text_id": chosen, "sample_id": chosen} | frozen_columns(chosen, 16, 16, torch.float32)
        batch |= {"more_id": chosen[:, None].expand(-1, 2), "numbers": 1.0 + chosen[:, None] % 2}
        batch["label_there"] = torch.ones(ROWS, 1, dtype=torch.bool)
        loss, _ = train_step(state, batch, settings, 0.05)
        losses.append(float(loss.total.detach()))
    with torch.no_grad():
        after = encoder(everything)
    assert _margin(before) < -0.4
    assert _margin(after) > 0.05
    if name == "vicreg":
        assert losses[-1] < 0.1 * losses[0]
        distances = [float((rows.image_projection - rows.text_projection).square().mean()) for rows in (before, after)]
        assert distances[1] < 0.1 * distances[0]
        assert float(after.image_projection.std(0).mean()) > 0.5, "nothing has collapsed"


@every_objective
def test_its_name_is_all_that_a_config_must_say(name: str) -> None:
    settings = settings_of({"name": name})
    assert settings.objective.name == name
    assert validate(TrainSettings, settings.model_dump(mode="json"), "again") == settings


@every_objective
def test_the_temperature_is_one_key_for_all(name: str) -> None:
    """What is asked for on the command line is what the first step works at."""
    tree = settings_of({"name": name}).model_dump(mode="json")
    tree["objective"] = {"name": name}
    tree = apply_overrides(tree, parse_overrides(["objective.temperature=0.05"]))
    if name == "vicreg":
        with pytest.raises(UserError, match=r"objective\.temperature"):
            validate(TrainSettings, tree, "laws")
        return
    settings = validate(TrainSettings, tree, "laws")
    state = state_of(settings)
    with torch.no_grad():
        batch = state.teacher(batch_of(0))
    found = state.objective(state.encoder(batch), batch).metrics["temperature"]
    assert float(found) == pytest.approx(0.05, rel=1e-6)
