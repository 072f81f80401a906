"""DeCLIP against worked numbers and plain loops: neighbours in a queue, SimSiam, and the sum of all."""

import math
from typing import Any

import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from tests.training.objectives.reference import A, M, X, Y, assert_near, build, clip_loss, ids, random_pairs, unit
from training.objectives.base import Embeddings, Loss
from training.objectives.contrast import find_candidates
from training.objectives.declip import Declip, DeclipSettings, neighbours, simsiam
from training.objectives.fifo import push

N = unit([[2, 1, 1], [0, 3, 1], [1, 0, 3]])  # captions in other words, and projections of the second view
QUEUE = torch.tensor([[1, 2, 0], [0, 1, 1], [1, 0, 2], [2, 1, 1]], dtype=torch.float64)
SETTINGS = DeclipSettings(temperature=0.5, mlm=0, hidden=6, queue=4)


def declip(x: Tensor, a: Tensor, y: Tensor, z: Tensor, settings: DeclipSettings = SETTINGS, **batch: Any) -> tuple[Loss, Declip]:
    """With the queue full of QUEUE, and SimSiam's networks that hand everything on."""
    objective = build(settings, embed_dim=x.shape[1], states_width=5, vocabulary_size=9)
    objective.projector = objective.predictor = nn.Identity()
    objective.queue[: len(QUEUE), : QUEUE.shape[1]] = QUEUE
    objective.pushed.fill_(len(QUEUE))
    embeddings = Embeddings(x, y, x, y, a[:, None], 2 * a[:, None], None, 3 * z)
    return objective(embeddings, ids(len(x)) | batch), objective


def test_neighbours_in_the_queue() -> None:
    """Whatever the length of its entries."""
    lengths = torch.tensor([[1.0], [5.0], [0.1], [2.0]], dtype=torch.float64)
    for rows, places in ((Y, [2, 0, 3]), (N, [3, 1, 2])):
        assert_near(neighbours(rows, QUEUE * lengths), unit(QUEUE.tolist())[places])


def test_the_contrast_with_neighbours() -> None:
    found, _ = declip(X, A, Y, N)
    assert_near(found.metrics["neighbours"], 1.021624)


def test_four_contrasts() -> None:
    found, _ = declip(X, A, Y, N)
    assert_near(found.metrics["plain"], 0.856183)
    assert_near(found.metrics["views"], 0.803118)
    for image, text, expected in ((A, Y, 0.942434), (X, N, 0.777888), (A, N, 0.689031)):
        assert clip_loss(image.tolist(), text.tolist(), 2.0, [0, 1, 2], [0, 1, 2]) == pytest.approx(expected, abs=1e-6)


def test_simsiam_of_three_pictures() -> None:
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
    settings = SETTINGS.model_copy(update={"plain": weights[0], "views": weights[1], "image": 0.0})
    found, _ = declip(X, A, Y, N, settings)
    total = float(found.total.detach()) + 0.2 * (-0.825008) + 0.2 * 1.5
    assert total == pytest.approx(expected, abs=2e-6)


def test_against_plain_loops_with_a_picture_in_two_rows() -> None:
    (x, y), (a, z) = random_pairs(6, width=3), random_pairs(6, seed=1, width=3)
    image_id = [0, 0, 2, 3, 4, 3]
    found, _ = declip(x, a, y, z, image_id=torch.tensor(image_id))
    entries = unit(QUEUE.tolist())
    total = 0.0
    for text in (y, z):
        keys = [entries[max(range(4), key=lambda q, row=row: float(row @ entries[q]))] for row in text]
        for view in (x, a):
            for i in range(6):
                others = [i, *(j for j in range(6) if image_id[j] != image_id[i])]
                logits = [2 * float(view[i] @ keys[j]) for j in others]
                total += math.log(sum(map(math.exp, logits))) - logits[0]
    assert_near(found.metrics["neighbours"], total / 24, 1e-10)


def test_an_empty_queue_has_no_neighbours() -> None:
    objective = build(SETTINGS, embed_dim=3)
    found = objective(Embeddings(X, Y, X, Y, A[:, None], A[:, None], None, N), ids(3))
    assert float(found.metrics["neighbours"]) == 0.0 and bool(found.total.isfinite())


def test_the_queue_takes_other_words_first_then_captions_and_wraps_around() -> None:
    found, objective = declip(X, A, Y, N, SETTINGS.model_copy(update={"queue": 7}))
    objective.update(ids(3), found)
    # Places 4, 5, 6 are free; captions begin again at 0, over the oldest.
    assert_near(objective.queue[4:], N)
    assert_near(objective.queue[:3], Y)
    assert_near(objective.queue[3], QUEUE[3])
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
    for name in ("plain", "views"):
        assert_near(found.metrics[name], clip_loss(x.tolist(), y.tolist(), 2.0, list(range(6)), list(range(6))), 1e-10)
