"""CLIP: worked reference values, gradients, invariants, the peer's loss, and rows that are no negatives of one another."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor

from pipelines.dataset.batch import Batch
from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    REPEATED,
    X,
    Y,
    assert_near,
    build,
    by_cosine,
    clip_loss,
    embeddings,
    ids,
    random_pairs,
    rotation,
    run,
    slope,
    slopes,
    step,
    task,
)
from training.objectives.clip import Clip, ClipSettings
from training.objectives.ops import blocks
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.losses import log_blend, log_sums


def objective(temperature: float, **keys: object) -> Clip:
    return build(ClipSettings(temperature=temperature, **keys))


def loss_of(x: Tensor, y: Tensor, temperature: float, batch: Batch | None = None) -> float:
    return run(objective(temperature), x, y, batch).total


@pytest.mark.parametrize(
    ("temperature", "image_to_text", "text_to_image", "total"),
    [(0.5, 0.862561, 0.849806, 0.856183), (0.1, 0.634118, 0.506904, 0.570511), (0.07, 0.679674, 0.471794, 0.575734)],
)
def test_reference_losses(temperature: float, image_to_text: float, text_to_image: float, total: float) -> None:
    scale = torch.tensor(1 / temperature, dtype=torch.float64)
    rows, columns = log_sums(X, Y, scale, scale, Candidates(torch.arange(3)))
    own = scale * (X * Y).sum(1)
    assert float((rows - own).mean()) == pytest.approx(image_to_text, abs=PRINTED)
    assert float((columns - own).mean()) == pytest.approx(text_to_image, abs=PRINTED)
    assert loss_of(X, Y, temperature) == pytest.approx(total, abs=PRINTED)


def test_reference_gradients() -> None:
    """With respect to the normalised rows and to the logarithm of the scale, at temperature 0.5."""
    clip = objective(0.5)
    found = run(clip, X, Y)
    dx = [[-0.140283, 0.204992, -0.140283], [0.273593, -0.212337, 0.273593], [-0.071949, -0.046427, -0.071949]]
    dy = [[-0.253671, 0.215653, 0.200563], [-0.177701, -0.179701, 0.164646], [0.402785, 0.015231, -0.357100]]
    assert_near(found.dx, dx)
    assert_near(found.dy, dy)
    assert float(clip.scale.log.grad) == pytest.approx(-0.182085, abs=PRINTED)


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3])
def test_reference_log_sums_in_tiles(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "PLAIN", 0)
    monkeypatch.setattr(blocks, "BLOCK", 3 * rows_at_a_time)
    scale = torch.tensor(2.0, dtype=torch.float64)
    rows, _ = log_sums(X, Y, scale, scale, Candidates(torch.arange(3)))
    _, columns = log_sums(Y, X, scale, scale, Candidates(torch.arange(3)))
    assert_near(rows, [2.114606, 2.480790, 2.369906])
    assert_near(columns, [2.114606, 2.480790, 2.369906])


def test_two_logarithms_are_blended_without_leaving_them() -> None:
    one, other = torch.tensor([1.3, -0.4], dtype=torch.float64)
    assert float(log_blend(one, other, 0.5)) + math.log(2) == pytest.approx(1.467786, abs=PRINTED)


def test_an_example_worked_by_hand() -> None:
    """S = [[.8, .2], [.4, .6]], temperature .5: row gaps 1.2 and 0.4, column gaps 0.8 and 0.8."""
    cosines, axes = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    rows = (math.log(1 + math.exp(-1.2)) + math.log(1 + math.exp(-0.4))) / 2
    columns = math.log(1 + math.exp(-0.8))
    assert rows == pytest.approx(0.388149, abs=PRINTED) and columns == pytest.approx(0.371101, abs=PRINTED)
    assert loss_of(cosines, axes, 0.5) == pytest.approx((rows + columns) / 2, abs=1e-12)


def test_the_gradient_with_respect_to_cosines_is_prediction_minus_answer() -> None:
    """scale / 2B (P + Q - 2I), P and Q the softmax over rows and over columns."""
    cosines = X @ Y.T
    logits = (cosines / 0.2).tolist()
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            over_texts = math.exp(logits[i][j]) / sum(math.exp(logits[i][k]) for k in range(3))
            over_images = math.exp(logits[i][j]) / sum(math.exp(logits[k][j]) for k in range(3))
            expected[i, j] = (over_texts + over_images - 2 * (i == j)) / (0.2 * 6)
    assert_near(by_cosine(objective(0.2), cosines), expected, 1e-12)


def test_invariants() -> None:
    same = torch.full((7, 4), 0.5, dtype=torch.float64)
    assert loss_of(same, same, 0.07) == pytest.approx(math.log(7), abs=1e-12)
    axes = torch.eye(2, dtype=torch.float64)
    assert loss_of(axes, axes, 1.0) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-12)
    x, y = random_pairs(9)
    base = loss_of(x, y, 0.2)
    assert base > 0
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert loss_of(x[order], y[order], 0.2) == pytest.approx(base, abs=1e-12)
    assert loss_of(y, x, 0.2) == pytest.approx(base, abs=1e-12)
    assert loss_of(x @ rotation(), y @ rotation(), 0.2) == pytest.approx(base, abs=1e-12)
    assert loss_of(x[order], y, 0.2) != pytest.approx(base, abs=1e-3)


def test_the_loss_is_taken_in_single_precision_whatever_surrounds_it() -> None:
    """Rounding cosines to bfloat16 moves a logit at temperature 0.01 by a tenth."""
    x, y = random_pairs(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(0.01).float()(embeddings(x.float(), y.float()), ids(6)).total.detach()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(loss_of(x, y, 0.01), rel=1e-5)


@pytest.mark.parametrize(("image_id", "text_id"), [DISTINCT, REPEATED, ([7] * 6, DISTINCT[1])])
def test_value_and_gradient_against_plain_loops(image_id: list[int], text_id: list[int]) -> None:
    """Pairs that share an image or a caption are no negatives of one another."""
    (x, y), clip = random_pairs(6), objective(0.2)
    found = run(clip, x, y, ids(image_id, text_id))
    assert found.total == pytest.approx(clip_loss(x.tolist(), y.tolist(), 5.0, image_id, text_id), abs=1e-12)
    dx, dy = slopes(lambda x, y: clip_loss(x, y, 5.0, image_id, text_id), x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)
    by_log = slope(lambda log: clip_loss(x.tolist(), y.tolist(), math.exp(log), image_id, text_id), math.log(5))
    assert float(clip.scale.log.grad) == pytest.approx(by_log, abs=1e-8)


def test_without_the_mask_every_other_pair_is_a_negative() -> None:
    x, y = random_pairs(6)
    plain = objective(0.2, mask_false_negatives=False)
    expected = clip_loss(x.tolist(), y.tolist(), 5.0, *DISTINCT)
    assert run(plain, x, y, {}).total == pytest.approx(expected, abs=1e-12)
    assert run(plain, x, y, ids(*REPEATED)).total == pytest.approx(expected, abs=1e-12)
    assert loss_of(x, y, 0.2, ids(*REPEATED)) < expected - 1e-3


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_value_and_gradient_are_those_of_open_clip(dtype: torch.dtype, within: float) -> None:
    x, y = (rows.to(dtype) for rows in random_pairs(16, seed=4, width=8))
    clip = objective(0.3).to(dtype)
    found = run(clip, x, y)
    theirs = [x.clone().requires_grad_(), y.clone().requires_grad_(), clip.scale.log.detach().clone().requires_grad_()]
    loss = ClipLoss()(theirs[0], theirs[1], theirs[2].exp())
    loss.backward()
    assert_near(found.loss.total, loss.detach(), within)
    for own, other in zip((found.dx, found.dy, clip.scale.log.grad), theirs, strict=True):
        assert_near(own, other.grad, within)


def test_the_loss_falls_when_it_is_followed() -> None:
    x, y = (rows.float().requires_grad_() for rows in random_pairs(8))
    clip, batch = objective(0.07).float(), ids(8)
    optimizer = torch.optim.SGD([x, y, *clip.parameters()], lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = clip(embeddings(torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)), batch).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_the_temperature_is_learned_and_clamped() -> None:
    clip, (x, y) = objective(0.07, max_scale=20.0), random_pairs(4)
    found = step(clip, x, y)
    assert float(found.loss.metrics["temperature"]) == pytest.approx(0.07, abs=1e-12)
    assert float(clip.scale().detach()) == pytest.approx(1 / 0.07, rel=1e-12)
    for start, end in ((5.0, 20.0), (-0.5, 1.0)):
        clip.scale.log.data.fill_(start)
        step(clip, x, y)
        assert float(clip.scale().detach()) == pytest.approx(end, rel=1e-12)


def test_the_temperature_starts_where_it_is_asked_to() -> None:
    assert float(ClipSettings(temperature=0.07).build(task()).scale.log.detach()) == pytest.approx(2.659260, abs=1e-6)


def test_a_fixed_temperature_stays_whatever_it_is() -> None:
    clip = objective(2.0, learn_temperature=False)
    assert not any(p.requires_grad for p in clip.parameters())
    step(clip, *random_pairs(3))
    assert float(clip.scale()) == pytest.approx(0.5)


@pytest.mark.parametrize("key", ["temperature", "max_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_temperatures_and_scales_must_be_positive(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n.*greater than 0"):
        ClipSettings(**{key: value})


@pytest.mark.parametrize(("temperature", "max_scale"), [(0.005, 100.0), (1.5, 100.0), (0.5, 1.5), (0.9, 0.5)])
def test_a_learned_temperature_starts_where_it_is_kept(temperature: float, max_scale: float) -> None:
    """Else the first step would move it, whatever was asked for."""
    with pytest.raises(ValueError, match=rf"temperature.*{temperature}.*learn_temperature=false"):
        ClipSettings(temperature=temperature, max_scale=max_scale)
    assert ClipSettings(temperature=temperature, max_scale=max_scale, learn_temperature=False).temperature == temperature
    assert ClipSettings(temperature=0.01, max_scale=100.0).temperature == 0.01
