"""SogCLR: worked reference values of two steps, plain loops over a run, and what a memory of every sample must satisfy."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    REPEATED,
    A,
    Rows,
    X,
    Y,
    anchors,
    assert_near,
    assert_remembers,
    batches_of_a_run,
    build,
    by_cosine,
    gaps,
    ids,
    random_pairs,
    remember,
    rivals,
    run,
    slopes,
    step,
    surrogate,
    task,
)
from training.objectives.ops import blocks
from training.objectives.sogclr import SogClr, SogClrSettings


def objective(temperature: float, gamma: float = 0.8, epsilon: float = 1e-300, **keys: Any) -> SogClr:
    return build(SogClrSettings(temperature=temperature, gamma=gamma, epsilon=epsilon, **keys))


def state(sogclr: SogClr, rows: int = 3) -> Tensor:
    """[2, rows]: the running estimates of the first images and captions."""
    return torch.stack([sogclr.log_u.image[:rows], sogclr.log_u.text[:rows]]).exp()


def weighted_gaps(rows: Tensor, gradient: Tensor) -> float:
    """The loss of which the gradient is followed: at fixed weights it is linear in the images."""
    return float((rows * gradient).sum())


def test_reference_first_step() -> None:
    sogclr = objective(0.5)
    found = step(sogclr, X, Y)
    assert_near(state(sogclr), [[0.507272, 0.952708, 0.636059], [0.761084, 0.418882, 0.880717]])
    assert_near(sogclr.log_u.image[:3], [-0.678708, -0.048446, -0.452464])
    assert found.total == pytest.approx(-0.408303, abs=PRINTED)
    assert weighted_gaps(X, found.dx) == pytest.approx(-0.352576, abs=PRINTED)
    dx = [[-0.251429, 0.396585, -0.251429], [0.428591, -0.422156, 0.428591], [-0.112094, -0.012158, -0.112094]]
    assert_near(found.dx, dx)


def test_reference_second_step() -> None:
    """The same samples, whose images are seen in another view."""
    fresh, sogclr = objective(0.5), objective(0.5)
    step(fresh, A, Y)
    assert_near(state(fresh)[0], [0.809181, 0.953621, 0.642989])
    step(sogclr, X, Y)
    found = step(sogclr, A, Y)
    assert_near(state(sogclr), [[0.748799, 0.953438, 0.641603], [1.059624, 0.373656, 0.940744]])
    assert weighted_gaps(A, found.dx) == pytest.approx(-0.212171, abs=PRINTED)
    dx = [[-0.284983, 0.495551, -0.284983], [0.417030, -0.408486, 0.417030], [-0.051004, -0.145876, -0.051004]]
    assert_near(found.dx, dx)


def test_reference_at_a_lower_temperature() -> None:
    sogclr = objective(0.1)
    found = step(sogclr, X, Y)
    assert_near(state(sogclr), [[0.137023, 1.555971, 0.139617], [0.300034, 0.037601, 0.829776]])
    assert weighted_gaps(X, found.dx) == pytest.approx(-0.182600, abs=PRINTED)
    assert found.total == pytest.approx(-0.272851, abs=PRINTED)
    found = step(sogclr, A, Y)
    assert_near(state(sogclr), [[0.763982, 1.762374, 0.364773], [2.685399, 0.012528, 1.089742]])
    assert weighted_gaps(A, found.dx) == pytest.approx(0.054375, abs=PRINTED)


@pytest.mark.parametrize(
    ("grad_scale", "epsilon", "temperature"),
    [("source", 1e-14, 0.2), ("unit", 1e-14, 0.2), ("source", 0.5, 0.2), ("source", 1e-14, 0.01)],
)
def test_a_run_against_plain_loops(grad_scale: str, epsilon: float, temperature: float) -> None:
    """Ids come in any order, repeat within a batch, and once no anchor has a negative. An epsilon of 0.5 can be seen; at a
    temperature of 0.01 means range from e^-90 to e^150, and the default takes anchors for solved.
    """
    gamma, solved = 0.7, 0
    sogclr = objective(temperature, gamma, epsilon, grad_scale=grad_scale)
    size = 1 if grad_scale == "source" else 1 / (2 * temperature)
    memory: list[dict[int, float]] = [{}, {}]
    for pair_ids, (x, y) in batches_of_a_run(6):
        found = step(sogclr, x, y, ids(*pair_ids))
        expected = anchors((x, y), pair_ids, lambda *_: temperature, memory, gamma, epsilon)
        remember(memory, [(a.side, a.id, a.u) for a in expected])
        solved += sum(sum(a.weights) < 0.01 for a in expected)
        total = temperature * size * sum(math.log(epsilon + a.u) for a in expected) / 6
        assert found.total == pytest.approx(total, abs=1e-12)
        dx, dy = slopes(lambda x, y, fixed=expected: size * surrogate(x, y, fixed), x, y)
        assert_near(found.dx, dx, 1e-9)
        assert_near(found.dy, dy, 1e-9)
        assert_remembers(sogclr.log_u, memory)
    assert len(memory[0]) > 5 and len(memory[1]) > 5
    assert (solved > 5) is (temperature == 0.01)


@pytest.mark.parametrize(
    ("hinge", "temperature", "grad_scale"), [(1.0, 0.2, "source"), (0.3, 0.2, "unit"), (1.0, 0.01, "source")]
)
def test_a_square_hinge_of_the_gaps_against_plain_loops(hinge: float, temperature: float, grad_scale: str) -> None:
    """max(0, x + c)^2 in the place of x, in means, memories and gradient, as the public code's surrogate.

    Some gaps lie in the flat part, and some do not; at a temperature of 0.01 exponents reach hundreds.
    """
    gamma, epsilon, flat = 0.7, 1e-14, 0

    def shape(gap: float) -> float:
        return max(0.0, gap + hinge) ** 2

    sogclr = objective(temperature, gamma, epsilon, hinge=hinge, grad_scale=grad_scale)
    size = 1 if grad_scale == "source" else 1 / (2 * temperature)
    memory: list[dict[int, float]] = [{}, {}]
    for pair_ids, (x, y) in batches_of_a_run(6):
        found = step(sogclr, x, y, ids(*pair_ids))
        expected = anchors((x, y), pair_ids, lambda *_: temperature, memory, gamma, epsilon, shape)
        remember(memory, [(a.side, a.id, a.u) for a in expected])
        flat += sum(h == 0 for a in expected for h in a.h)
        total = temperature * size * sum(math.log(epsilon + a.u) for a in expected) / 6
        assert found.total == pytest.approx(total, abs=1e-12)
        dx, dy = slopes(lambda x, y, fixed=expected: size * surrogate(x, y, fixed, shape), x, y)
        assert_near(found.dx, dx, 1e-7)
        assert_near(found.dy, dy, 1e-7)
        assert_remembers(sogclr.log_u, memory)
    assert 5 < flat < 300
    assert len(memory[0]) > 5 and len(memory[1]) > 5


def test_a_square_hinge_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), batch = random_pairs(6), ids(*REPEATED)
    whole = run(objective(0.2, hinge=1.0), x, y, batch)
    monkeypatch.setattr(blocks, "PLAIN", 1)
    monkeypatch.setattr(blocks, "BLOCK", 12)
    found = run(objective(0.2, hinge=1.0), x, y, batch)
    assert found.total == pytest.approx(whole.total, abs=1e-12)
    assert_near(found.dx, whole.dx, 1e-12)
    assert_near(found.dy, whole.dy, 1e-12)


def full_data(x: Rows, y: Rows, temperature: float, pair_ids: tuple[list[int], list[int]]) -> float:
    """F of the whole data without epsilon."""
    total = 0.0
    for side in range(2):
        for row, negatives in enumerate(rivals(*pair_ids)):
            found = [math.exp(gap / temperature) for gap in gaps(x, y, side, row, negatives)]
            total += temperature * math.log(sum(found) / len(found))
    return total / len(x)


@pytest.mark.parametrize("pair_ids", [DISTINCT, REPEATED])
def test_with_the_whole_data_and_no_memory_it_is_the_gradient_of_the_global_contrast(
    pair_ids: tuple[list[int], list[int]],
) -> None:
    (x, y), sogclr = random_pairs(6), objective(0.3, gamma=1.0)
    step(sogclr, *random_pairs(6, seed=1), batch=ids(*pair_ids))
    found = step(sogclr, x, y, ids(*pair_ids))
    assert found.total == pytest.approx(full_data(x.tolist(), y.tolist(), 0.3, pair_ids), abs=1e-12)
    dx, dy = slopes(lambda x, y: full_data(x, y, 0.3, pair_ids), x, y)
    assert_near(found.dx, dx, 1e-8)
    assert_near(found.dy, dy, 1e-8)


@pytest.mark.parametrize(("temperature", "epsilon"), [(0.3, 1e-300), (0.01, 1e-14)])
def test_what_was_seen_before_counts_unless_gamma_is_one(temperature: float, epsilon: float) -> None:
    """At any temperature: an epsilon that grows with the largest gap ever met would break it at a low one."""
    for gamma, same in ((1.0, True), (0.8, False)):
        fresh, used = objective(temperature, gamma, epsilon), objective(temperature, gamma, epsilon)
        step(used, *random_pairs(6, seed=1))
        first, second = run(fresh, *random_pairs(6)), run(used, *random_pairs(6))
        assert bool(torch.allclose(first.dx, second.dx, atol=1e-12, rtol=0)) is same


def test_an_anchors_weights_sum_to_one_without_memory() -> None:
    """In the gradient by cosines, negatives push as much as the own pair is pulled, twice 1/B a pair."""
    gradient = by_cosine(objective(0.3, gamma=1.0), X @ Y.T)
    assert_near(gradient.diagonal(), [-2 / 3] * 3, 1e-12)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)


def test_equal_embeddings_are_at_the_global_mean() -> None:
    x, sogclr = X[[1, 1, 1]], objective(0.3)
    found = step(sogclr, x, x)
    assert found.total == pytest.approx(0, abs=1e-12)
    assert weighted_gaps(x, found.dx) == pytest.approx(0, abs=1e-12)
    assert_near(state(sogclr), torch.ones(2, 3), 1e-12)


def test_frozen_features_leave_the_memory_where_it_is() -> None:
    sogclr, (x, y) = objective(0.2, gamma=0.3), random_pairs(6)
    step(sogclr, x, y)
    first = state(sogclr, 6)
    for _ in range(3):
        step(sogclr, x, y)
    assert_near(state(sogclr, 6), first, 1e-12)


def test_pairs_may_come_in_another_order_with_their_ids() -> None:
    x, y = random_pairs(6)
    one, other, order = objective(0.2), objective(0.2), [3, 1, 5, 0, 2, 4]
    for _ in range(2):
        first = step(one, x, y, ids(6))
        second = step(other, x[order], y[order], ids(order))
        assert second.total == pytest.approx(first.total, abs=1e-12)
        assert_near(second.dx, first.dx[order], 1e-12)
    assert_near(state(other, 6), state(one, 6), 1e-12)


def test_an_anchor_without_negatives_contributes_nothing_and_keeps_its_estimate() -> None:
    """Four captions of one image are no negatives of one another."""
    sogclr, (x, y) = objective(0.2), random_pairs(4)
    step(sogclr, *random_pairs(6))
    before = sogclr.log_u.image.clone(), sogclr.log_u.text.clone()
    found = step(sogclr, x, y, ids([2, 2, 2, 2], [2, 7, 8, 9]))
    assert found.total == 0 and not found.dx.any() and not found.dy.any()
    assert torch.equal(sogclr.log_u.image, before[0]) and torch.equal(sogclr.log_u.text, before[1])
    assert bool(sogclr.log_u.text[7:].isneginf().all())


def test_an_anchor_without_negatives_has_no_say_in_the_estimate_of_a_caption_that_it_shares() -> None:
    """The first pair is like both others; the second and the third are negatives of one another."""
    pair_ids, sogclr = ([0, 1, 0], [0, 0, 1]), objective(0.2)
    memory: list[dict[int, float]] = [{}, {}]
    for seed in range(2):
        x, y = random_pairs(3, seed)
        step(sogclr, x, y, ids(*pair_ids))
        found = anchors((x, y), pair_ids, lambda *_: 0.2, memory, 0.8, 1e-300)
        assert {a.row for a in found} == {1, 2}
        remember(memory, [(a.side, a.id, a.u) for a in found])
        assert_remembers(sogclr.log_u, memory)


def test_a_image_seen_for_the_first_time_late_starts_at_its_own_estimate() -> None:
    sogclr, (x, y) = objective(0.2), random_pairs(3)
    step(sogclr, X, Y, ids([0, 1, 2]))
    before = float(sogclr.log_u.image[2])
    step(sogclr, x, y, ids([0, 1, 9]))
    fresh = objective(0.2)
    step(fresh, x, y, ids([0, 1, 9]))
    assert float(sogclr.log_u.image[9]) == pytest.approx(float(fresh.log_u.image[9]), abs=1e-12)
    assert float(sogclr.log_u.image[0]) != pytest.approx(float(fresh.log_u.image[0]), abs=1e-3)
    assert float(sogclr.log_u.image[2]) == before


def test_solved_anchors_lose_their_weight() -> None:
    """Where g is far below epsilon, nothing is left to learn."""
    axes = torch.eye(3, dtype=torch.float64)
    assert float(run(objective(0.01, epsilon=1e-14), axes, axes).dx.abs().max()) < 1e-25
    assert float(run(objective(0.01), axes, axes).dx.abs().max()) > 0.1


def test_the_lowest_temperature_in_single_precision_stays_finite() -> None:
    """Cosines 2 apart at temperature 0.005 are exp(400) apart, and float32 ends at exp(88)."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    sogclr = SogClrSettings(temperature=0.005).build(task())
    for y in (-x, x, -x):
        found = step(sogclr, x, y)
        assert math.isfinite(found.total) and bool(found.dx.isfinite().all()) and bool(found.dy.isfinite().all())
        assert bool(sogclr.log_u.image[:3].isfinite().all())
    assert float(sogclr.log_u.image.max()) > 300


def test_an_id_that_the_data_cannot_have_is_an_error() -> None:
    with pytest.raises(IndexError, match=r"image_id.*10"):
        run(objective(0.2), X, Y, ids([0, 1, 10], [0, 1, 2]))
    with pytest.raises(IndexError, match=r"text_id.*-1"):
        run(objective(0.2), X, Y, ids([0, 1, 2], [0, 1, -1]))


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.0), ("gamma", 0.0), ("gamma", 1.1), ("epsilon", 0.0), ("grad_scale", "clip"), ("hinge", -1.0)],
)
def test_a_mistake_in_the_settings_is_named(key: str, value: object) -> None:
    """A gamma of 0 would freeze the estimates."""
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        SogClrSettings(**{key: value})
