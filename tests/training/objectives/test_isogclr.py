"""iSogCLR: worked reference values, plain loops over a run, and temperatures that go where they should and stay in bounds."""

import math
from typing import Any

import pytest
import torch

from tests.training.objectives.reference import (
    X,
    Y,
    anchors,
    assert_near,
    assert_remembers,
    batches_of_a_run,
    build,
    dot,
    gaps,
    ids,
    random_pairs,
    remember,
    run,
    slope,
    slopes,
    softmax,
    step,
    surrogate,
    task,
)
from training.objectives.isogclr import ISogClr, ISogClrSettings
from training.objectives.sogclr import SogClrSettings


def objective(temperature: float, **keys: Any) -> ISogClr:
    bounds = {"min_temperature": 0.005, "max_temperature": 1.0, "epsilon": 1e-300}
    isogclr: ISogClr = build(ISogClrSettings(temperature=temperature, **bounds | keys))
    for array in (isogclr.temperature.image, isogclr.temperature.text):
        array.fill_(temperature)
    return isogclr


def others(row: int, rows: int = 6) -> list[int]:
    return [j for j in range(rows) if j != row]


def test_reference_step() -> None:
    isogclr = objective(0.5)
    found = step(isogclr, X, Y)
    assert_near(found.loss.state["gradient"][0], [7.857508, 7.952316, 7.983133])
    for memory in ("image", "text"):
        assert_near(getattr(isogclr.velocity, memory)[:3], [2.5] * 3, 1e-12)
        assert_near(getattr(isogclr.temperature, memory)[:3], [0.425] * 3, 1e-12)
        assert_near(getattr(isogclr.velocity, memory)[3:], [0.0] * 7, 0)
        assert_near(getattr(isogclr.temperature, memory)[3:], [0.5] * 7, 0)


@pytest.mark.parametrize("side", [0, 1])
def test_an_unseen_samples_gradient_is_the_derivative_of_its_share_of_the_objective(side: int) -> None:
    """t log g(t) + rho t."""
    x, y = random_pairs(5)
    found = run(objective(0.5, rho=7.0), x, y)
    for row in range(5):
        apart = gaps(x.tolist(), y.tolist(), side, row, others(row, 5))
        by_temperature = slope(lambda t, v=apart: t * math.log(sum(math.exp(gap / t) for gap in v) / 4) + 7.0 * t, 0.5)
        assert float(found.loss.state["gradient"][side, row]) == pytest.approx(by_temperature, abs=1e-8)


@pytest.mark.parametrize(("rho", "epsilon", "start"), [(8.0, 1e-14, 0.3), (0.3, 1e-14, 0.3), (0.0, 0.5, 0.3), (0.5, 1e-14, 0.01)])
def test_a_run_against_plain_loops(rho: float, epsilon: float, start: float) -> None:
    """A rho of 8 clips gradients at 5; a small one lets temperatures go either way, some to the upper bound. At 0.01
    anchors that are solved have lost their weights.
    """
    gamma, momentum, lr, low, high = 0.7, 0.4, 0.05 * start / 0.3, start / 2, start * 0.34 / 0.3
    keys = {"gamma": gamma, "momentum": momentum, "temperature_lr": lr, "min_temperature": low, "max_temperature": high}
    isogclr = objective(start, rho=rho, epsilon=epsilon, **keys)
    memory: list[dict[int, float]] = [{}, {}]
    velocities = [dict.fromkeys(range(10), 0.0) for _ in range(2)]
    temperatures = [dict.fromkeys(range(10), start) for _ in range(2)]
    for pair_ids, (x, y) in batches_of_a_run(8):
        found = step(isogclr, x, y, ids(*pair_ids))
        expected = anchors((x, y), pair_ids, lambda side, own: temperatures[side][own], memory, gamma, epsilon)
        total = sum(a.temperature * (math.log(epsilon + a.u) + rho) for a in expected) / 6
        assert found.total == pytest.approx(total, abs=1e-12)
        dx, dy = slopes(lambda x, y, fixed=expected: surrogate(x, y, fixed), x, y)
        assert_near(found.dx, dx, 1e-9)
        assert_near(found.dy, dy, 1e-9)
        new_velocities, new_temperatures = [], []
        for a in expected:
            gradient = math.log(epsilon + a.u) + rho - dot(a.weights, a.h)
            velocity = (1 - momentum) * velocities[a.side][a.id] + momentum * max(-5.0, min(5.0, gradient))
            new_velocities.append((a.side, a.id, velocity))
            new_temperatures.append((a.side, a.id, max(low, min(high, a.temperature - lr * velocity))))
        remember(memory, [(a.side, a.id, a.u) for a in expected])
        remember(velocities, new_velocities)
        remember(temperatures, new_temperatures)
        assert_remembers(isogclr.log_u, memory)
        for side, name in enumerate(("image", "text")):
            assert_near(getattr(isogclr.velocity, name), [velocities[side][own] for own in range(10)], 1e-12)
            assert_near(getattr(isogclr.temperature, name), [temperatures[side][own] for own in range(10)], 1e-12)
    reached = {t for side in temperatures for t in side.values()}
    assert min(reached) < start and (low if rho == 8 else high) in reached


