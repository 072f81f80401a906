"""DeCLIP against worked numbers and plain loops: neighbours in a queue, SimSiam, and the sum of all."""

import math
from collections import deque
from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from tests.training.objectives.reference import (
    A,
    M,
    Rows,
    X,
    Y,
    assert_near,
    batches_of_a_run,
    build,
    clip_loss,
    dot,
    ids,
    random_pairs,
    unit,
)
from training.objectives.base import Embeddings, Loss
from training.objectives.declip import Declip, DeclipSettings, simsiam
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.neighbour_contrast import neighbours
from training.objectives.ops.queue import nearest, push

N = unit([[2, 1, 1], [0, 3, 1], [1, 0, 3]])  # captions in other words, and projections of the second view
QUEUE = torch.tensor([[1, 2, 0], [0, 1, 1], [1, 0, 2], [2, 1, 1]], dtype=torch.float64)
SETTINGS = DeclipSettings(temperature=0.5, mlm=0, hidden=6, queue=4)


def declip(x: Tensor, a: Tensor, y: Tensor, z: Tensor, settings: DeclipSettings = SETTINGS, **batch: Any) -> tuple[Loss, Declip]:
    """With the queue full of QUEUE, and SimSiam's networks that hand everything on."""
    objective = build(settings, embed_dim=x.shape[1], states_width=5, vocabulary_size=9)
    objective.projector = objective.predictor = nn.Identity()
    objective.queue[: len(QUEUE), : QUEUE.shape[1]] = QUEUE
    objective.ids[: len(QUEUE)] = torch.arange(len(QUEUE))[:, None] + 100
    objective.pushed.fill_(len(QUEUE))
    embeddings = Embeddings(x, y, x, y, strong_projection=2 * a[:, None], other_projection=3 * z)
    return objective(embeddings, ids(len(x)) | batch), objective


def test_neighbours_in_the_queue() -> None:
    """Whatever the length of its entries."""
    lengths = torch.tensor([[1.0], [5.0], [0.1], [2.0]], dtype=torch.float64)
    own, others = torch.zeros(3, 2, dtype=torch.int64), torch.ones(4, 2, dtype=torch.int64)
    for rows, places in ((Y, [2, 0, 3]), (N, [3, 1, 2])):
        assert neighbours(rows, QUEUE * lengths, own, others).tolist() == places


def test_rounding_does_not_choose_a_neighbour() -> None:
    """Captions that augmentation has made equal: whichever row rounding makes larger, it is the first caption's."""
    entries, own = unit([[1, 2, 0], [1, 2, 0], [1, 2, 0], [0, 0, 1]]).float(), torch.zeros(1, 2, dtype=torch.int64)
    their_ids = torch.tensor([[6, 9], [7, 5], [5, 8], [4, 4]])
    for larger in range(3):
        changed = entries.clone()
        changed[larger] *= 1 + 1e-6
        assert nearest(entries[:1], changed, own, their_ids, their_ids.flip(1)).tolist() == [1]
        assert nearest(entries[:1], changed, own, their_ids).tolist() == [2]


def test_a_neighbour_is_of_another_image_and_another_caption() -> None:
    """Y's are places 2, 0 and 3, then 3, 1 and 2: an entry of the same image or the same caption is passed over."""
    best = [(QUEUE @ row / QUEUE.norm(dim=1)).argsort(descending=True).tolist() for row in Y]
    own, entries = torch.tensor([[7, 1], [2, 8], [3, 3]]), torch.full((4, 2), 9)
    entries[best[0][0]] = torch.tensor([7, 9])
    found = neighbours(Y, QUEUE, own, entries).tolist()
    assert found == [best[0][1], *(order[0] for order in best[1:])]
    entries[best[1][0], 1] = 8
    assert neighbours(Y, QUEUE, own, entries).tolist()[1] == best[1][1]
    assert neighbours(Y, QUEUE, own, torch.tensor([[7, 8]] * 4)).tolist()[:2] == [-1, -1]


def test_the_contrast_with_neighbours() -> None:
    found, _ = declip(X, A, Y, N)
    assert_near(found.metrics["neighbours"], 1.021624)


def test_four_contrasts() -> None:
    found, _ = declip(X, A, Y, N)
    assert_near(found.metrics["contrastive"], 0.856183)
    assert_near(found.metrics["views"], 0.803118)
    for image, text, expected in ((A, Y, 0.942434), (X, N, 0.777888), (A, N, 0.689031)):
        assert clip_loss(image.tolist(), text.tolist(), 2.0, [0, 1, 2], [0, 1, 2]) == pytest.approx(expected, abs=1e-6)


def test_simsiam_of_three_images() -> None:
    assert_near(simsiam(X, A, M, N), -0.825008)


def test_projections_get_no_gradient() -> None:
    p, other_p, z, other_z = (part.clone().requires_grad_() for part in (X, A, M, N))
    simsiam(p, other_p, z, other_z).backward()
    assert p.grad is not None and other_p.grad is not None and z.grad is None and other_z.grad is None


