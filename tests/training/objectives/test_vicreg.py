"""VICReg: worked reference values, plain loops, and what its three terms see and do not see."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.objectives.reference import PRINTED, Outcome, Rows, assert_near, build, run, slopes
from training.objectives.base import Embeddings
from training.objectives.vicreg import VicReg, VicRegSettings

U = torch.tensor([[1.0, 0, 2], [0, 1, 1], [2, 2, 0], [1, 3, 1]], dtype=torch.float64)
V = torch.tensor([[1.0, 1, 2], [0, 2, 0], [1, 2, 1], [2, 3, 1]], dtype=torch.float64)


def objective(**keys: Any) -> VicReg:
    return build(VicRegSettings(**keys))


def terms(u: Tensor, v: Tensor) -> list[float]:
    return terms_of(run(objective(), u, v))


def terms_of(found: Outcome) -> list[float]:
    return [float(found.loss.metrics[name]) for name in ("invariance", "variance", "covariance")]


def projections(rows: int = 6, width: int = 4, spread: float = 0.8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(2)
    u, v = (spread * torch.randn(2, rows, width, generator=random, dtype=torch.float64)).unbind()
    return u, 0.5 * u + v


def covariance(rows: Rows, k: int, l: int) -> float:  # noqa: E741
    means = [sum(row[d] for row in rows) / len(rows) for d in (k, l)]
    return sum((row[k] - means[0]) * (row[l] - means[1]) for row in rows) / (len(rows) - 1)


def naive(u: Rows, v: Rows, weights: tuple[float, float, float]) -> float:
    size, width = len(u), len(u[0])
    total = weights[0] * sum((u[i][k] - v[i][k]) ** 2 for i in range(size) for k in range(width)) / (size * width)
    for rows in (u, v):
        for k in range(width):
            total += weights[1] / 2 * max(0.0, 1 - math.sqrt(covariance(rows, k, k) + 1e-4)) / width
            total += weights[2] * sum(covariance(rows, k, other) ** 2 for other in range(width) if other != k) / width
    return total


@pytest.mark.parametrize(
    ("factor", "expected", "total"),
    [(1.0, [0.5, 0.152868, 0.666667], 16.988379), (0.3, [0.045, 0.731135, 0.005400], 19.408765)],
)
def test_reference_losses(factor: float, expected: list[float], total: float) -> None:
    found = run(objective(), factor * U, factor * V)
    assert terms_of(found) == pytest.approx(expected, abs=PRINTED)
    assert found.total == pytest.approx(total, abs=PRINTED)


@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (3.0, 0.0, 0.0), (0.0, 3.0, 0.0), (0.0, 0.0, 3.0)])
def test_value_and_gradient_against_plain_loops(weights: tuple[float, float, float]) -> None:
    """Some dimensions spread enough, others do not."""
    u, v = projections()
    assert len({bool(spread) for spread in torch.cat([u.std(0), v.std(0)]) > 1}) == 2
    found = run(objective(invariance=weights[0], variance=weights[1], covariance=weights[2]), u, v)
    assert found.total == pytest.approx(naive(u.tolist(), v.tolist(), weights), abs=1e-12)
    du, dv = slopes(lambda u, v: naive(u, v, weights), u, v)
    assert_near(found.dx, du, 1e-7)
    assert_near(found.dy, dv, 1e-7)


def test_it_looks_at_projections_before_they_are_normalised() -> None:
    """Unit rows of width d have a standard deviation of 1/sqrt(d) at most, so their spread could never be enough."""
    u, v = projections()
    unit = [torch.nn.functional.normalize(rows).requires_grad_() for rows in (u, v)]
    raw = [rows.clone().requires_grad_() for rows in (u, v)]
    loss = objective()(Embeddings(unit[0], unit[1], raw[0], raw[1]), {})
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(run(objective(), u, v).total, abs=1e-12)
    assert all(rows.grad is not None for rows in raw) and all(rows.grad is None for rows in unit)
    for width in (2, 5, 9):
        wide, _ = projections(rows=40, width=width)
        normalised = torch.nn.functional.normalize(wide)
        assert terms(normalised, normalised)[1] > 1 - math.sqrt(1 / width * 40 / 39 + 1e-4)


def test_equal_pairs_are_invariant() -> None:
    u, _ = projections()
    assert terms(u, u)[0] == 0


def test_dimensions_that_spread_enough_cost_nothing() -> None:
    u, v = projections(spread=5.0)
    found = run(objective(invariance=0, covariance=0), u, v)
    assert found.total == 0 and not found.dx.any()


def test_uncorrelated_dimensions_cost_nothing() -> None:
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    assert terms(corners, 3 * corners)[2] == pytest.approx(0, abs=1e-12)
    assert terms(corners @ torch.tensor([[1.0, 1], [0, 1]], dtype=torch.float64), corners)[2] > 0.1


def test_a_constant_added_to_both_changes_nothing() -> None:
    u, v = projections()
    shift = torch.tensor([3.0, -1.0, 0.5, 10.0], dtype=torch.float64)
    assert terms(u + shift, v + shift) == pytest.approx(terms(u, v), abs=1e-12)


def test_pairs_may_come_in_any_order_but_stay_pairs() -> None:
    (u, v), order = projections(), [3, 1, 5, 0, 2, 4]
    assert terms(u[order], v[order]) == pytest.approx(terms(u, v), abs=1e-12)
    broken = terms(u[order], v)
    assert broken[1:] == pytest.approx(terms(u, v)[1:], abs=1e-12) and broken[0] != pytest.approx(terms(u, v)[0], abs=1e-3)


def test_a_collapsed_encoder_has_a_finite_gradient() -> None:
    """Without the small constant, the slope of a standard deviation of 0 would be infinite."""
    same = torch.ones(5, 4, dtype=torch.float64)
    found = run(objective(), same, same)
    assert terms_of(found) == pytest.approx([0, 0.99, 0], abs=1e-12)
    assert bool(found.dx.isfinite().all())


def test_there_is_nothing_to_learn_and_no_ids_are_asked_for() -> None:
    assert not list(objective().parameters()) and not objective().state_dict()
    assert not VicRegSettings().needs.ids


def test_statistics_are_taken_in_single_precision_whatever_surrounds_them() -> None:
    u, v = (100 * rows for rows in projections())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective().float()(Embeddings(u, v, u.float(), v.float()), {}).total
    assert float(found) == pytest.approx(run(objective(), u, v).total, rel=1e-5)


@pytest.mark.parametrize("key", ["invariance", "variance", "covariance"])
def test_a_negative_weight_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        VicRegSettings(**{key: -1.0})


def test_a_temperature_is_a_key_it_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"(?m)^temperature\n"):
        VicRegSettings(temperature=0.07)
