"""Zero-shot classification: class vectors and scores against a derivation in plain loops."""

import numpy as np
import pytest

from evaluation.zero_shot import baselines, class_vectors, classify


def unit(row: np.ndarray) -> np.ndarray:
    return row / np.sqrt(sum(x * x for x in row))


def test_prompts_are_normalised_averaged_and_normalised_again() -> None:
    random = np.random.default_rng(0)
    prompts = random.normal(size=(4, 3, 5)) * random.uniform(0.1, 10, size=(4, 3, 1))
    found = class_vectors(prompts)
    for c in range(4):
        expected = unit(sum(unit(row) for row in prompts[c]) / 3)
        assert found[c] == pytest.approx(expected)
    # A long prompt does not count more, and without the second normalisation vectors would be shorter than one.
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(4))


def test_scores_agree_with_plain_loops() -> None:
    random = np.random.default_rng(1)
    classes = np.stack([unit(row) for row in random.normal(size=(12, 6))])
    labels = random.choice(12, size=200, p=np.arange(1, 13) / 78)
    images = np.stack([unit(classes[label] + 0.7 * random.normal(size=6)) for label in labels])
    ranking = [sorted(range(12), key=lambda c, row=row: -(row @ classes[c])) for row in images]
    top1 = [order[0] == label for order, label in zip(ranking, labels, strict=True)]
    top5 = [label in order[:5] for order, label in zip(ranking, labels, strict=True)]
    recall = [np.mean([hit for hit, label in zip(top1, labels, strict=True) if label == c]) for c in set(labels.tolist())]
    found = classify(images, classes, labels)
    assert found == pytest.approx(
        {"top1": 100 * np.mean(top1), "top5": 100 * np.mean(top5), "mean_per_class": 100 * np.mean(recall)}
    )
    assert 20 < found["top1"] < 95


def test_a_rare_class_weighs_as_much_as_a_frequent_one_in_the_mean_per_class() -> None:
    """Three of class 0 found, the one of class 1 not: 75 % of pictures, half of the classes. Class 2 has no pictures."""
    classes = np.eye(3)
    images = np.eye(3)[[0, 0, 0, 0]]
    assert classify(images, classes, np.array([0, 0, 0, 1])) == {"top1": 75.0, "top5": 100.0, "mean_per_class": 50.0}


def test_ties_and_nan_count_against_the_model() -> None:
    same = np.ones((7, 2)) / np.sqrt(2)
    assert classify(same[:3], same, np.array([0, 1, 2])) == {"top1": 0.0, "top5": 0.0, "mean_per_class": 0.0}
    images = np.array([[1.0, 0.0], [np.nan, np.nan]])
    assert classify(images, np.eye(2), np.array([0, 0]))["top1"] == 50.0
    classes = np.array([[1.0, 0.0], [np.nan, 0.0]])
    assert classify(images[:1], classes, np.array([0]))["top1"] == 0.0


def test_baselines_are_the_uniform_and_the_best_constant_guess() -> None:
    labels = np.array([2] * 5 + [0] * 3 + [1] * 2)
    found = baselines(8, labels)
    assert found["top1"] == pytest.approx({"chance": 12.5, "largest_class": 50.0})
    assert found["top5"] == pytest.approx({"chance": 62.5, "largest_class": 100.0})
    # Always saying class 2 is right for one of the three classes that have pictures.
    assert found["mean_per_class"] == pytest.approx({"chance": 12.5, "largest_class": 100 / 3})
    constant = classify(np.tile(np.eye(8)[2], (10, 1)), np.eye(8), labels)
    assert constant["top1"] == found["top1"]["largest_class"]
    assert constant["mean_per_class"] == pytest.approx(found["mean_per_class"]["largest_class"])
    assert baselines(3, np.array([0, 1, 2]))["top5"] == pytest.approx({"chance": 100.0, "largest_class": 100.0})