def test_simsiam_is_lightlys_with_its_heads_and_gradients() -> None:
    """The whole term, from projections of two views: heads with BatchNorm, the stopped gradient, both directions."""
    objective = build(SETTINGS, embed_dim=5)
    heads = SimSiamProjectionHead(5, 6, 6).double(), SimSiamPredictionHead(6, 3, 6).double()
    pairs = [
        (own, theirs)
        for ours, head in zip((objective.projector, objective.predictor), heads, strict=True)
        for own, theirs in zip(ours.parameters(), head.parameters(), strict=True)
    ]
    assert len(pairs) == 12
    for own, theirs in pairs:
        own.data.copy_(torch.randn(own.shape, generator=torch.Generator().manual_seed(own.numel())))
        theirs.data.copy_(own)
    views = [3 * part for part in random_pairs(8)]

    def term(projector: nn.Module, predictor: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        z = [projector(view) for view in views]
        return [predictor(rows) for rows in z], z

    p, z = term(objective.projector, objective.predictor)
    (ours := simsiam(*p, *z)).backward()
    p, z = term(*heads)
    distance = NegativeCosineSimilarity()
    (theirs := (distance(p[0], z[1].detach()) + distance(p[1], z[0].detach())) / 2).backward()
    assert_near(ours, theirs, 1e-10)
    for own, other in pairs:
        assert own.grad is not None and other.grad is not None and bool(other.grad.any())
        assert_near(own.grad, other.grad, 1e-10)


@pytest.mark.parametrize(("weights", "expected"), [((0.1, 0.3), 0.665877), ((0.4, 0.2), 0.842420)])
def test_the_sum_of_all_by_the_code_and_by_the_paper(weights: tuple[float, float], expected: float) -> None:
    """With the worked values of SimSiam, -0.825008, and of hidden words, 1.5, which are tested by themselves."""
    settings = SETTINGS.model_copy(update={"contrastive": weights[0], "views": weights[1], "image": 0.0})
    found, _ = declip(X, A, Y, N, settings)
    total = float(found.total.detach()) + 0.2 * (-0.825008) + 0.2 * 1.5
    assert total == pytest.approx(expected, abs=2e-6)


Entry = tuple[list[float], int, int]  # a caption's unit row, its image and its caption


def nearest_entry(row: list[float], entries: list[Entry]) -> Entry | None:
    return max(entries, key=lambda entry: dot(row, entry[0]), default=None)


def naive_term(
    views: list[Rows], texts: list[Rows], pair_ids: tuple[list[int], list[int]], queue: list[Entry], mask: bool
) -> float:
    """L_NNS at a scale of 2 by its text: neighbours of another image and caption, and what is alike is no negative."""
    pairs, total = list(zip(*pair_ids, strict=True)), 0.0
    for text in texts:
        found = []
        for (image, caption), row in zip(pairs, text, strict=True):
            allowed = [e for e in queue if e[1] != image and e[2] != caption]
            if (entry := nearest_entry(row, allowed)) is not None:  # of a caption that several images share, the first image
                entry = (entry[0], min(e[1] for e in allowed if e[2] == entry[2]), entry[2])
            found.append(entry)
        there = [i for i, entry in enumerate(found) if entry is not None]
        for view in views:
            for i in there:
                own = found[i]
                assert own is not None
                keys = [own[0]]
                for j in there:
                    other = found[j]
                    assert other is not None
                    # The row's pair or its target, against the pair of the other row or its neighbour.
                    alike = any(a == b for a, b in zip(pairs[i], pairs[j], strict=True))
                    alike |= any(a == b for a, b in zip(pairs[i], other[1:], strict=True))
                    alike |= any(a == b for a, b in zip(own[1:], other[1:], strict=True))
                    if j != i and not (mask and alike):
                        keys.append(other[0])
                logits = [2 * dot(view[i], key) for key in keys]
                total += (math.log(sum(map(math.exp, logits))) - logits[0]) / len(there) / 4
    return total


@pytest.mark.parametrize(("size", "mask"), [(500, True), (12, True), (500, False), (12, False)])
def test_a_run_whose_queue_outlasts_the_data_never_finds_a_caption_itself(size: int, mask: bool) -> None:
    """Plain loops over eight epochs of eight samples, whose captions hardly move: without ids each would find itself.

    One batch shows a single image, after which a queue of one step has no neighbour for the half of the next that does.
    """
    settings = SETTINGS.model_copy(update={"queue": size, "mask_false_negatives": mask})
    objective = build(settings, embed_dim=5)
    objective.projector = objective.predictor = nn.Identity()
    captions, _ = random_pairs(8, seed=50)
    queue: deque[Entry] = deque(maxlen=size)
    lonely = itself = looked_up = 0
    for at, (pair_ids, (x, noise)) in enumerate(batches_of_a_run(10)):
        if at == 3:
            pair_ids[0][:3] = [3, 3, 3]
        a, other_noise = random_pairs(6, seed=100 + at)
        y, z = (nn.functional.normalize(captions[pair_ids[1]] + 0.05 * part) for part in (noise, other_noise))
        batch = ids(*pair_ids)
        found = objective(Embeddings(x, y, x, y, strong_projection=a[:, None], other_projection=z), batch)
        entries = list(queue)
        expected = naive_term([x.tolist(), a.tolist()], [y.tolist(), z.tolist()], pair_ids, entries, mask)
        assert_near(found.metrics["neighbours"], expected, 1e-10)
        filled = min(int(objective.pushed), size)
        places = neighbours(y, objective.queue[:filled], torch.tensor(pair_ids).T, objective.ids[:filled]).tolist()
        for place, row, image, caption in zip(places, y.tolist(), *pair_ids, strict=True):
            lonely += bool(queue) and place < 0
            nearest = nearest_entry(row, entries)
            if nearest is not None and any(caption == entry[2] for entry in entries):
                looked_up, itself = looked_up + 1, itself + (nearest[2] == caption)
            if place >= 0:
                assert image != int(objective.ids[place, 0]) and caption != int(objective.ids[place, 1])
        assert bool(found.total.isfinite())
        objective.update(batch, found)
        for text in (z, y):
            queue.extend(zip(text.tolist(), *pair_ids, strict=True))
    assert itself == looked_up > 20
    assert (lonely > 0) is (size == 12)


def test_without_a_neighbour_there_is_no_term_and_no_gradient() -> None:
    """An empty queue, and one that holds nothing but the batch's own captions."""
    objective = build(SETTINGS, embed_dim=3)
    for _ in range(2):
        x = X.clone().requires_grad_()
        batch = ids([4, 4, 4])
        found = objective(Embeddings(x, Y, x, Y, strong_projection=A[:, None], other_projection=N), batch)
        assert float(found.metrics["neighbours"]) == 0.0
        alone = build(SETTINGS.model_copy(update={"neighbours": 0.0}), embed_dim=3)
        alone.load_state_dict(objective.state_dict())
        other = X.clone().requires_grad_()
        alone(Embeddings(other, Y, other, Y, strong_projection=A[:, None], other_projection=N), batch).total.backward()
        found.total.backward()
        assert x.grad is not None and bool(x.grad.any()) and torch.equal(x.grad, other.grad)
        objective.update(batch, found)


def test_the_queue_takes_other_words_first_then_captions_and_wraps_around() -> None:
    found, objective = declip(X, A, Y, N, SETTINGS.model_copy(update={"queue": 7}))
    objective.update(ids(3), found)
    # Places 4, 5, 6 are free; captions begin again at 0, over the oldest.
    assert_near(objective.queue[4:], N)
    assert_near(objective.queue[:3], Y)
    assert_near(objective.queue[3], QUEUE[3])
    assert objective.ids[:, 0].tolist() == objective.ids[:, 1].tolist() == [0, 1, 2, 103, 0, 1, 2]
    assert int(objective.pushed) == 10


def test_a_batch_longer_than_a_queue_leaves_its_end() -> None:
    pushed, queue = torch.tensor(4), torch.zeros(5)
    kept, places = push(pushed, 8, 5)
    queue[places] = torch.arange(8.0)[kept]
    # The eight would go to places 4, 0, 1, 2, 3, 4, 0, 1, of which the last five stay.
    assert queue.tolist() == [6.0, 7.0, 3.0, 4.0, 5.0] and int(pushed) == 12


def test_the_heads_are_those_of_the_public_code() -> None:
    objective = DeclipSettings(queue=8).build(build_task())
    names = [type(layer).__name__ for layer in objective.projector]
    assert names == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    assert [type(layer).__name__ for layer in objective.predictor] == ["Linear", "BatchNorm", "ReLU", "Linear"]
    assert [layer.out_features for layer in objective.predictor if isinstance(layer, nn.Linear)] == [512, 1024]


def build_task() -> Any:
    from tests.training.objectives.reference import task

    return task(states_width=5, vocabulary_size=9)


def test_views_of_one_direction_show_in_the_log() -> None:
    x, y = random_pairs(6, width=3)
    collapsed, _ = declip(x[:1].expand(6, -1), x, y, y)
    spread, _ = declip(x, x, y, y)
    assert float(collapsed.metrics["spread"]) < 1e-6 < 0.1 < float(spread.metrics["spread"])


def test_same_views_and_words_are_clip() -> None:
    x, y = random_pairs(6, width=3)
    found, _ = declip(x, x, y, y)
    candidates = find_candidates(Embeddings(x, y, x, y), ids(6), ids=False)
    assert candidates.ids is None
    for name in ("contrastive", "views"):
        assert_near(found.metrics[name], clip_loss(x.tolist(), y.tolist(), 2.0, list(range(6)), list(range(6))), 1e-10)
