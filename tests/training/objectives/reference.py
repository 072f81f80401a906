"""What objectives are held against: a batch of three pairs, random pairs, and plain loops over floats.

The numbers that tests of objectives give for X, Y, A and M were worked by hand in float64.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.objectives.base import Embeddings, Loss, Objective, ObjectiveSettings, Task

PRINTED = 6e-7  # half a unit of the last of six digits, and a little
Rows = list[list[float]]


def unit(rows: Rows) -> Tensor:
    """float64, each row of length 1."""
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64))


X = unit([[1, 0, 0], [1, 1, 0], [0, 1, 2]])  # images
Y = unit([[1, 0, 1], [0, 1, 0], [1, 1, 1]])  # texts
A = unit([[3, 1, 0], [1, 2, 1], [1, 1, 3]])  # other views of the images
M = unit([[2, 0, 1], [1, 2, 0], [0, 1, 1]])  # a teacher's images

DISTINCT = ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])  # images, captions
REPEATED = ([0, 0, 2, 3, 4, 3], [0, 1, 2, 2, 4, 5])


def ids(image_id: list[int] | int, text_id: list[int] | None = None) -> Batch:
    """Of images and captions; a number stands for as many pairs that are all different."""
    images = list(range(image_id)) if isinstance(image_id, int) else image_id
    return {"image_id": torch.tensor(images), "text_id": torch.tensor(images if text_id is None else text_id)}


def taught(batch: Batch, images: Tensor, texts: Tensor) -> Batch:
    """With a teacher's columns."""
    return {**batch, "teacher_image": images, "teacher_text": texts}


def task(**changes: Any) -> Task:
    """A small run."""
    sizes = {"num_images": 10, "num_texts": 10, "embed_dim": 5, "image_width": 5}
    return Task(**sizes | {"steps_per_epoch": 10, "total_steps": 100, "seed": 0} | changes)


def build(settings: ObjectiveSettings, **changes: int) -> Any:
    """The objective in float64, its logit scale exact."""
    objective = settings.build(task(**changes)).double()
    if hasattr(objective, "scale"):
        objective.scale.log.data.fill_(-math.log(settings.temperature))
    return objective


def embeddings(x: Tensor, y: Tensor) -> Embeddings:
    """The rows as unit rows and as projections."""
    return Embeddings(x, y, x, y)


def random_pairs(rows: int, seed: int = 0, width: int = 5) -> tuple[Tensor, Tensor]:
    """float64 unit rows."""
    x, y = torch.randn(2, rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).unbind()
    return torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)


def rotation(width: int = 5) -> Tensor:
    """An orthogonal matrix."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q


class Outcome(NamedTuple):
    """Of one forward and backward."""

    total: float
    dx: Tensor
    dy: Tensor
    loss: Loss


def run(objective: Objective, x: Tensor, y: Tensor, batch: Batch | None = None) -> Outcome:
    """Loss and gradients, those of the objective's parameters in their `grad`; all pairs are different without a batch."""
    x, y = x.detach().clone().requires_grad_(), y.detach().clone().requires_grad_()
    objective.zero_grad()
    loss = objective(embeddings(x, y), ids(len(x)) if batch is None else batch)
    loss.total.backward()
    assert x.grad is not None and y.grad is not None
    return Outcome(float(loss.total.detach()), x.grad, y.grad, loss)


def step(objective: Objective, x: Tensor, y: Tensor, batch: Batch | None = None) -> Outcome:
    """The same, and the objective's update."""
    found = run(objective, x, y, batch)
    objective.update(ids(len(x)) if batch is None else batch, found.loss)
    return found


def by_cosine(objective: Objective, cosines: Tensor, batch: Batch | None = None) -> Tensor:
    """Gradient with respect to the cosine of each image (row) and text: texts that are axes make cosines of coordinates."""
    return run(objective, cosines, torch.eye(len(cosines), dtype=cosines.dtype), batch).dx


def assert_near(found: Tensor, expected: Any, within: float = PRINTED) -> None:
    """Every entry."""
    torch.testing.assert_close(found.detach(), torch.as_tensor(expected, dtype=found.dtype), atol=within, rtol=0)


