"""OnlineCLR: worked reference values of two steps, plain loops over a run, and one distribution over all pairs of a batch."""

import math
from typing import Any

import pytest
import torch

from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    REPEATED,
    A,
    Rows,
    X,
    Y,
    assert_near,
    build,
    by_cosine,
    dot,
    ids,
    random_pairs,
    rivals,
    run,
    slopes,
    step,
    task,
)
from training.objectives.onlineclr import OnlineClr, OnlineClrSettings


def objective(temperature: float, **keys: Any) -> OnlineClr:
    return build(OnlineClrSettings(temperature=temperature, **keys))


@pytest.mark.parametrize(
    ("temperature", "init", "first", "second"),
    [
        (0.5, "first_batch", -0.134631, -0.016489),
        (0.5, "zero", -0.168289, -0.023758),
        (0.1, "first_batch", 0.031819, 0.285820),
        (0.1, "zero", 0.039774, 0.264349),
        (0.01, "first_batch", 0.095694, 0.500387),
        (0.01, "zero", 0.119617, 0.465937),
    ],
)
def test_reference_losses_of_two_steps(temperature: float, init: str, first: float, second: float) -> None:
    """Of the loss whose gradient is followed, which at fixed weights is linear in the images; the second step has other views."""
    onlineclr = objective(temperature, init=init)
    for images, expected in ((X, first), (A, second)):
        found = step(onlineclr, images, Y)
        assert float((images * found.dx).sum()) == pytest.approx(expected, abs=PRINTED)


def test_reference_weights_and_gradient() -> None:
    """By cosines the gradient is the weights themselves; a negative pair weighs twice what each of the two halves says."""
    negatives = torch.tensor([[0, 0.027779, 0.088145], [0.075511, 0, 0.142205], [0.098415, 0.067945, 0]])
    positives = torch.tensor([0.167415, 0.167415, 0.165170])
    assert_near(by_cosine(objective(0.5), X @ Y.T) / 2, negatives - positives.diag())
    dx = [[-0.134980, 0.157339, -0.134980], [0.270993, -0.170625, 0.270993], [-0.051543, -0.054831, -0.051543]]
    assert_near(run(objective(0.5), X, Y).dx, dx)


def test_reference_value_and_running_means() -> None:
    onlineclr = objective(0.5)
    assert step(onlineclr, X, Y).total == pytest.approx(-0.180217, abs=PRINTED)
    assert_near(onlineclr.log_means, [1.098570, -0.145900])
    assert_near(onlineclr.log_means + torch.tensor([math.log(12), math.log(6)]), [3.583477, 1.645859])


def naive_means(x: Rows, y: Rows, negative: float, positive: float, *pair_ids: list[int]) -> tuple[float, float]:
    pairs = [(i, j) for i, others in enumerate(rivals(*pair_ids)) for j in others]
    of_negatives = sum(math.exp(dot(x[i], y[j]) / negative) for i, j in pairs) / len(pairs)
    return of_negatives, sum(math.exp(-dot(*rows) / positive) for rows in zip(x, y, strict=True)) / len(x)


@pytest.mark.parametrize("init", ["first_batch", "zero"])
def test_a_run_against_plain_loops(init: str) -> None:
    """Two running means; the gradient is that of log(mean), shrunk by what the batch's mean is to the running one."""
    negative, positive, gamma = 0.2, 0.2 * 3.5, 0.7
    onlineclr, running = objective(negative, positive_ratio=3.5, gamma=gamma, init=init), [0.0, 0.0]
    for at, pair_ids in enumerate([DISTINCT, REPEATED, ([4] * 5 + [1], DISTINCT[1]), DISTINCT]):
        x, y = random_pairs(6, seed=at)
        found = step(onlineclr, x, y, ids(*pair_ids))
        means = naive_means(x.tolist(), y.tolist(), negative, positive, *pair_ids)
        share = 1.0 if at == 0 and init == "first_batch" else gamma
        running = [(1 - share) * old + share * new for old, new in zip(running, means, strict=True)]
        value = negative * math.log(running[0]) + positive * math.log(running[1])
        assert found.total == pytest.approx(value, abs=1e-12)
        assert_near(onlineclr.log_means.exp(), running, 1e-10)

        def linear(x: Rows, y: Rows, u: list[float] = running, pair_ids: Any = pair_ids) -> float:
            of_negatives, of_positives = naive_means(x, y, negative, positive, *pair_ids)
            return negative * of_negatives / u[0] + positive * of_positives / u[1]

        dx, dy = slopes(linear, x, y)
        assert_near(found.dx, dx, 1e-7)
        assert_near(found.dy, dy, 1e-7)


