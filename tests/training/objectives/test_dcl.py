"""DCL: plain loops, the weights of DCLW, and what decoupling is for."""

import math

import pytest
import torch

from tests.training.objectives.reference import (
    DISTINCT,
    REPEATED,
    Rows,
    X,
    Y,
    assert_near,
    build,
    dot,
    ids,
    random_pairs,
    rivals,
    run,
    slopes,
)
from training.objectives.clip import ClipSettings
from training.objectives.dcl import DclSettings


def naive(x: Rows, y: Rows, t: float, sigma: float | None, weights: list[float], *pair_ids: list[int]) -> float:
    """With `weights` if there is a sigma: they have no gradient."""
    losses = []
    for i, others in enumerate(rivals(*pair_ids)):
        if others:
            weight = 1.0 if sigma is None else weights[i]
            for one, other in ((x, y), (y, x)):
                losses.append(math.log(sum(math.exp(dot(one[i], other[j]) / t) for j in others)) - weight * dot(x[i], y[i]) / t)
    return sum(losses) / len(losses)


def weights_of(x: Rows, y: Rows, sigma: float) -> list[float]:
    near = [math.exp(dot(*pair) / sigma) for pair in zip(x, y, strict=True)]
    return [2 - value / (sum(near) / len(near)) for value in near]


@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize(
    "pair_ids", [DISTINCT, REPEATED, ([0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]), ([0, 0, 0, 0, 1, 2], [0] * 4 + [0, 1])]
)
def test_value_and_gradient_against_plain_loops(sigma: float | None, pair_ids: tuple[list[int], list[int]]) -> None:
    """A batch of one image has no negatives and no loss; in another, four rows and a fifth have one."""
    x, y = random_pairs(6)
    found = run(build(DclSettings(temperature=0.2, sigma=sigma)), x, y, ids(*pair_ids))
    if not any(rivals(*pair_ids)):
        assert found.total == 0 and not found.dx.any() and not found.dy.any()
        return
    weights = weights_of(x.tolist(), y.tolist(), 0.5)
    assert found.total == pytest.approx(naive(x.tolist(), y.tolist(), 0.2, sigma, weights, *pair_ids), abs=1e-12)
    dx, dy = slopes(lambda x, y: naive(x, y, 0.2, sigma, weights, *pair_ids), x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)


def test_a_pair_that_is_easy_pushes_its_negatives_as_hard_as_any() -> None:
    """CLIP's gradient on the negatives of a solved pair vanishes; DCL's does not."""
    cosines = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]], dtype=torch.float64)
    x, y = cosines, torch.eye(3, dtype=torch.float64)
    coupled, decoupled = (run(build(s), x, y).dx for s in (ClipSettings(temperature=0.05), DclSettings(temperature=0.05)))
    off = ~torch.eye(3, dtype=torch.bool)
    assert float(coupled[off].max()) < 1e-3 * float(decoupled[off].max())
    # Rows and columns each sum to one over negatives, and the own pair is pulled by as much.
    assert_near(decoupled[off].sum(), 3 * 2 / (2 * 3 * 0.05), 1e-9)
    assert_near(decoupled.diagonal(), [-2 / (2 * 3 * 0.05)] * 3, 1e-9)


def test_pairs_that_are_far_apart_weigh_more() -> None:
    objective = build(DclSettings(temperature=0.5, sigma=0.5))
    assert not objective.scale.log.requires_grad
    weights = torch.tensor(weights_of(X.tolist(), Y.tolist(), 0.5))
    own = (X * Y).sum(1)
    assert int(own.argmin()) == int(weights.argmax()) and float(weights.mean()) == pytest.approx(1)
