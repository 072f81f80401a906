"""Expected calibration error: how far confidence is from accuracy (Guo et al., arXiv 1706.04599, section 2)."""

from dataclasses import dataclass

import numpy as np

from evaluation.zero_shot import outcome
from pipelines.program.errors import UserError

_BLOCK = 4096


@dataclass(frozen=True)
class Bin:
    """Images with a confidence in (low, high], and their accuracy; in percent."""

    low: float
    high: float
    count: int
    confidence: float | None  # mean; None for an empty bin
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """In percent: the expected calibration error, its bins, and the overall means."""

    error: float
    confidence: float
    accuracy: float
    bins: list[Bin]


def zero_shot_calibration(images: np.ndarray, classes: np.ndarray, labels: np.ndarray, scale: float) -> Calibration:
    """Calibration of softmax(scale * cosine) over classes.

    Args:
        images: float [n, D] unit rows; classes: float [C, D] unit rows; labels: int [n] in [0, C).
        scale: the model's 1 / temperature, such as 100 for OpenAI's CLIP. Calibration depends on it, accuracy does not.

    Raises `UserError` for embeddings that are NaN or infinite, whose probabilities are undefined.
    """
    if not scale > 0:
        raise UserError("scale", f"{scale} is not above 0", "give the model's 1 / temperature, such as scale=100")
    for name, rows in (("images", images), ("classes", classes)):
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        if bad:
            raise UserError(name, f"{bad} of {len(rows)} embeddings are NaN or infinite", "correct the embedder")
    correct = outcome(images, classes, labels).ranks == 0
    columns = classes.astype(np.float32).T
    confidence = []
    for start in range(0, len(images), _BLOCK):
        logits = scale * (images[start : start + _BLOCK].astype(np.float32) @ columns).astype(np.float64)
        # The largest probability: exp(0) over the sum.
        confidence.append(1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
    return calibration(np.concatenate(confidence), correct)


def calibration(confidence: np.ndarray, correct: np.ndarray, num_bins: int = 15) -> Calibration:
    """Sum over equally wide bins of (fraction of images) * |accuracy - mean confidence|.

    Args:
        confidence: float [n], the predicted class's probability in [0, 1]; correct: bool [n].
    """
    edges = np.linspace(0.0, 1.0, num_bins + 1)
    bin_of = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for b in range(num_bins):
        inside = bin_of == b
        low, high, count = 100.0 * float(edges[b]), 100.0 * float(edges[b + 1]), int(inside.sum())
        if count == 0:
            bins.append(Bin(low, high, 0, None, None))
            continue
        mean_confidence, accuracy = 100.0 * float(confidence[inside].mean()), 100.0 * float(correct[inside].mean())
        bins.append(Bin(low, high, count, mean_confidence, accuracy))
        error += count / len(confidence) * abs(accuracy - mean_confidence)
    return Calibration(error, 100.0 * float(np.mean(confidence)), 100.0 * float(np.mean(correct)), bins)