@pytest.mark.parametrize(("gamma", "steps"), [(0.8, 0), (1.0, 0), (1.0, 2)])
def test_without_memory_it_is_the_gradient_of_the_batchs_objective(gamma: float, steps: int) -> None:
    x, y = random_pairs(6)
    onlineclr = objective(0.2, positive_ratio=4.0, gamma=gamma)
    for at in range(steps):
        step(onlineclr, *random_pairs(6, seed=at + 1))

    def value(x: Rows, y: Rows) -> float:
        of_negatives, of_positives = naive_means(x, y, 0.2, 0.8, *DISTINCT)
        return 0.2 * math.log(of_negatives) + 0.8 * math.log(of_positives)

    found = run(onlineclr, x, y)
    assert found.total == pytest.approx(value(x.tolist(), y.tolist()), abs=1e-12)
    dx, dy = slopes(value, x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)


@pytest.mark.parametrize(("init", "weight"), [("first_batch", 1.0), ("zero", 1.25)])
def test_weights_of_negatives_and_of_positives_sum_to_one_unless_means_start_at_zero(init: str, weight: float) -> None:
    x, y = random_pairs(6)
    gradient = by_cosine(objective(0.1, init=init), x @ y.T)
    assert float(gradient.diagonal().sum()) == pytest.approx(-weight, abs=1e-12)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    assert bool((gradient.diagonal() < 0).all()) and float((gradient > 0).sum()) == 30


def test_the_hardest_negative_of_the_batch_takes_all_at_a_low_temperature() -> None:
    gradient = by_cosine(objective(0.01), X @ Y.T)
    assert float(gradient[1, 2]) > 0.98


def test_equal_cosines_cancel() -> None:
    same = X[[1, 1, 1]]
    found = run(objective(0.1), same, same)
    assert float((same * found.dx).sum()) == pytest.approx(0, abs=1e-12)
    assert float(by_cosine(objective(0.1), torch.full((3, 3), 0.4, dtype=torch.float64)).sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("pair_ids", [DISTINCT, REPEATED])
def test_images_and_texts_may_change_places(pair_ids: tuple[list[int], list[int]]) -> None:
    one, other = objective(0.1), objective(0.1)
    for seed in range(3):
        x, y = random_pairs(6, seed)
        first, second = step(one, x, y, ids(*pair_ids)), step(other, y, x, ids(*pair_ids))
        assert second.total == pytest.approx(first.total, abs=1e-12)
        assert_near(second.dx, first.dy, 1e-12)


def test_pairs_may_come_in_any_order() -> None:
    (x, y), order = random_pairs(6), [3, 1, 5, 0, 2, 4]
    first, second = run(objective(0.1), x, y), run(objective(0.1), x[order], y[order])
    assert second.total == pytest.approx(first.total, abs=1e-12)
    assert_near(second.dx, first.dx[order], 1e-12)


def test_running_means_do_not_depend_on_the_batchs_size() -> None:
    """Means, not sums: twice the same pairs, which are no negatives of their doubles, change nothing."""
    x, y = random_pairs(4)
    once, twice = objective(0.1), objective(0.1)
    step(once, x, y)
    step(twice, x.repeat(2, 1), y.repeat(2, 1), ids([0, 1, 2, 3] * 2))
    assert_near(twice.log_means, once.log_means, 1e-12)


def test_without_the_mask_ids_are_not_read() -> None:
    x, y = random_pairs(6)
    plain = objective(0.1, mask_false_negatives=False)
    assert run(plain, x, y, {}).total == pytest.approx(run(objective(0.1), x, y).total, abs=1e-12)
    assert run(plain, x, y, ids(*REPEATED)).total != pytest.approx(run(objective(0.1), x, y, ids(*REPEATED)).total, abs=1e-3)


def test_a_batch_without_any_negative_is_an_error_that_says_why() -> None:
    with pytest.raises(ValueError, match="onlineclr"):
        run(objective(0.1), X, Y, ids([5, 5, 5], [0, 1, 2]))


def test_the_lowest_temperature_in_single_precision_stays_finite() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    for init in ("first_batch", "zero"):
        onlineclr = OnlineClrSettings(temperature=0.005, positive_ratio=1.0, init=init).build(task())
        for y in (-x, x, -x):
            found = step(onlineclr, x, y)
            assert math.isfinite(found.total) and bool(found.dx.isfinite().all()) and bool(found.dy.isfinite().all())
            assert bool(onlineclr.log_means.isfinite().all())


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0.0), ("positive_ratio", 0.0), ("gamma", 0.0), ("gamma", 1.5), ("init", "one")]
)
def test_a_mistake_in_the_settings_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        OnlineClrSettings(**{key: value})
