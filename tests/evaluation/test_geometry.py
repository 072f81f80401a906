"""Gap, alignment and uniformity: known values on the sphere and plain double loops."""

import math

import numpy as np
import pytest

from evaluation import geometry
from evaluation.geometry import alignment, modality_gap, uniformity
from tests.refusals import refused


def unit(rows: np.ndarray) -> np.ndarray:
    return np.stack([row / math.sqrt(sum(x * x for x in row)) for row in rows])


@pytest.fixture
def pairs() -> tuple[np.ndarray, np.ndarray]:
    """Not normalised: lengths must not matter."""
    random = np.random.default_rng(0)
    images = random.normal(size=(50, 6)) * random.uniform(0.1, 10, size=(50, 1))
    return images, images + random.normal(size=(50, 6)) + np.arange(6)


def test_known_values() -> None:
    axes, same = np.eye(4), np.ones((3, 4))
    assert modality_gap(same, -same) == pytest.approx(2.0) and modality_gap(axes, axes[::-1]) == pytest.approx(0.0)
    assert modality_gap(axes[:2], axes[2:3]) == pytest.approx(math.sqrt(0.5**2 + 0.5**2 + 1))
    assert alignment(axes, axes) == 0.0 and alignment(axes, -axes) == pytest.approx(4.0)
    assert alignment(axes, axes[::-1]) == pytest.approx(2.0)
    assert uniformity(same) == pytest.approx(0.0) and uniformity(axes) == pytest.approx(-4.0)
    assert uniformity(np.array([[1.0, 0], [-1, 0]])) == pytest.approx(-8.0)


def test_they_agree_with_plain_loops(pairs: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = pairs
    x, y = unit(images), unit(texts)
    gap = [sum(row[d] for row in x) / 50 - sum(row[d] for row in y) / 50 for d in range(6)]
    assert modality_gap(images, texts) == pytest.approx(math.sqrt(sum(g * g for g in gap)))
    distances = [sum((a - b) ** 2) for a, b in zip(x, y, strict=True)]
    assert alignment(images, texts) == pytest.approx(sum(distances) / 50)
    kernel = [math.exp(-2 * sum((x[i] - x[j]) ** 2)) for i in range(50) for j in range(i)]
    for block in (1024, 25, 7):
        monkeypatch.setattr(geometry, "_BLOCK", block)
        assert uniformity(images) == pytest.approx(math.log(sum(kernel) / len(kernel)))


def test_what_has_no_geometry_is_named(pairs: tuple[np.ndarray, np.ndarray]) -> None:
    images, texts = pairs
    with refused("alignment", 50, 49, remedy="pairs"):
        alignment(images, texts[1:])
    images[3, 2] = np.nan
    with refused("images", "1 of 50 rows", remedy="finite"):
        modality_gap(images, texts)
    with refused("rows", "1 of 50 rows", remedy="finite"):
        uniformity(images)
    with refused("uniformity", 1, remedy="two"):
        uniformity(texts[:1])
