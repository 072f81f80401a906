"""SLIP against worked numbers, plain loops, and torch's own cross entropy and BatchNorm."""

import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NTXentLoss
from torch import Tensor, nn

from tests.training.objectives.reference import PRINTED, A, X, Y, assert_near, build, clip_loss, ids, random_pairs, rotation, task
from training.objectives.base import Embeddings
from training.objectives.ops.heads import BatchNorm, mlp
from training.objectives.slip import Slip, SlipSettings, nt_xent

SETTINGS = SlipSettings(temperature=0.5, hidden=7, width=5)


def of(p: Tensor, q: Tensor, temperature: float, image_id: Tensor | None = None) -> float:
    """The mean over 2B vectors."""
    return float(nt_xent(torch.stack([p, q], dim=1), 1 / temperature, image_id).mean())


def naive(p: Tensor, q: Tensor, temperature: float, image_id: list[int]) -> float:
    """Vector by vector: its partner against all that show another image."""
    vectors, shows, rows = [*p, *q], image_id * 2, len(p)
    total = 0.0
    for k, vector in enumerate(vectors):
        partner = (k + rows) % (2 * rows)
        others = [j for j in range(2 * rows) if j == partner or shows[j] != shows[k]]
        weights = {j: math.exp(float(vector @ vectors[j].detach()) / temperature) for j in others}
        total -= math.log(weights[partner] / sum(weights.values()))
    return total / (2 * rows)


def slip(x: Tensor, y: Tensor, views: Tensor, settings: SlipSettings = SETTINGS, **batch: list[int]) -> tuple[Slip, Tensor]:
    """An objective whose head hands views [b, 2, D] on as they are, and its loss."""
    objective = build(settings)
    objective.head = nn.Identity()
    columns = ids(batch["image_id"], batch["text_id"]) if batch else ids(len(x))
    return objective, objective(Embeddings(x, y, x, y, strong_features=views), columns).total


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 1.047169), (0.1, 0.377774)])
def test_nt_xent_of_three_images(temperature: float, expected: float) -> None:
    assert of(X, A, temperature) == pytest.approx(expected, abs=PRINTED)
    assert of(A, X, temperature) == pytest.approx(expected, abs=PRINTED), "which view is the first does not matter"


def test_the_sum_of_both_losses() -> None:
    _, total = slip(X, Y, torch.stack([X, A], dim=1))
    assert_near(total, 1.233958)


def test_without_weight_it_is_clip() -> None:
    _, total = slip(X, Y, torch.stack([X, A], dim=1), SETTINGS.model_copy(update={"weight": 0.0}))
    assert_near(total, clip_loss(X.tolist(), Y.tolist(), 2.0, [0, 1, 2], [0, 1, 2]))


def test_equal_vectors_are_told_apart_by_chance() -> None:
    same = torch.ones(3, 4, dtype=torch.float64) / 2
    assert of(same, same, 0.1) == pytest.approx(math.log(5))


@pytest.mark.parametrize("image_id", [[0, 1, 2, 3, 4, 5], [0, 0, 2, 3, 4, 3]])
def test_against_plain_loops(image_id: list[int]) -> None:
    """With views of one image in several rows, which are no negatives of one another."""
    p, q = random_pairs(6)
    assert of(p, q, 0.3, torch.tensor(image_id)) == pytest.approx(naive(p, q, 0.3, image_id), abs=1e-10)
    if image_id[1]:
        assert of(p, q, 0.3) == pytest.approx(naive(p, q, 0.3, image_id), abs=1e-10)


def test_against_cross_entropy_of_torch() -> None:
    """And its gradient."""
    p, q = (part.requires_grad_() for part in random_pairs(6))
    z = torch.cat([p, q])
    logits = (z @ z.T / 0.2).masked_fill(torch.eye(12, dtype=torch.bool), -math.inf)
    expected = F.cross_entropy(logits, torch.arange(12).roll(6))
    found = nt_xent(torch.stack([p, q], dim=1), 5.0).mean()
    assert_near(found, float(expected.detach()), 1e-12)
    for ours, theirs in zip(torch.autograd.grad(found, (p, q)), torch.autograd.grad(expected, (p, q)), strict=True):
        assert_near(ours, theirs, 1e-12)


def test_against_a_public_package() -> None:
    p, q = random_pairs(8)
    expected = NTXentLoss(temperature=0.1)(torch.cat([p, q]), torch.arange(8).repeat(2))
    assert of(p, q, 0.1) == pytest.approx(float(expected), abs=1e-6)


def test_permuted_pairs_and_rotated_views_are_the_same() -> None:
    p, q = random_pairs(6)
    order, turn = torch.tensor([3, 1, 5, 0, 4, 2]), rotation()
    assert of(p[order] @ turn, q[order] @ turn, 0.2) == pytest.approx(of(p, q, 0.2), abs=1e-10)


def test_the_same_image_twice_is_no_negative_of_itself() -> None:
    """Unless it was asked for."""
    p, q = random_pairs(6)
    x, y = random_pairs(6, seed=1)
    same = {"image_id": [0, 0, 2, 3, 4, 5], "text_id": [0, 1, 2, 3, 4, 5]}

    def views_loss(**changes: bool) -> Tensor:
        with_views, without = (
            slip(x, y, torch.stack([p, q], dim=1), SETTINGS.model_copy(update={"weight": weight, **changes}), **same)[1]
            for weight in (1.0, 0.0)
        )
        return with_views - without

    assert_near(views_loss(), naive(p, q, 0.1, same["image_id"]))
    assert_near(views_loss(mask_false_negatives=False), naive(p, q, 0.1, list(range(6))))


def test_the_head_is_the_one_of_the_paper() -> None:
    """Linear, BatchNorm and ReLU twice, and a linear map; each view is normalised by itself."""
    head = SlipSettings().build(task(image_width=20)).head
    assert [type(layer).__name__ for layer in head] == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear"]
    assert [(head[i].in_features, head[i].out_features) for i in (0, 3, 6)] == [(20, 4096), (4096, 4096), (4096, 256)]
    objective = build(SETTINGS)
    x, y = random_pairs(9)
    views = torch.randn(9, 2, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    shown = [F.normalize(objective.head(views[:, view])) for view in range(2)]
    found = objective(Embeddings(x, y, x, y, strong_features=views), ids(9)).metrics["views"]
    assert_near(found, naive(shown[0], shown[1], 0.1, list(range(9))))


def test_batch_norm_is_that_of_torch() -> None:
    rows = torch.randn(9, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 + 5
    ours, theirs = BatchNorm(6).double(), nn.BatchNorm1d(6).double()
    for module in (ours, theirs):
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(4))
        nn.init.normal_(module.bias, generator=torch.Generator().manual_seed(5))
    inputs = [rows.clone().requires_grad_() for _ in range(2)]
    outputs = [module(values) for module, values in zip((ours, theirs), inputs, strict=True)]
    assert_near(outputs[0], outputs[1].detach(), 1e-12)
    for output in outputs:
        output.sin().sum().backward()
    assert_near(inputs[0].grad, inputs[1].grad, 1e-12)
    assert_near(ours.weight.grad, theirs.weight.grad, 1e-12)
    assert not dict(ours.named_buffers()), "nothing that a forward would have to remember"


def test_half_precision_is_normalised_in_full() -> None:
    rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(6)).bfloat16() + 100
    assert mlp(4, 3, 2)[0].weight.dtype == torch.float32
    assert BatchNorm(4)(rows).dtype == torch.float32
    assert float(BatchNorm(4)(rows).mean().abs()) < 1e-4