def slopes(value: Callable[[Rows, Rows], float], x: Tensor, y: Tensor, h: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Gradient of a function of images and texts by central differences."""
    found = torch.zeros(2, *x.shape, dtype=torch.float64)
    for side, row, column in product(range(2), *map(range, x.shape)):
        for sign in (1, -1):
            moved = [x.tolist(), y.tolist()]
            moved[side][row][column] += sign * h
            found[side, row, column] += sign * value(*moved) / (2 * h)
    return found[0], found[1]


def slope(value: Callable[[float], float], at: float, h: float = 1e-5) -> float:
    """Derivative of a function of a number by a central difference."""
    return (value(at + h) - value(at - h)) / (2 * h)


def dot(one: list[float], other: list[float]) -> float:
    return sum(p * q for p, q in zip(one, other, strict=True))


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(logit) for logit in logits)
    return [math.exp(logit) / total for logit in logits]


def cross_entropy(target: list[float], logits: list[float]) -> float:
    return -sum(t * math.log(p) for t, p in zip(target, softmax(logits), strict=True))


def rivals(image_id: list[int], text_id: list[int]) -> list[list[int]]:
    """Of each row, the rows with another image and another caption."""
    rows = range(len(image_id))
    return [[j for j in rows if image_id[i] != image_id[j] and text_id[i] != text_id[j]] for i in rows]


def clip_loss(x: Rows, y: Rows, scale: float, image_id: list[int], text_id: list[int]) -> float:
    """Symmetric InfoNCE, a row's own pair first among its candidates."""
    total = 0.0
    for i, others in enumerate(rivals(image_id, text_id)):
        for one, other in ((x, y), (y, x)):
            logits = [scale * dot(one[i], other[j]) for j in [i, *others]]
            total += cross_entropy([1.0] + [0.0] * len(others), logits)
    return total / (2 * len(x))


class Anchor(NamedTuple):
    """An image (side 0) or a text (side 1) that has negatives, in the global contrast."""

    side: int
    row: int
    id: int
    temperature: float
    negatives: list[int]
    h: list[float]  # of every negative, (its cosine - the own one) / temperature, the difference in its `shape`
    g: float  # mean of exp h
    u: float  # the updated running estimate of g
    weights: list[float]  # of every negative in the gradient


def gaps(x: Rows, y: Rows, side: int, row: int, negatives: list[int]) -> list[float]:
    """Cosine with each negative less that with the own partner."""
    one, other = ((x, y), (y, x))[side]
    return [dot(one[row], other[j]) - dot(one[row], other[row]) for j in negatives]


def _as_it_is(gap: float) -> float:
    return gap


def anchors(
    pairs: tuple[Tensor, Tensor],
    pair_ids: tuple[list[int], list[int]],
    temperature: Callable[[int, int], float],
    memory: list[dict[int, float]],
    gamma: float,
    epsilon: float,
    shape: Callable[[float], float] = _as_it_is,
) -> list[Anchor]:
    """One step of SogCLR; `temperature` of a side and an id; `memory` holds the u of each side that are there.

    `shape`: what a gap enters as.
    """
    x, y = (rows.tolist() for rows in pairs)
    found = []
    for side, row in product(range(2), range(len(x))):
        negatives, own = rivals(*pair_ids)[row], pair_ids[side][row]
        if not negatives:
            continue
        t = temperature(side, own)
        h = [shape(gap) / t for gap in gaps(x, y, side, row, negatives)]
        g = sum(math.exp(v) for v in h) / len(h)
        u = (1 - gamma) * memory[side][own] + gamma * g if own in memory[side] else g
        weights = [math.exp(v) / (epsilon + u) / len(h) for v in h]
        found.append(Anchor(side, row, own, t, negatives, h, g, u, weights))
    return found


def surrogate(x: Rows, y: Rows, found: list[Anchor], shape: Callable[[float], float] = _as_it_is) -> float:
    """The loss of which the gradient is followed: mean over rows of weighted gaps, at fixed weights."""
    return sum(dot(a.weights, [*map(shape, gaps(x, y, a.side, a.row, a.negatives))]) for a in found) / len(x)


def remember(memory: list[dict[int, float]], found: list[tuple[int, int, float]]) -> None:
    """Write (side, id, value); what is there twice is averaged."""
    for side, own in {(side, own) for side, own, _ in found}:
        values = [value for s, o, value in found if (s, o) == (side, own)]
        memory[side][own] = sum(values) / len(values)


def batches_of_a_run(
    steps: int, rows: int = 6, samples: int = 8
) -> list[tuple[tuple[list[int], list[int]], tuple[Tensor, Tensor]]]:
    """Ids in random order, many of them again and some twice in a batch, and pairs; one batch shows a single image."""
    random, found = torch.Generator().manual_seed(5), []
    for at in range(steps):
        image_id, text_id = torch.randint(samples, (2, rows), generator=random).tolist()
        found.append((([3] * rows if at == 2 else image_id, text_id), random_pairs(rows, seed=at)))
    return found


def assert_remembers(found: Any, memory: list[dict[int, float]], within: float = 1e-10) -> None:
    """The logarithms of both sides, -inf for what was never seen."""
    for array, side in zip((found.image, found.text), memory, strict=True):
        assert_near(array, [math.log(side[own]) if own in side else -math.inf for own in range(len(array))], within)
