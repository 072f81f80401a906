"""What became of each item of a held-out split: the parts whose means are the scores, for whoever asks how far chance goes."""

import numpy as np

from evaluation.metrics import mean_recalls, path_of
from evaluation.suite import HeldOut
from evaluation.tasks.base import Task
from evaluation.tasks.retrieval import Retrieval
from evaluation.tasks.zero_shot import ZeroShot


def parts(data: HeldOut, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """For each of the scores that `evaluation.suite.score` returns a part of every image, float64 [I]; their mean is the score.

    A caption counts for its image. Where a score is of some images only, or weighs them, so do the parts: those of images
    without the label are 0. Arguments as of `score`.
    """
    count, rows = len(data.sample_ids), data.rows(images, texts, prompts)
    found: dict[str, np.ndarray] = {}

    def put(task: Task, name: str, values: np.ndarray) -> None:
        found[path_of(task.info.name, task.dataset, name)] = values

    for task in data.tasks:
        if isinstance(task, Retrieval):
            by_image, by_text = task.ranks(rows)
            for k in data.settings.recall_at:
                put(task, f"image_to_text_recall@{k}", 100.0 * (by_image < k))
                hits = np.bincount(data.image_of_text, weights=100.0 * (by_text < k), minlength=count)
                put(task, f"text_to_image_recall@{k}", hits * count / len(texts))
        elif isinstance(task, ZeroShot):
            outcome, labelled = task.outcome(rows), np.flatnonzero(task.content.test.labels >= 0)
            sizes = np.bincount(outcome.labels, minlength=outcome.num_classes)
            even = np.full(len(labelled), count / len(labelled))
            for measure, k, weights in (
                ("top1", 1, even),
                ("top5", 5, even),
                ("mean_per_class", 1, count / ((sizes > 0).sum() * sizes[outcome.labels])),
            ):
                part = np.zeros(count)
                part[labelled] = 100.0 * (outcome.ranks < k) * weights
                put(task, measure, part)
    return found


def part_of(found: dict[str, np.ndarray], metric: str) -> np.ndarray | None:
    """Parts of a metric, which may be a mean of both directions or of all recalls; None where it is not of these items."""
    ways = [part for path, part in found.items() if path == metric or metric in mean_recalls({path: 0.0})]
    return np.mean(ways, axis=0) if ways else None
