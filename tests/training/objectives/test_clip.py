"""CLIP: worked reference values, gradients, invariants, and rows that are no negatives of one another."""

import copy
import math

import pytest
import torch
from torch import Tensor

from pipelines.batch import Batch
from training.objectives.base import Embeddings
from training.objectives.clip import Clip, ClipSettings
from training.objectives.functional import info_nce, same_pair

X = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 2]], dtype=torch.float64))
Y = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.float64))


def batch_of(image_id: list[int], text_id: list[int]) -> Batch:
    return {"image_id": torch.tensor(image_id), "text_id": torch.tensor(text_id)}


def objective(temperature: float, **keys: object) -> Clip:
    return ClipSettings(temperature=temperature, **keys).build(num_samples=100)


def loss_of(x: Tensor, y: Tensor, temperature: float, batch: Batch | None = None) -> Tensor:
    batch = batch or batch_of(list(range(len(x))), list(range(len(x))))
    return objective(temperature)(Embeddings(x.float(), y.float()), batch).total.detach()


@pytest.mark.parametrize(
    ("temperature", "image_to_text", "text_to_image", "total"),
    [(0.5, 0.862561, 0.849806, 0.856183), (0.1, 0.634118, 0.506904, 0.570511), (0.07, 0.679674, 0.471794, 0.575734)],
)
def test_reference_losses(temperature: float, image_to_text: float, text_to_image: float, total: float) -> None:
    targets, scale = torch.arange(3), torch.tensor(1 / temperature)
    assert float(info_nce(X, Y, targets, scale)) == pytest.approx(image_to_text, abs=2e-6)
    assert float(info_nce(Y, X, targets, scale)) == pytest.approx(text_to_image, abs=2e-6)
    assert float(loss_of(X, Y, temperature)) == pytest.approx(total, abs=2e-6)


def test_reference_gradients() -> None:
    """With respect to the normalised rows and to the logarithm of the scale, at temperature 0.5."""
    x, y = X.float().requires_grad_(), Y.float().requires_grad_()
    clip = objective(0.5)
    clip(Embeddings(x, y), batch_of([0, 1, 2], [0, 1, 2])).total.backward()
    dx = [[-0.140283, 0.204992, -0.140283], [0.273593, -0.212337, 0.273593], [-0.071949, -0.046427, -0.071949]]
    dy = [[-0.253671, 0.215653, 0.200563], [-0.177701, -0.179701, 0.164646], [0.402785, 0.015231, -0.357100]]
    assert x.grad is not None and y.grad is not None and clip.scale.log.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor(dx), atol=2e-6, rtol=0)
    torch.testing.assert_close(y.grad, torch.tensor(dy), atol=2e-6, rtol=0)
    assert float(clip.scale.log.grad) == pytest.approx(-0.182085, abs=2e-6)


def test_an_example_worked_by_hand() -> None:
    """S = [[.8, .2], [.4, .6]], temperature .5: row gaps 1.2 and 0.4, column gaps 0.8 and 0.8."""
    scores, axes, targets, scale = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.eye(2), torch.arange(2), torch.tensor(2.0)
    rows = (math.log(1 + math.exp(-1.2)) + math.log(1 + math.exp(-0.4))) / 2
    assert rows == pytest.approx(0.388149, abs=1e-6)
    assert float(info_nce(scores, axes, targets, scale)) == pytest.approx(rows, abs=1e-6)
    assert float(info_nce(scores.T, axes, targets, scale)) == pytest.approx(math.log(1 + math.exp(-0.8)), abs=1e-6)


def random_pairs(rows: int, seed: int = 0, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, width, generator=generator, dtype=torch.float64).unbind()
    return torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)


def test_invariants() -> None:
    same = torch.full((7, 4), 0.5)
    assert float(loss_of(same, same, 0.07)) == pytest.approx(math.log(7), abs=1e-5)
    assert float(loss_of(torch.eye(2), torch.eye(2), 1.0)) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    x, y = random_pairs(9)
    base = float(loss_of(x, y, 0.2))
    assert base > 0
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert float(loss_of(x[order], y[order], 0.2)) == pytest.approx(base, abs=1e-5)
    assert float(loss_of(y, x, 0.2)) == pytest.approx(base, abs=1e-6)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    assert float(loss_of(x @ rotation, y @ rotation, 0.2)) == pytest.approx(base, abs=1e-5)
    assert float(loss_of(x[order], y, 0.2)) != pytest.approx(base, abs=1e-3)