def test_features_follow_sogclr_while_temperatures_are_equal() -> None:
    x, y = random_pairs(6)
    ours = run(objective(0.2), x, y)
    theirs = run(build(SogClrSettings(temperature=0.2, epsilon=1e-300)), x, y)
    assert_near(ours.dx, theirs.dx, 1e-12)
    assert_near(ours.dy, theirs.dy, 1e-12)
    assert ours.total == pytest.approx(theirs.total + 2 * 0.2 * 8.0, abs=1e-12)


def test_a_temperature_settles_where_the_weights_of_negatives_are_rho_nats_from_even() -> None:
    """It is the multiplier of a ball of that radius: hard negatives raise it, and where all are alike it falls to its bound."""
    x, y = random_pairs(6)
    x[0] = y[0] = torch.eye(5, dtype=torch.float64)[0]
    y[1:, 0] = 0.0
    isogclr = objective(0.3, rho=0.5, gamma=1.0, temperature_lr=0.02)
    for _ in range(400):
        step(isogclr, x, y)
    assert float(isogclr.temperature.image[0]) == pytest.approx(0.005)
    for side, temperatures in enumerate((isogclr.temperature.image, isogclr.temperature.text)):
        for row in range(1 - side, 6):
            weights = softmax([gap / float(temperatures[row]) for gap in gaps(x.tolist(), y.tolist(), side, row, others(row))])
            assert sum(w * math.log(5 * w) for w in weights) == pytest.approx(0.5, abs=1e-6)


def test_a_sample_without_negatives_keeps_its_temperature_and_its_velocity() -> None:
    isogclr, (x, y) = objective(0.5), random_pairs(4)
    step(isogclr, *random_pairs(6))
    before = {name: value.clone() for name, value in isogclr.state_dict().items()}
    found = step(isogclr, x, y, ids([2] * 4, [2, 7, 8, 9]))
    assert found.total == 0 and not found.dx.any() and not found.dy.any()
    assert all(torch.equal(value, before[name]) for name, value in isogclr.state_dict().items())


def test_the_log_shows_mean_and_spread_of_the_batchs_temperatures() -> None:
    isogclr = objective(0.5)
    isogclr.temperature.image[:3] = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    metrics = run(isogclr, X, Y).loss.metrics
    assert float(metrics["temperature"]) == pytest.approx(0.35)
    assert float(metrics["temperature_sd"]) == pytest.approx(math.sqrt((0.0625 + 0.0225 + 0.0025 + 3 * 0.0225) / 5))


def test_the_lowest_temperature_in_single_precision_stays_finite() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    isogclr = ISogClrSettings(temperature=0.005).build(task())
    for y in (-x, x, -x):
        found = step(isogclr, x, y)
        assert math.isfinite(found.total) and bool(found.dx.isfinite().all()) and bool(found.dy.isfinite().all())
        assert all(bool(array[:3].isfinite().all()) for array in isogclr.state_dict().values())


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.0), ("gamma", 0.0), ("epsilon", 0.0), ("momentum", 0.0), ("min_temperature", 0.0), ("rho", -1.0)],
)
def test_a_mistake_in_the_settings_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        ISogClrSettings(**{key: value})


@pytest.mark.parametrize("keys", [{"temperature": 0.07}, {"temperature": 0.001}, {"max_temperature": 0.008}])
def test_a_start_outside_its_bounds_names_start_and_bounds(keys: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"temperature: .*min_temperature 0\.005 .*max_temperature"):
        ISogClrSettings(**keys)
