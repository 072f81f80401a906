"""NegCLIP: plain loops, rows that lack a negative, and who is pushed by whom."""

import math

import pytest
import torch
from torch import Tensor

from tests.training.objectives.reference import (
    DISTINCT,
    REPEATED,
    Rows,
    assert_near,
    build,
    clip_loss,
    dot,
    ids,
    random_pairs,
    rivals,
    run,
)
from training.objectives.base import Embeddings, Loss
from training.objectives.clip import ClipSettings
from training.objectives.negclip import NegClipSettings

THERE = [[True, False], [True, True], [False, False], [True, False], [False, True], [True, True]]


def naive(x: Rows, y: Rows, hard: list[Rows], there: list[list[bool]], *pair_ids: list[int]) -> float:
    pushes = [row[k] for row, has in zip(hard, there, strict=True) for k in range(2) if has[k]]
    total = 0.0
    for i, others in enumerate(rivals(*pair_ids)):
        texts = [*(y[j] for j in [i, *others]), *pushes]
        images = [x[j] for j in [i, *others]]
        for own, keys in ((x[i], texts), (y[i], images)):
            total += math.log(sum(math.exp(5 * dot(own, key)) for key in keys)) - 5 * dot(x[i], y[i])
    return total / (2 * len(x))


def loss_of(x: Tensor, y: Tensor, hard: Tensor, there: Tensor, *pair_ids: list[int]) -> Loss:
    objective = build(NegClipSettings(temperature=0.2, negatives=("a", "b")))
    return objective(Embeddings(x, y, x, y, label_projection=hard), {**ids(*pair_ids), "label_there": there})


@pytest.mark.parametrize("pair_ids", [DISTINCT, REPEATED])
def test_value_against_plain_loops(pair_ids: tuple[list[int], list[int]]) -> None:
    """Negatives of any length, as the text head gives them; some rows lack some, one lacks both."""
    (x, y), (one, other) = random_pairs(6), random_pairs(6, seed=1)
    hard = torch.stack([one, other], dim=1)
    found = loss_of(x, y, 3 * hard, torch.tensor(THERE), *pair_ids)
    assert_near(found.total, naive(x.tolist(), y.tolist(), hard.tolist(), THERE, *pair_ids), 1e-12)
    assert 0 < float(found.metrics["hard"]) < 1


def test_without_any_negative_it_is_clip() -> None:
    (x, y), (one, other) = random_pairs(6), random_pairs(6, seed=1)
    hard = torch.stack([one, other], dim=1).requires_grad_()
    found = loss_of(x, y, hard, torch.zeros(6, 2, dtype=torch.bool), *REPEATED)
    found.total.backward()
    assert_near(found.total, clip_loss(x.tolist(), y.tolist(), 5.0, *REPEATED), 1e-12)
    assert hard.grad is not None and not hard.grad.any() and float(found.metrics["hard"]) == 0


def test_every_image_is_pushed_from_every_negative_and_no_caption_is() -> None:
    (x, y), (one, other) = random_pairs(6), random_pairs(6, seed=1)
    rows = [part.clone().requires_grad_() for part in (x, y, torch.stack([one, other], dim=1))]
    loss_of(*rows, torch.tensor(THERE), *DISTINCT).total.backward()
    clip = run(build(ClipSettings(temperature=0.2)), x, y, ids(*DISTINCT))
    hard = rows[2].grad
    assert hard is not None and (hard.abs().sum(-1) > 0).tolist() == THERE
    assert rows[0].grad is not None and float((rows[0].grad - clip.dx).abs().min(0).values.max()) > 1e-4
    moved = torch.tensor([[dot(h, i) for i in x.tolist()] for h in hard[0, :1].tolist()])
    assert bool((moved != 0).all())
