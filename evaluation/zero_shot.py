"""Zero-shot classification: prompts to class vectors, nearest class by cosine (CLIP, arXiv 2103.00020, section 3.1.4)."""

import numpy as np


def class_vectors(prompts: np.ndarray) -> np.ndarray:
    """Unit vectors of classes from unit embeddings of their prompts.

    Args:
        prompts: float [classes, templates, D]; each row is normalised, averaged over templates, normalised again.
    """
    mean = _unit(prompts).mean(axis=1)
    return _unit(mean)


def classify(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores in percent: `top1`, `top5`, `mean_per_class`.

    A class's rank counts ties and NaN against the model. `mean_per_class` is the mean recall over the classes that have
    images.

    Args:
        images: float [n, D] unit rows; classes: float [C, D] unit rows; labels: int [n] in [0, C).
    """
    scores = images.astype(np.float32) @ classes.astype(np.float32).T
    right = scores[np.arange(len(labels)), labels][:, None]
    wrong = ~(scores < right)
    wrong[np.arange(len(labels)), labels] = False
    rank = np.where(np.isnan(right[:, 0]), len(classes), wrong.sum(axis=1))
    hit = rank < 1
    per_class = [hit[labels == c].mean() for c in np.unique(labels)]
    return {
        "top1": 100.0 * float(hit.mean()),
        "top5": 100.0 * float((rank < 5).mean()),
        "mean_per_class": 100.0 * float(np.mean(per_class)),
    }


def baselines(num_classes: int, labels: np.ndarray) -> dict[str, dict[str, float]]:
    """For each score: `chance` of a uniform guess, and `largest_class`, the best constant guess."""
    counts = np.bincount(labels, minlength=num_classes)
    share = np.sort(counts / len(labels))[::-1]
    present = int((counts > 0).sum())
    return {
        "top1": {"chance": 100.0 / num_classes, "largest_class": 100.0 * float(share[0])},
        "top5": {"chance": 100.0 * min(5, num_classes) / num_classes, "largest_class": 100.0 * float(share[:5].sum())},
        "mean_per_class": {"chance": 100.0 / num_classes, "largest_class": 100.0 / present},
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
