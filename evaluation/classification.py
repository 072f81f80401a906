"""From scores of classes to measures: what zero-shot classification and the linear probe share.

Ties and NaN count against the model, so a collapsed one scores 0 and not 100. A class without a test image has no recall:
`mean_per_class` is over the classes that have some, and the result names the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.bootstrap import interval
from pipelines.program.errors import UserError

METRICS = ("top1", "top5", "mean_per_class")


@dataclass(frozen=True)
class Outcome:
    """What became of each image."""

    labels: np.ndarray  # int64 [n]
    ranks: np.ndarray  # int64 [n]: classes that do not score strictly less than the right one; all classes if that is NaN
    predicted: np.ndarray  # int64 [n]: the right class at rank 0, else its best rival; -1 if only NaN stands against it
    num_classes: int


@dataclass(frozen=True)
class Worst:
    """A class that is often missed, and what it is taken for."""

    name: str
    images: int
    recall: float  # percent
    taken_for: list[tuple[str, float]]  # wrong classes and the percentage of its images, most frequent first


@dataclass(frozen=True)
class SetResult:
    """All that is told of one classification set, in percent."""

    metric: str  # the main one
    scores: dict[str, float]  # by the names in METRICS
    intervals: dict[str, tuple[float, float]]  # 95 %, over images
    num_images: int
    num_classes: int
    without_images: list[str]  # classes with no test image, which mean_per_class leaves out
    worst: list[Worst]


def check(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Raises `UserError` unless there is one label an image, each in [0, num_classes)."""
    if len(labels) != len(images):
        raise UserError(f"labels: {len(labels)} for {len(images)} images; give one an image, in the same order")
    if not np.issubdtype(np.asarray(labels).dtype, np.integer):
        raise UserError(f"labels: expected whole numbers, got {np.asarray(labels).dtype}; give positions of classes")
    outside = np.unique(labels[(labels < 0) | (labels >= num_classes)])
    if len(outside):
        raise UserError(f"labels: {outside[0]} is no class; {num_classes} classes have the labels 0 to {num_classes - 1}")


def judge(scores: np.ndarray, labels: np.ndarray) -> Outcome:
    """Ranks and predictions from scores.

    Args:
        scores: float [n, C], more is likelier; labels: int [n] in [0, C).
    """
    rows = np.arange(len(labels))
    right = scores[rows, labels]
    against = ~(scores < right[:, None])
    against[rows, labels] = False
    ranks = np.where(np.isnan(right), scores.shape[1], against.sum(axis=1))
    rivals = np.where(np.isnan(scores), -np.inf, scores)
    rivals[rows, labels] = -np.inf
    rival = rivals.argmax(axis=1)
    best = rivals[rows, rival]
    comparable = (best > -np.inf) & ~(best < right)
    predicted = np.where(ranks == 0, labels, np.where(comparable, rival, -1))
    return Outcome(np.asarray(labels, dtype=np.int64), ranks.astype(np.int64), predicted.astype(np.int64), scores.shape[1])


def measures(found: Outcome) -> dict[str, float]:
    """In percent: `top1`, `top5`, and `mean_per_class`, the mean recall over the classes that have images."""
    hit = found.ranks < 1
    per_class = [hit[found.labels == c].mean() for c in np.unique(found.labels)]
    return {
        "top1": 100.0 * float(hit.mean()),
        "top5": 100.0 * float((found.ranks < 5).mean()),
        "mean_per_class": 100.0 * float(np.mean(per_class)),
    }


def intervals(found: Outcome, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % intervals of `measures`, in percent, over images: of another test set."""
    hit = 100.0 * (found.ranks < 1)
    return {
        "top1": interval(hit, seed=seed),
        "top5": interval(100.0 * (found.ranks < 5), seed=seed),
        "mean_per_class": interval(hit, found.labels, seed=seed),
    }


def worst_classes(found: Outcome, names: Sequence[str], k: int = 10) -> list[Worst]:
    """The k classes of lowest recall, lowest first, of those that have images; each with its three commonest mistakes."""
    result = []
    for label in np.unique(found.labels).tolist():
        mine = found.labels == label
        wrong = found.predicted[mine & (found.predicted != label) & (found.predicted >= 0)]
        others, counts = np.unique(wrong, return_counts=True)
        commonest = np.argsort(-counts, kind="stable")[:3]
        taken_for = [(names[int(others[i])], 100.0 * float(counts[i] / mine.sum())) for i in commonest]
        recall = 100.0 * float((found.ranks[mine] < 1).mean())
        result.append(Worst(names[label], int(mine.sum()), recall, taken_for))
    return sorted(result, key=lambda worst: worst.recall)[:k]


def result(found: Outcome, names: Sequence[str], metric: str, seed: int = 0) -> SetResult:
    """All of the above for one set.

    Args:
        names: one name for each of the C classes. metric: the main one, of METRICS.
    """
    if metric not in METRICS:
        raise UserError(f"metric: '{metric}' is unknown; there are {', '.join(METRICS)}")
    if len(found.labels) == 0:
        raise UserError("labels: there is no image to classify; give a split that has some")
    counts = np.bincount(found.labels, minlength=found.num_classes)
    return SetResult(
        metric=metric,
        scores=measures(found),
        intervals=intervals(found, seed),
        num_images=len(found.labels),
        num_classes=found.num_classes,
        without_images=[names[c] for c in range(found.num_classes) if counts[c] == 0],
        worst=worst_classes(found, names),
    )
