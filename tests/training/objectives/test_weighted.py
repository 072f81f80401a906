"""CLIP with weights: plain loops, and what a weight of 0 leaves."""

import pytest
import torch
from torch import Tensor

from tests.training.objectives.reference import DISTINCT, REPEATED, assert_near, build, ids, random_pairs, run, slopes
from tests.training.objectives.test_dcl import Rows, dot, rivals
from training.objectives.clip import ClipSettings
from training.objectives.weighted import WeightedSettings


def naive(x: Rows, y: Rows, weights: list[float], *pair_ids: list[int]) -> float:
    total = 0.0
    for i, others in enumerate(rivals(*pair_ids)):
        for one, other in ((x, y), (y, x)):
            logits = torch.tensor([5 * dot(one[i], other[j]) for j in [i, *others]], dtype=torch.float64)
            total += weights[i] * (float(logits.logsumexp(0)) - float(logits[0])) / 2
    return total / sum(weights)


def weighted(x: Tensor, y: Tensor, weights: list[float], *pair_ids: list[int]):  # type: ignore[no-untyped-def]
    batch = {**ids(*pair_ids), "numbers": torch.tensor(weights)[:, None]}
    return run(build(WeightedSettings(temperature=0.2)), x, y, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("pair_ids", [DISTINCT, REPEATED])
@pytest.mark.parametrize("scale", [1.0, 2.0**-10])
def test_value_and_gradient_against_plain_loops(pair_ids: tuple[list[int], list[int]], scale: float) -> None:
    """Only ratios count, of small weights too; the weights are exact in float32, as a batch has them."""
    (x, y), weights = random_pairs(6), [1.0, 0.5, 0.0, 2.0, 0.25, 1.0]
    found = weighted(x, y, [scale * weight for weight in weights], *pair_ids)
    assert found.total == pytest.approx(naive(x.tolist(), y.tolist(), weights, *pair_ids), abs=1e-12)
    dx, dy = slopes(lambda x, y: naive(x, y, weights, *pair_ids), x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)


def test_equal_weights_are_clip_and_none_are_nothing() -> None:
    x, y = random_pairs(6)
    clip = run(build(ClipSettings(temperature=0.2)), x, y, ids(*REPEATED))
    assert weighted(x, y, [3.0] * 6, *REPEATED).total == pytest.approx(clip.total, abs=1e-12)
    nothing = weighted(x, y, [0.0] * 6, *REPEATED)
    assert nothing.total == 0 and not nothing.dx.any()
