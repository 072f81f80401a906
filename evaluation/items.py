"""How much each item of a held-out split contributes to each score, for error estimates over items (`tuning`)."""

import numpy as np

from evaluation.metrics import mean_recalls, path_of
from evaluation.suite import HeldOut
from evaluation.tasks.base import Task
from evaluation.tasks.retrieval import Retrieval
from evaluation.tasks.zero_shot import ZeroShot


def contributions(data: HeldOut, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """For each score of `evaluation.suite.score` the contribution of every image, float64 [I]; their mean is the score.

    A caption counts for its image. Where a score covers some images only, or weights them, so do the contributions: an image
    without the label contributes 0. Arguments as of `score`.
    """
    count, rows = len(data.sample_ids), data.rows(images, texts, prompts)
    by_path: dict[str, np.ndarray] = {}

    def put(task: Task, name: str, values: np.ndarray) -> None:
        by_path[path_of(task.info.name, task.dataset, name)] = values

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
                values = np.zeros(count)
                values[labelled] = 100.0 * (outcome.ranks < k) * weights
                put(task, measure, values)
    return by_path


def contributions_to(by_path: dict[str, np.ndarray], metric: str) -> np.ndarray | None:
    """Contributions to a score, or to a mean of recalls (`mean_recalls`); None for a metric of other items."""
    averaged = [values for path, values in by_path.items() if path == metric or metric in mean_recalls({path: 0.0})]
    return np.mean(averaged, axis=0) if averaged else None
