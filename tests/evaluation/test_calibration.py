"""Calibration error by hand, against plain loops, and of classifiers whose calibration is known."""

import math

import numpy as np
import pytest

from evaluation import calibration as module
from evaluation.calibration import calibration, zero_shot_calibration
from tests.refusals import refused


def test_by_hand_with_bins_closed_above() -> None:
    """Of 15 bins, (9/15, 10/15] has 0.61 and 2/3, and (14/15, 1] has the rest; 2/3 lies on an edge."""
    found = calibration(np.array([0.61, 10 / 15, 0.95, 1.0]), np.array([True, False, True, True]))
    filled = {round(b.high * 15 / 100): b for b in found.bins if b.count}
    assert {k: b.count for k, b in filled.items()} == {10: 2, 15: 2}
    assert (filled[10].accuracy, filled[15].accuracy) == (50.0, 100.0)
    assert filled[10].confidence == pytest.approx(100 * (0.61 + 2 / 3) / 2)
    assert found.error == pytest.approx(0.5 * abs(50 - 100 * (0.61 + 2 / 3) / 2) + 0.5 * 2.5)
    assert (found.accuracy, found.confidence) == pytest.approx((75.0, 100 * (0.61 + 2 / 3 + 1.95) / 4))
    assert [b.low for b in found.bins] == pytest.approx([100 * i / 15 for i in range(15)])
    empty = found.bins[0]
    assert (empty.count, empty.confidence, empty.accuracy) == (0, None, None)


def test_whoever_is_right_as_often_as_sure_has_no_error_and_the_overconfident_has() -> None:
    random = np.random.default_rng(0)
    sure = random.uniform(0.2, 1.0, 100_000)
    assert calibration(sure, random.uniform(size=100_000) < sure).error < 0.7
    assert calibration(sure, random.uniform(size=100_000) < sure - 0.2).error == pytest.approx(20, abs=0.7)


@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_zero_shot_agrees_with_plain_loops(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 64)
    random = np.random.default_rng(1)
    classes = random.normal(size=(7, 9))
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    labels = random.integers(0, 7, 300)
    images = classes[labels] + 0.5 * random.normal(size=(300, 9))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    inside: dict[int, list[tuple[float, bool]]] = {}
    for image, label in zip(images, labels, strict=True):
        weights = [math.exp(scale * sum(image * c)) for c in classes]
        p = max(weights) / sum(weights)
        inside.setdefault(math.ceil(15 * p), []).append((p, weights.index(max(weights)) == label))
    gaps = [abs(sum(p for p, _ in group) - sum(right for _, right in group)) for group in inside.values()]
    found = zero_shot_calibration(images, classes, labels, scale)
    assert found.error == pytest.approx(100 * sum(gaps) / 300, abs=1e-3)
    assert {round(b.high * 15 / 100): b.count for b in found.bins if b.count} == {k: len(g) for k, g in inside.items()}
    assert found.error > 5


def test_what_has_no_probability_is_named() -> None:
    spoilt = np.array([[1.0, 0.0], [np.nan, 0.0]])
    with refused("images", "1 of 2", remedy="embedder"):
        zero_shot_calibration(spoilt, np.eye(2), np.array([0, 1]), 100.0)
    with refused("classes", "1 of 2", remedy="embedder"):
        zero_shot_calibration(np.eye(2), spoilt, np.array([0, 1]), 100.0)
    with refused("scale", 0, remedy="1 / temperature"):
        zero_shot_calibration(np.eye(2), np.eye(2), np.array([0, 1]), 0)
