"""What became of each item of a held-out split: the parts whose means are the scores, for whoever asks how far chance goes."""

import numpy as np

from evaluation import retrieval, zero_shot
from evaluation.metrics import mean_recalls
from evaluation.suite import HeldOut


def parts(data: HeldOut, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> dict[str, np.ndarray]:
    """For each of the scores that `evaluation.suite.score` returns a part of every image, float64 [I]; their mean is the score.

    A caption counts for its image. Where a score is of some images only, or weighs them, so do the parts: those of images
    without the label are 0. Arguments as of `score`.
    """
    count = len(data.sample_ids)
    found: dict[str, np.ndarray] = {}
    if data.texts:
        by_image = retrieval.ranks(images, texts, data.texts_of_image)
        by_text = retrieval.ranks(texts, images, data.images_of_text)
        for k in data.settings.recall_at:
            path = f"retrieval/{data.dataset}/{{}}_recall@{k}"
            found[path.format("image_to_text")] = 100.0 * (by_image < k)
            hits = np.bincount(data.image_of_text, weights=100.0 * (by_text < k), minlength=count)
            found[path.format("text_to_image")] = hits * count / len(texts)
    start = 0
    for label, names in data.classes.items():
        rows = prompts[start : start + len(names) * len(data.settings.templates)]
        start += len(rows)
        labelled = data.targets[label] >= 0
        targets = data.targets[label][labelled]
        vectors = zero_shot.class_vectors(rows.reshape(len(names), len(data.settings.templates), -1))
        ranks = zero_shot.outcome(images[labelled], vectors, targets).ranks
        sizes = np.bincount(targets, minlength=len(names))
        even = np.full(len(targets), count / len(targets))
        for measure, k, weights in (
            ("top1", 1, even),
            ("top5", 5, even),
            ("mean_per_class", 1, count / ((sizes > 0).sum() * sizes[targets])),
        ):
            part = np.zeros(count)
            part[labelled] = 100.0 * (ranks < k) * weights
            found[f"zero_shot/{data.dataset}_{label}/{measure}"] = part
    return found


def part_of(found: dict[str, np.ndarray], metric: str) -> np.ndarray | None:
    """Parts of a metric, which may be a mean of both directions or of all recalls; None where it is not of these items."""
    ways = [part for path, part in found.items() if path == metric or metric in mean_recalls({path: 0.0})]
    return np.mean(ways, axis=0) if ways else None
