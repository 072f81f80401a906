"""From scores to measures: predictions, classes without images, and the worst classes, by hand."""

import numpy as np

from evaluation.classification import intervals, judge, measures, result, worst_classes
from tests.refusals import refused

NAN = float("nan")


def test_a_image_is_taken_for_the_best_class_that_is_not_below_the_right_one() -> None:
    scores = np.array(
        [
            [0.9, 0.1, 0.2],  # right
            [0.3, 0.1, 0.2],  # class 1, taken for 0
            [0.5, 0.1, 0.5],  # class 2, ties with 0: taken for it
            [NAN, 0.4, 0.2],  # class 0 has no score: taken for 1
            [NAN, 0.4, 0.2],  # class 1 is best of those with a score, but NaN counts against it: taken for nothing
            [NAN, NAN, NAN],
        ]
    )
    found = judge(scores, np.array([0, 1, 2, 0, 1, 2]))
    assert found.ranks.tolist() == [0, 2, 1, 3, 1, 3]
    assert found.predicted.tolist() == [0, 0, 0, 1, -1, -1]


def test_the_worst_classes_and_what_they_are_taken_for() -> None:
    names = ["cat", "dog", "fox", "owl"]
    predicted = [*(0, 0, 0, 1), *(0, 0, 2, 1), *(2, 2)]  # of 4 cats, 4 dogs, 2 foxes; no owl
    labels = np.array([0] * 4 + [1] * 4 + [2] * 2)
    found = judge(np.eye(4)[predicted], labels)
    worst = worst_classes(found, names, k=2)
    assert [(w.name, w.images, w.recall) for w in worst] == [("dog", 4, 25.0), ("cat", 4, 75.0)]
    assert worst[0].taken_for == [("cat", 50.0), ("fox", 25.0)]
    assert worst[1].taken_for == [("dog", 25.0)]
    # An image that nothing can be compared for is missed, but taken for no class.
    (lost,) = worst_classes(judge(np.full((1, 4), NAN), np.array([2])), names)
    assert (lost.name, lost.recall, lost.taken_for) == ("fox", 0.0, [])


def test_a_class_without_images_is_named_and_left_out_of_the_mean() -> None:
    names = ["cat", "dog", "fox", "owl"]
    found = judge(np.eye(4)[[0, 0, 2]], np.array([0, 0, 2]))
    told = result(found, names, "mean_per_class")
    assert told.without_images == ["dog", "owl"]
    assert told.scores["mean_per_class"] == 100.0 and told.intervals["mean_per_class"][1] == 100.0
    assert told.intervals["mean_per_class"][0] < 60, "three images are no proof that all are right"
    assert (told.num_images, told.num_classes) == (3, 4)


def test_intervals_hold_the_scores_they_are_of() -> None:
    random = np.random.default_rng(0)
    labels = random.choice(9, size=500, p=np.arange(1, 10) / 45)
    found = judge(random.normal(size=(500, 9)) + 1.5 * np.eye(9)[labels], labels)
    scores = measures(found)
    for name, (low, high) in intervals(found).items():
        assert low < scores[name] < high and 2 < high - low < 15


def test_mistakes_are_named() -> None:
    found = judge(np.eye(2), np.array([0, 1]))
    with refused("metric", "'accuracy'", remedy="top1, top5, mean_per_class"):
        result(found, ["a", "b"], "accuracy")
    empty = judge(np.empty((0, 2)), np.array([], dtype=int))
    with refused("labels", "no image", remedy="split"):
        result(empty, ["a", "b"], "top1")
