"""SigLIP: worked reference values, plain loops, the peer's loss, and what it means that every pair is a question of its own."""

import math
from typing import Any

import pytest
import torch
from open_clip.loss import SigLipLoss

from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    REPEATED,
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
    rotation,
    run,
    slope,
    slopes,
    step,
)
from training.objectives.siglip import SigLip, SigLipSettings


def objective(temperature: float, bias: float, **keys: Any) -> SigLip:
    return build(SigLipSettings(temperature=temperature, bias=bias, **keys))


def naive(x: Rows, y: Rows, scale: float, bias: float, image_id: list[int], text_id: list[int]) -> float:
    """Minus the log-probability of every right answer: yes for the own pair, no for its negatives."""
    total = 0.0
    for i, others in enumerate(rivals(image_id, text_id)):
        total += math.log(1 + math.exp(-(scale * dot(x[i], y[i]) + bias)))
        total += sum(math.log(1 + math.exp(scale * dot(x[i], y[j]) + bias)) for j in others)
    return total / len(x)


@pytest.mark.parametrize(("temperature", "bias", "total"), [(0.1, -10.0, 2.838066), (0.5, 0.0, 2.875028)])
@pytest.mark.parametrize("exchange", ["ring", "gather"])
def test_reference_losses(temperature: float, bias: float, total: float, exchange: str) -> None:
    assert run(objective(temperature, bias, exchange=exchange), X, Y).total == pytest.approx(total, abs=PRINTED)


def test_the_defaults_are_the_papers_start() -> None:
    siglip = SigLipSettings()
    assert (siglip.temperature, siglip.bias) == (0.1, -10.0)
    assert run(build(siglip), X, Y).total == pytest.approx(2.838066, abs=PRINTED)


def test_without_any_similarity_the_bias_answers_alone() -> None:
    """softplus(10) for the own pair and twice softplus(-10) for the others."""
    nothing = torch.zeros(3, 3, dtype=torch.float64)
    assert run(objective(0.1, -10.0), nothing, nothing).total == pytest.approx(10.000136, abs=PRINTED)


def test_the_gradient_with_respect_to_cosines_is_probability_minus_answer() -> None:
    cosines = X @ Y.T
    expected = [[(1 / (1 + math.exp(-5 * s + 1)) - (i == j)) * 5 / 3 for j, s in enumerate(row)] for i, row in enumerate(cosines)]
    assert_near(by_cosine(objective(0.2, -1.0), cosines), expected, 1e-12)


@pytest.mark.parametrize(("image_id", "text_id"), [DISTINCT, REPEATED, ([7] * 6, DISTINCT[1])])
@pytest.mark.parametrize("exchange", ["ring", "gather"])
def test_value_and_gradient_against_plain_loops(image_id: list[int], text_id: list[int], exchange: str) -> None:
    """Pairs that share an image or a caption are no question at all."""
    (x, y), siglip = random_pairs(6), objective(0.25, -1.5, exchange=exchange)
    found = run(siglip, x, y, ids(image_id, text_id))
    lists = x.tolist(), y.tolist()
    assert found.total == pytest.approx(naive(*lists, 4.0, -1.5, image_id, text_id), abs=1e-12)
    dx, dy = slopes(lambda x, y: naive(x, y, 4.0, -1.5, image_id, text_id), x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)
    by_log = slope(lambda log: naive(*lists, math.exp(log), -1.5, image_id, text_id), math.log(4))
    by_bias = slope(lambda bias: naive(*lists, 4.0, bias, image_id, text_id), -1.5)
    assert float(siglip.scale.log.grad) == pytest.approx(by_log, abs=1e-8)
    assert float(siglip.bias.grad) == pytest.approx(by_bias, abs=1e-8)


def test_without_the_mask_ids_are_not_read() -> None:
    x, y = random_pairs(6)
    siglip = objective(0.25, -1.5, mask_false_negatives=False)
    expected = naive(x.tolist(), y.tolist(), 4.0, -1.5, *DISTINCT)
    assert run(siglip, x, y, {}).total == pytest.approx(expected, abs=1e-12)
    assert run(siglip, x, y, ids(*REPEATED)).total == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_value_and_gradient_are_those_of_open_clip(dtype: torch.dtype, within: float) -> None:
    x, y = (rows.to(dtype) for rows in random_pairs(16, seed=4, width=8))
    siglip = objective(0.3, -2.0).to(dtype)
    found = run(siglip, x, y)
    parameters = x, y, siglip.scale.log, siglip.bias
    theirs = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    loss = SigLipLoss()(theirs[0], theirs[1], theirs[2].exp(), theirs[3])
    loss.backward()
    assert_near(found.loss.total, loss.detach(), within)
    for own, other in zip((found.dx, found.dy, siglip.scale.log.grad, siglip.bias.grad), theirs, strict=True):
        assert_near(own, other.grad, within)


def test_every_pair_counts_by_itself() -> None:
    """The loss of a batch is that of its pairs one by one, and of its negatives two by two: nothing is normalised over it."""
    x, y = random_pairs(4)
    siglip = objective(0.25, -1.5)
    alone = [run(siglip, x[[i]], y[[i]]).total for i in range(4)]
    total = sum(alone)
    for i in range(4):
        for j in range(i):
            total += 2 * run(siglip, x[[i, j]], y[[i, j]]).total - alone[i] - alone[j]
    assert run(siglip, x, y).total == pytest.approx(total / 4, abs=1e-12)


def test_invariants() -> None:
    x, y = random_pairs(9)
    siglip = objective(0.25, -1.5)
    base = run(siglip, x, y).total
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert run(siglip, x[order], y[order]).total == pytest.approx(base, abs=1e-12)
    assert run(siglip, y, x).total == pytest.approx(base, abs=1e-12)
    assert run(siglip, x @ rotation(), y @ rotation()).total == pytest.approx(base, abs=1e-12)
    assert run(siglip, x[order], y).total != pytest.approx(base, abs=1e-3)


def test_scale_and_bias_are_learned_and_only_the_scale_is_clamped() -> None:
    siglip = objective(0.1, -10.0, max_scale=20.0)
    assert {name for name, p in siglip.named_parameters() if p.requires_grad} == {"scale.log", "bias"}
    siglip.scale.log.data.fill_(5.0)
    siglip.bias.data.fill_(-30.0)
    found = step(siglip, X, Y)
    assert float(siglip.scale().detach()) == pytest.approx(20.0)
    assert float(siglip.bias.detach()) == -30.0
    assert float(found.loss.metrics["temperature"]) == pytest.approx(math.exp(-5.0))
    assert float(found.loss.metrics["bias"]) == -30.0


def test_a_fixed_temperature_leaves_the_bias_to_learn() -> None:
    siglip = objective(0.1, -10.0, learn_temperature=False)
    assert [name for name, p in siglip.named_parameters() if p.requires_grad] == ["bias"]


def test_a_scale_of_a_hundred_stays_finite() -> None:
    x, _ = random_pairs(4)
    found = run(objective(0.01, 50.0).float(), x.float(), -x.float())
    assert all(bool(value.isfinite().all()) for value in (found.loss.total.detach(), found.dx, found.dy))


@pytest.mark.parametrize(("key", "value"), [("temperature", 0.0), ("max_scale", 0.0), ("exchange", "rings"), ("bias", "low")])
def test_a_mistake_in_the_settings_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        SigLipSettings(**{key: value})
