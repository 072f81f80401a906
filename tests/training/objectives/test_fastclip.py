"""FastCLIP-v3: worked reference values, gamma's schedule, plain loops over a run, and a temperature with Adam of its own."""

import math
from typing import Any

import pytest
import torch

from tests.training.objectives.reference import (
    PRINTED,
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
    step,
    surrogate,
    task,
)
from training.objectives.fastclip import FastClip, FastClipSettings
from training.objectives.sogclr import SogClrSettings


def objective(temperature: float, epsilon: float = 1e-300, run: dict[str, int] | None = None, **keys: Any) -> FastClip:
    fastclip: FastClip = build(FastClipSettings(temperature=temperature, epsilon=epsilon, **keys), **run or {})
    fastclip.log_scale.fill_(-math.log(temperature))
    return fastclip


def test_reference_value_and_slope() -> None:
    """The whole of dF/dt, 12.888548, which ln(1/t) moves by -t: half of two of its three terms would be 6.796850."""
    found = run(objective(0.5), X, Y)
    assert found.total == pytest.approx(6.091697, abs=PRINTED)
    assert float(found.loss.state["gradient"]) == pytest.approx(-0.5 * 12.888548, abs=PRINTED)


@pytest.mark.parametrize("epsilon", [1e-300, 0.5])
def test_the_slope_is_the_derivative_of_the_objective(epsilon: float) -> None:
    """In ln(1/t), which is what is stepped."""
    x, y = random_pairs(6)

    def value(t: float) -> float:
        total = 2 * 1.5 * t
        for side in range(2):
            for row in range(6):
                found = gaps(x.tolist(), y.tolist(), side, row, [j for j in range(6) if j != row])
                total += t * math.log(epsilon + sum(math.exp(gap / t) for gap in found) / 5) / 6
        return total

    found = run(objective(0.3, epsilon, rho=1.5), x, y)
    assert found.total == pytest.approx(value(0.3), abs=1e-12)
    by_log_scale = slope(lambda log_scale: value(math.exp(-log_scale)), -math.log(0.3))
    assert float(found.loss.state["gradient"]) == pytest.approx(by_log_scale, abs=1e-8)


def test_gamma_falls_epoch_by_epoch_to_mid_run() -> None:
    """36 or 37 epochs of 5 steps: 18 epochs of fall."""
    for epochs in (36, 37):
        fastclip = objective(0.07, run={"steps_per_epoch": 5, "total_steps": 5 * epochs})
        for epoch, gamma in ((0, 1.0), (1, 0.993923), (9, 0.6), (17, 0.206077), (18, 0.2), (19, 0.2), (epochs - 1, 0.2)):
            found = {fastclip.gamma(5 * epoch + at) for at in range(5)}
            assert len(found) == 1 and found.pop() == pytest.approx(gamma, abs=PRINTED)


def test_a_run_of_one_epoch_has_no_memory() -> None:
    assert objective(0.07, run={"steps_per_epoch": 5, "total_steps": 5}).gamma(4) == 1.0
    assert objective(0.07, run={"steps_per_epoch": 5, "total_steps": 3}).gamma(2) == 1.0


@pytest.mark.parametrize(
    ("rho", "start", "lr", "epsilon"), [(12.0, 0.07, 0.15, 1e-14), (0.0, 0.2, 0.15, 1e-14), (0.0, 0.2, 0.15, 0.5)]
)
def test_a_run_against_plain_loops(rho: float, start: float, lr: float, epsilon: float) -> None:
    """Six epochs of two steps: gamma 1, 0.8, 0.4, 0.2 and so on; the first run falls below 0.03 and then to its bound."""
    keys = {"temperature_lr": lr, "min_temperature": 0.0292}
    fastclip = objective(start, epsilon, {"steps_per_epoch": 2, "total_steps": 12}, rho=rho, **keys)
    memory: list[dict[int, float]] = [{}, {}]
    gammas = [1.0, 1.0, 0.8, 0.8, 0.4, 0.4] + [0.2] * 6
    temperature, first, second, visited = start, 0.0, 0.0, []
    for at, (pair_ids, (x, y)) in enumerate(batches_of_a_run(12)):
        found = step(fastclip, x, y, ids(*pair_ids))
        assert float(found.loss.metrics["gamma"]) == pytest.approx(gammas[at], abs=1e-12)
        expected = anchors((x, y), pair_ids, lambda *_, t=temperature: t, memory, gammas[at], epsilon)
        remember(memory, [(a.side, a.id, a.u) for a in expected])
        level = sum(math.log(epsilon + a.u) for a in expected) / 6 + 2 * rho
        assert found.total == pytest.approx(temperature * level, rel=1e-9, abs=1e-9)
        dx, dy = slopes(lambda x, y, fixed=expected: surrogate(x, y, fixed), x, y)
        assert_near(found.dx, dx, 1e-8)
        assert_near(found.dy, dy, 1e-8)
        gradient = -temperature * (level - sum(dot(a.weights, a.h) for a in expected) / 6)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        unbiased = first / (1 - 0.9 ** (at + 1)), second / (1 - 0.999 ** (at + 1))
        rate = lr / 3 if temperature <= 0.03 else lr
        temperature = max(0.0292, temperature * math.exp(rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)))
        assert float(fastclip.temperature()) == pytest.approx(temperature, abs=1e-9)
        visited.append(temperature)
        assert_remembers(fastclip.log_u, memory, 1e-8)
    assert int(fastclip.step) == 12
    if rho:
        assert any(0.0292 < t <= 0.03 for t in visited) and 0.0292 in visited


