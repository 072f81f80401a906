"""Measures of a classification from the scores of its classes, for zero-shot classification and probes.

Ties and NaN count against the model, so that a collapsed model scores 0 and not 100. A class without test images has no recall:
`mean_per_class` averages over the other classes, and the result names those left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.bootstrap import interval
from pipelines.program.errors import UserError

METRICS = ("top1", "top5", "mean_per_class")


@dataclass(frozen=True)
class Outcome:
    """Rank of the right class and predicted class of each image."""

    labels: np.ndarray  # int64 [n]
    ranks: np.ndarray  # int64 [n]: classes that do not score strictly less than the right one; all classes if that is NaN
    predicted: np.ndarray  # int64 [n]: the right class at rank 0, else the best wrong one; -1 where all of those are NaN
    num_classes: int


@dataclass(frozen=True)
class Worst:
    """A class with low recall, and the classes predicted for its images."""

    name: str
    images: int
    recall: float  # percent
    taken_for: list[tuple[str, float]]  # wrong classes and the percentage of its images, most frequent first


@dataclass(frozen=True)
class SetResult:
    """Scores of one classification set, in percent."""

    metric: str  # the main score
    scores: dict[str, float]  # by METRICS
    intervals: dict[str, tuple[float, float]]  # 95 %, over images
    num_images: int
    num_classes: int
    without_images: list[str]  # classes without test images, which mean_per_class leaves out
    worst: list[Worst]


def check(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Raises `UserError` unless each image has one label in [0, num_classes)."""
    if len(labels) != len(images):
        raise UserError("labels", f"{len(labels)} for {len(images)} images", "give one for each image, in the same order")
    if not np.issubdtype(np.asarray(labels).dtype, np.integer):
        raise UserError("labels", f"their type is {np.asarray(labels).dtype}", "give positions of classes, as integers")
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if len(outside):
        raise UserError("labels", f"{outside[0]} is not a class", f"number the {num_classes} classes from 0 to {num_classes - 1}")


def judge(scores: np.ndarray, labels: np.ndarray) -> Outcome:
    """Ranks and predictions from scores.

    Args:
        scores: float [n, C], higher is likelier; labels: int [n] in [0, C).
    """
    rows = np.arange(len(labels))
    right = scores[rows, labels]
    not_below = ~(scores < right[:, None])
    not_below[rows, labels] = False
    ranks = np.where(np.isnan(right), scores.shape[1], not_below.sum(axis=1))
    wrong = np.where(np.isnan(scores), -np.inf, scores)
    wrong[rows, labels] = -np.inf
    best_wrong = wrong.argmax(axis=1)
    best = wrong[rows, best_wrong]
    comparable = (best > -np.inf) & ~(best < right)
    predicted = np.where(ranks == 0, labels, np.where(comparable, best_wrong, -1))
    return Outcome(np.asarray(labels, dtype=np.int64), ranks.astype(np.int64), predicted.astype(np.int64), scores.shape[1])


def measures(outcome: Outcome) -> dict[str, float]:
    """In percent: `top1`, `top5`, and `mean_per_class`, the mean recall over the classes that have images."""
    hit = outcome.ranks < 1
    per_class = [hit[outcome.labels == c].mean() for c in np.unique(outcome.labels)]
    return {
        "top1": 100.0 * float(hit.mean()),
        "top5": 100.0 * float((outcome.ranks < 5).mean()),
        "mean_per_class": 100.0 * float(np.mean(per_class)),
    }


def intervals(outcome: Outcome, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of `measures` over images, in percent."""
    hit = 100.0 * (outcome.ranks < 1)
    return {
        "top1": interval(hit, seed=seed),
        "top5": interval(100.0 * (outcome.ranks < 5), seed=seed),
        "mean_per_class": interval(hit, outcome.labels, seed=seed),
    }


def worst_classes(outcome: Outcome, names: Sequence[str], k: int = 10) -> list[Worst]:
    """The k classes with images of lowest recall, lowest first, each with its three commonest wrong predictions."""
    classes = []
    for label in np.unique(outcome.labels).tolist():
        of_class = outcome.labels == label
        wrong = outcome.predicted[of_class & (outcome.predicted != label) & (outcome.predicted >= 0)]
        others, counts = np.unique(wrong, return_counts=True)
        commonest = np.argsort(-counts, kind="stable")[:3]
        taken_for = [(names[int(others[i])], 100.0 * float(counts[i] / of_class.sum())) for i in commonest]
        recall = 100.0 * float((outcome.ranks[of_class] < 1).mean())
        classes.append(Worst(names[label], int(of_class.sum()), recall, taken_for))
    return sorted(classes, key=lambda worst: worst.recall)[:k]


def result(outcome: Outcome, names: Sequence[str], metric: str, seed: int = 0) -> SetResult:
    """All measures of one set.

    Args:
        names: one for each of the C classes. metric: the main score, of METRICS.
    """
    if metric not in METRICS:
        raise UserError("metric", f"'{metric}' is unknown", f"choose one of {', '.join(METRICS)}")
    if len(outcome.labels) == 0:
        raise UserError("labels", "there is no image to classify", "give a split that has labelled images")
    counts = np.bincount(outcome.labels, minlength=outcome.num_classes)
    return SetResult(
        metric=metric,
        scores=measures(outcome),
        intervals=intervals(outcome, seed),
        num_images=len(outcome.labels),
        num_classes=outcome.num_classes,
        without_images=[names[c] for c in range(outcome.num_classes) if counts[c] == 0],
        worst=worst_classes(outcome, names),
    )
