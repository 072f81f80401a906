"""Zero-shot classification: class vectors and scores against a derivation in plain loops."""

import numpy as np
import pytest

from evaluation import zero_shot
from evaluation.zero_shot import baselines, build_prompts, class_vectors, classify, ensemble, outcome, prompt_sensitivity
from tests.refusals import refused


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
    """Three of class 0 found, the one of class 1 not: 75 % of images, half of the classes. Class 2 has no images."""
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
    # Always saying class 2 is right for one of the three classes that have images.
    assert found["mean_per_class"] == pytest.approx({"chance": 12.5, "largest_class": 100 / 3})
    constant = classify(np.tile(np.eye(8)[2], (10, 1)), np.eye(8), labels)
    assert constant["top1"] == found["top1"]["largest_class"]
    assert constant["mean_per_class"] == pytest.approx(found["mean_per_class"]["largest_class"])
    assert baselines(3, np.array([0, 1, 2]))["top5"] == pytest.approx({"chance": 100.0, "largest_class": 100.0})


def test_prompts_name_every_name_of_every_class_in_both_notations() -> None:
    prompts = build_prompts(["ibis", ("happy", "smiling")], ["a {}", "{c}, yes {c}", "{}"])
    assert prompts.texts == [
        *("a ibis", "ibis, yes ibis", "ibis"),
        *("a happy", "a smiling", "happy, yes happy", "smiling, yes smiling", "happy", "smiling"),
    ]
    assert prompts.class_of.tolist() == [0] * 3 + [1] * 6
    assert prompts.template_of.tolist() == [0, 1, 2, 0, 0, 1, 1, 2, 2]


def test_a_name_keeps_its_hyphens() -> None:
    """CLIP's prompts have 'a photo of a 707-320, a type of aircraft.'"""
    assert build_prompts(["707-320"], ["a {}."]).texts == ["a 707-320."]


@pytest.mark.parametrize(
    ("classes", "templates", "key", "value", "remedy"),
    [
        (["cat"], ["a photo"], "templates", "'a photo'", "{c}"),
        (["cat"], [], "templates", "", "{}"),
        (["cat", []], ["{}"], "classes", "class 1", "at least one"),
    ],
)
def test_mistakes_in_prompts_are_named(classes: list, templates: list[str], key: str, value: str, remedy: str) -> None:
    with refused(key, value, remedy=remedy):
        build_prompts(classes, templates)


def test_classes_of_several_names_are_ensembled_as_plain_loops_do() -> None:
    random = np.random.default_rng(2)
    prompts = build_prompts([["a"], ["b", "c", "d"], ["e", "f"]], ["{}", "x {}"])
    embeddings = random.normal(size=(12, 5)) * random.uniform(0.1, 10, size=(12, 1))
    of_class = [[0, 1], [2, 3, 4, 5, 6, 7], [8, 9, 10, 11]]
    of_second_template = [[1], [5, 6, 7], [10, 11]]
    for template, rows in ((None, of_class), (1, of_second_template)):
        expected = [unit(sum(unit(embeddings[i]) for i in mine) / len(mine)) for mine in rows]
        assert ensemble(prompts, embeddings, template) == pytest.approx(np.stack(expected))


def test_one_name_a_class_gives_the_class_vectors_of_a_full_array() -> None:
    embeddings = np.random.default_rng(3).normal(size=(4, 3, 5))
    prompts = build_prompts(list("abcd"), ["{}", "a {}", "b {}"])
    assert ensemble(prompts, embeddings.reshape(12, 5)) == pytest.approx(class_vectors(embeddings))


def test_prompt_sensitivity_is_the_score_of_each_template_alone() -> None:
    """Template 0 is right about all, 1 swaps the two classes, 2 cannot tell them apart."""
    prompts = build_prompts(["cat", "dog"], ["{}", "no {}", "some {}"])
    embeddings = np.array([[1.0, 0], [0, 1], [1, 1], [0, 1], [1, 0], [1, 1]])
    images, labels = np.eye(2)[[0, 0, 0, 1]], np.array([0, 0, 0, 1])
    found = prompt_sensitivity(images, prompts, embeddings, labels, "top1")
    assert found.scores == (100.0, 0.0, 0.0)
    assert (found.mean, found.sd, found.min, found.max) == pytest.approx((100 / 3, 100 / np.sqrt(3), 0.0, 100.0))
    # By metric, not always top-1: one class of two right.
    half = prompt_sensitivity(np.eye(2)[[0, 0, 0, 0]], prompts, embeddings, labels, "mean_per_class")
    assert half.scores[0] == 50.0
    assert prompt_sensitivity(images, build_prompts(["cat", "dog"], ["{}"]), np.eye(2), labels, "top1").sd is None


def test_blocks_do_not_change_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    classes, images = random.normal(size=(6, 8)), random.normal(size=(50, 8))
    labels = random.integers(0, 6, 50)
    whole = outcome(images, classes, labels)
    monkeypatch.setattr(zero_shot, "_BLOCK", 7)
    parts = outcome(images, classes, labels)
    assert parts.ranks.tolist() == whole.ranks.tolist() and parts.predicted.tolist() == whole.predicted.tolist()
    assert whole.predicted.tolist() == np.argmax(images @ classes.T, axis=1).tolist()


@pytest.mark.parametrize(
    ("images", "labels", "key", "named", "remedy"),
    [
        (np.eye(3), np.array([0, 1]), "labels", [2, 3], "each image"),
        (np.eye(3), np.array([0, 1, 3]), "labels", [3], "0 to 2"),
        (np.eye(3), np.array([0, -1, 2]), "labels", [-1], "0 to 2"),
        (np.eye(3), np.array([0.0, 1.0, 2.0]), "labels", ["float64"], "integers"),
        (np.ones((3, 4)), np.array([0, 1, 2]), "embedder", ["4 wide", 3], "one space"),
    ],
)
def test_labels_and_widths_that_do_not_fit_are_named(
    images: np.ndarray, labels: np.ndarray, key: str, named: list, remedy: str
) -> None:
    with refused(key, *named, remedy=remedy):
        classify(images, np.eye(3), labels)


def test_an_embedder_that_loses_a_prompt_is_named() -> None:
    with refused("embedder", "3 rows", "4 prompts", remedy="each prompt"):
        ensemble(build_prompts(["a", "b"], ["{}", "x {}"]), np.eye(3))