def test_the_loss_is_taken_in_single_precision_whatever_surrounds_it() -> None:
    """Rounding cosines to bfloat16 moves a logit at temperature 0.01 by a tenth."""
    x, y = random_pairs(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(0.01)(Embeddings(x.float(), y.float()), batch_of(list(range(6)), list(range(6)))).total.detach()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(loss_of(x, y, 0.01)), rel=1e-5)


def naive_loss(x: Tensor, y: Tensor, temperature: float, image_id: list[int], text_id: list[int]) -> float:
    """Both directions in plain loops; pair (i, j) is left out where i and j share a picture or a caption."""
    total, rows = 0.0, len(x)
    for i in range(rows):
        rivals = [j for j in range(rows) if j == i or (image_id[i] != image_id[j] and text_id[i] != text_id[j])]
        for one, other in ((x, y), (y, x)):
            logits = [float(one[i] @ other[j]) / temperature for j in rivals]
            total += math.log(sum(math.exp(v) for v in logits)) - float(one[i] @ other[i]) / temperature
    return total / (2 * rows)


@pytest.mark.parametrize(
    ("image_id", "text_id"),
    [([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]), ([0, 0, 2, 3, 4, 3], [0, 1, 2, 2, 4, 5]), ([7] * 6, [0, 1, 2, 3, 4, 5])],
)
def test_pairs_that_share_a_picture_or_a_caption_are_no_negatives(image_id: list[int], text_id: list[int]) -> None:
    x, y = random_pairs(6)
    batch = batch_of(image_id, text_id)
    assert float(loss_of(x, y, 0.2, batch)) == pytest.approx(naive_loss(x, y, 0.2, image_id, text_id), abs=1e-5)
    plain = (
        ClipSettings(temperature=0.2, mask_false_negatives=False).build(1)(Embeddings(x.float(), y.float()), {}).total.detach()
    )
    apart = list(range(6))
    assert float(plain) == pytest.approx(naive_loss(x, y, 0.2, apart, apart), abs=1e-5)


def test_the_mask_against_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(3)
    image_id, text_id = torch.randint(0, 5, (2, 12), generator=generator).unbind()
    # This worker holds rows 4 to 7 of twelve.
    targets = torch.arange(4, 8)
    mask = same_pair(image_id[4:8], text_id[4:8], image_id, text_id, targets)
    for i in range(4):
        for j in range(12):
            expected = j != i + 4 and bool(image_id[i + 4] == image_id[j] or text_id[i + 4] == text_id[j])
            assert bool(mask[i, j]) == expected


def test_the_loss_falls_when_it_is_followed() -> None:
    x, y = (rows.float().requires_grad_() for rows in random_pairs(8))
    clip, batch = objective(0.07), batch_of(list(range(8)), list(range(8)))
    optimizer = torch.optim.SGD([x, y, *clip.parameters()], lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = clip(Embeddings(torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)), batch).total
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_the_temperature_is_learned_and_clamped() -> None:
    clip = ClipSettings(temperature=0.07, max_scale=20.0).build(1)
    x, y = (rows.float() for rows in random_pairs(4))
    batch = batch_of([0, 1, 2, 3], [0, 1, 2, 3])
    assert float(clip.scale.log.detach()) == pytest.approx(math.log(1 / 0.07), abs=1e-6)
    assert float(clip(Embeddings(x, y), batch).metrics["temperature"]) == pytest.approx(0.07, abs=1e-6)
    clip.update(Embeddings(x, y), batch)
    assert float(clip.scale().detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    for start, end in ((5.0, 20.0), (-0.5, 1.0)):
        with torch.no_grad():
            clip.scale.log.fill_(start)
        clip.update(Embeddings(x, y), batch)
        assert float(clip.scale().detach()) == pytest.approx(end, rel=1e-5)


def test_a_fixed_temperature_stays_whatever_it_is() -> None:
    clip = ClipSettings(temperature=2.0, learn_temperature=False).build(1)
    assert not any(p.requires_grad for p in clip.parameters())
    x, y = (rows.float() for rows in random_pairs(3))
    clip.update(Embeddings(x, y), batch_of([0, 1, 2], [0, 1, 2]))
    assert float(clip.scale()) == pytest.approx(0.5)


def test_forward_can_be_replayed() -> None:
    clip = objective(0.1)
    x, y = (rows.float() for rows in random_pairs(5))
    batch = batch_of([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    before = copy.deepcopy(clip.state_dict())
    losses = {float(clip(Embeddings(x, y), batch).total.detach()) for _ in range(3)}
    assert len(losses) == 1
    assert before.keys() == clip.state_dict().keys() and all(torch.equal(before[k], v) for k, v in clip.state_dict().items())


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        ClipSettings(temperature=temperature)
