"""CyCLIP: worked reference values, plain loops, and the geometries that its two terms ask for."""

import math
from typing import Any

import pytest
import torch

from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    REPEATED,
    Outcome,
    Rows,
    X,
    Y,
    assert_near,
    build,
    clip_loss,
    dot,
    ids,
    random_pairs,
    rotation,
    run,
    slope,
    slopes,
    step,
)
from training.objectives.clip import ClipSettings
from training.objectives.cyclip import CyClip, CyClipSettings, inconsistencies


def objective(temperature: float = 0.5, **keys: Any) -> CyClip:
    return build(CyClipSettings(temperature=temperature, **keys))


def terms(found: Outcome) -> list[float]:
    return [float(found.loss.metrics[name]) for name in ("clip", "in_modal", "cross_modal")]


def naive(x: Rows, y: Rows, scale: float, in_modal: float, cross_modal: float, *pair_ids: list[int]) -> float:
    total, size = clip_loss(x, y, scale, *pair_ids), len(x)
    for j in range(size):
        for k in range(size):
            total += in_modal / size * (dot(x[j], x[k]) - dot(y[j], y[k])) ** 2
            total += cross_modal / size * (dot(x[j], y[k]) - dot(x[k], y[j])) ** 2
    return total


def test_reference_losses() -> None:
    found = run(objective(), X, Y)
    assert terms(found) == pytest.approx([0.856183, 0.823234, 0.259604], abs=PRINTED)
    assert found.total == pytest.approx(1.126893, abs=PRINTED)


@pytest.mark.parametrize("weights", [(0.25, 0.25), (0.7, 0.0), (0.0, 0.7), (1.5, 0.4)])
@pytest.mark.parametrize("pair_ids", [DISTINCT, REPEATED])
def test_value_and_gradient_against_plain_loops(weights: tuple[float, float], pair_ids: tuple[list[int], list[int]]) -> None:
    """Consistency is asked of all pairs, of those that are no negatives of one another too."""
    (x, y), cyclip = random_pairs(6), objective(0.2, in_modal=weights[0], cross_modal=weights[1])
    found = run(cyclip, x, y, ids(*pair_ids))
    assert found.total == pytest.approx(naive(x.tolist(), y.tolist(), 5.0, *weights, *pair_ids), abs=1e-12)
    dx, dy = slopes(lambda x, y: naive(x, y, 5.0, *weights, *pair_ids), x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)
    by_log = slope(lambda log: naive(x.tolist(), y.tolist(), math.exp(log), *weights, *pair_ids), math.log(5))
    assert float(cyclip.scale.log.grad) == pytest.approx(by_log, abs=1e-8)


def test_with_both_weights_zero_it_is_clip() -> None:
    x, y = random_pairs(6)
    ours = run(objective(0.2, in_modal=0, cross_modal=0), x, y, ids(*REPEATED))
    theirs = run(build(ClipSettings(temperature=0.2)), x, y, ids(*REPEATED))
    assert ours.total == pytest.approx(theirs.total, abs=1e-12)
    assert_near(ours.dx, theirs.dx, 1e-12)


def test_texts_that_are_rotated_images_agree_within_but_not_across_modalities() -> None:
    x, _ = random_pairs(6)
    _, in_modal, cross_modal = terms(run(objective(), x, x @ rotation()))
    assert in_modal == pytest.approx(0, abs=1e-12) and cross_modal > 0.1


def test_a_symmetric_matrix_of_cosines_agrees_across_but_not_within_modalities() -> None:
    x, _ = random_pairs(6)
    stretch = torch.diag(torch.tensor([2.0, 1, 1, 0.5, 0.5], dtype=torch.float64))
    _, in_modal, cross_modal = terms(run(objective(), x, x @ stretch))
    assert cross_modal == pytest.approx(0, abs=1e-12) and in_modal > 0.1


def test_equal_modalities_agree_in_both() -> None:
    x, _ = random_pairs(6)
    assert terms(run(objective(), x, x))[1:] == pytest.approx([0, 0], abs=1e-12)


def test_consistency_does_not_know_the_temperature() -> None:
    assert terms(run(objective(0.5), X, Y))[1:] == pytest.approx(terms(run(objective(0.05), X, Y))[1:], abs=1e-12)


def test_consistency_grows_with_the_batch() -> None:
    """A sum over pairs divided by rows: twice the same batch counts twice."""
    x, y = random_pairs(5)
    once, twice = terms(run(objective(), x, y)), terms(run(objective(), x.repeat(2, 1), y.repeat(2, 1)))
    assert twice[1:] == pytest.approx([2 * once[1], 2 * once[2]], abs=1e-12)


def test_pairs_may_come_in_any_order() -> None:
    (x, y), order = random_pairs(6), [3, 1, 5, 0, 2, 4]
    assert terms(run(objective(), x[order], y[order])) == pytest.approx(terms(run(objective(), x, y)), abs=1e-12)


def test_the_temperature_is_clamped_as_clips() -> None:
    cyclip = objective(max_scale=20.0)
    cyclip.scale.log.data.fill_(5.0)
    step(cyclip, X, Y)
    assert float(cyclip.scale().detach()) == pytest.approx(20.0)


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("in_modal", -0.1), ("cross_modal", -0.1)])
def test_a_mistake_in_the_settings_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        CyClipSettings(**{key: value})


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_multiplied_out_sums_do_not_suffer_from_what_cancels(offset: float) -> None:
    """Where all rows point in nearly one direction, and whatever autocast surrounds."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(200, 32, generator=random) + offset) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within, across = inconsistencies(x[:50], y[:50], x, y)
    x, y = x.double(), y.double()
    torch.testing.assert_close(within.double(), (x @ x.T - y @ y.T).square().sum(1)[:50], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(across.double(), (x @ y.T - y @ x.T).square().sum(1)[:50], rtol=1e-6, atol=1e-9)