def test_the_temperature_moves_like_a_parameter_under_adam() -> None:
    """Its logarithm, as `logit_scale` does in released code: the model's optimizer with a rate of its own and no decay."""
    fastclip, (x, y) = objective(0.3, rho=0.0, temperature_lr=0.01), random_pairs(6)
    parameter = torch.nn.Parameter(torch.tensor(-math.log(0.3), dtype=torch.float64))
    adam = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.0)
    for _ in range(5):
        found = step(fastclip, x, y)
        parameter.grad = found.loss.state["gradient"].clone()
        adam.step()
        assert float(fastclip.log_scale) == pytest.approx(float(parameter.detach()), abs=1e-12)


def test_five_hundred_steps_at_the_defaults_go_where_the_released_rule_goes() -> None:
    """Plain loops over Adam's step of 2e-4 in ln(1/t); stepping t itself would bring 0.07 down to 0.0145 by then.

    Released code halves log u and rho but not what the weights add; the whole gradient comes out nearly there.
    """
    x, y = random_pairs(6)
    fastclip = objective(0.07, 1e-14, {"steps_per_epoch": 501, "total_steps": 501})
    for _ in range(501):
        step(fastclip, x, y)
    own = [gaps(x.tolist(), y.tolist(), side, row, [j for j in range(6) if j != row]) for side in (0, 1) for row in range(6)]

    def temperature(share: float) -> float:
        log_scale, first, second = -math.log(0.07), 0.0, 0.0
        for at in range(1, 502):
            t, level, path = math.exp(-log_scale), 2 * 6.5, 0.0
            for found in own:
                powers = [math.exp(gap / t) for gap in found]
                level += math.log(sum(powers) / 5) / 6
                path -= dot(powers, found) / t / sum(powers) / 6
            gradient = -t * (share * level + path)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            log_scale -= 2e-4 * first / (1 - 0.9**at) / (math.sqrt(second / (1 - 0.999**at)) + 1e-8)
        return math.exp(-log_scale)

    assert float(fastclip.temperature()) == pytest.approx(temperature(1.0), abs=1e-9)
    assert float(fastclip.temperature()) == pytest.approx(temperature(0.5), rel=0.02)
    assert 0.062 < temperature(0.5) < 0.066


def test_a_temperature_that_rises_stops_at_one() -> None:
    fastclip, (x, y) = objective(0.9, rho=0.0, temperature_lr=0.2), random_pairs(6)
    step(fastclip, x, y)
    assert float(fastclip.temperature()) == 1.0


def test_features_follow_sogclr() -> None:
    x, y = random_pairs(6)
    ours = run(objective(0.2), x, y)
    theirs = run(build(SogClrSettings(temperature=0.2, epsilon=1e-300)), x, y)
    assert_near(ours.dx, theirs.dx, 1e-12)
    assert_near(ours.dy, theirs.dy, 1e-12)
    assert ours.total == pytest.approx(theirs.total + 2 * 6.5 * 0.2, abs=1e-12)


def test_the_temperature_is_no_parameter_of_the_encoders_optimizer() -> None:
    fastclip = objective(0.07)
    assert not list(fastclip.parameters())
    assert "log_scale" in fastclip.state_dict() and "moments" in fastclip.state_dict()


def test_the_lowest_temperature_in_single_precision_stays_finite() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    fastclip = FastClipSettings(temperature=0.005, min_temperature=0.005).build(task())
    for y in (-x, x, -x):
        found = step(fastclip, x, y)
        assert math.isfinite(found.total) and bool(found.dx.isfinite().all()) and bool(found.dy.isfinite().all())
        assert math.isfinite(float(fastclip.temperature())) and bool(fastclip.log_u.text[:3].isfinite().all())


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.0), ("min_gamma", 0.0), ("min_gamma", 1.5), ("min_temperature", 0.0), ("rho", -1.0), ("epsilon", 0.0)],
)
def test_a_mistake_in_the_settings_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        FastClipSettings(**{key: value})


@pytest.mark.parametrize("start", [0.005, 1.5])
def test_a_temperature_cannot_start_outside_its_bounds(start: float) -> None:
    with pytest.raises(ValueError, match=rf"temperature: {start} .*min_temperature 0\.01"):
        FastClipSettings(temperature=start)
    assert FastClipSettings(temperature=0.005, min_temperature=0.005).temperature == 0.005
