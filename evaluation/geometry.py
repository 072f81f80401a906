"""Geometry of image and text embeddings on the unit sphere: modality gap, alignment, uniformity, spread, rank; without a unit.

Rows are normalised first, so that their lengths do not matter.
"""

import numpy as np

from pipelines.program.errors import UserError

_BLOCK = 1024


def modality_gap(images: np.ndarray, texts: np.ndarray) -> float:
    """|mean of images - mean of texts|, from 0 to 2 (Liang et al., arXiv 2203.02053).

    Args:
        images: float [n, D]; texts: float [m, D].
    """
    return float(np.linalg.norm(_unit("images", images).mean(axis=0) - _unit("texts", texts).mean(axis=0)))


def alignment(images: np.ndarray, texts: np.ndarray) -> float:
    """Mean of |image - its text|^2 over pairs, from 0 to 4; lower is closer (Wang and Isola, arXiv 2005.10242, alpha = 2).

    Args:
        images: float [n, D]; texts: float [n, D], row i of `images` and row i of `texts` are a pair.
    """
    if len(images) != len(texts):
        raise UserError("alignment", f"{len(images)} images and {len(texts)} texts", "give pairs, row by row")
    return float(((_unit("images", images) - _unit("texts", texts)) ** 2).sum(axis=1).mean())


def uniformity(rows: np.ndarray) -> float:
    """log of the mean of exp(-2 |x - y|^2) over pairs of different rows, from -8 to 0; lower is more uniform
    (Wang and Isola, arXiv 2005.10242, t = 2). Takes n^2 / 2 products, in blocks.

    Args:
        rows: float [n, D], all of images or all of texts, n at least 2.
    """
    if len(rows) < 2:
        raise UserError("uniformity", f"{len(rows)} rows have no pair", "give two or more")
    unit = _unit("rows", rows)
    total = 0.0
    for start in range(0, len(unit), _BLOCK):
        block = unit[start : start + _BLOCK]
        # The block's square has its pairs twice and a diagonal of ones; pairs with later rows come once.
        total += (_similarity(block, block).sum() - len(block)) / 2
        for later in range(start + _BLOCK, len(unit), _BLOCK):
            total += _similarity(block, unit[later : later + _BLOCK]).sum()
    return float(np.log(total / (len(unit) * (len(unit) - 1) / 2)))


def spread(rows: np.ndarray) -> float:
    """1 - the mean cosine of two different rows: 0 if all are the same, about 1 if they point everywhere. Takes n products.

    Args:
        rows: float [n, D], all of images or all of texts, n at least 2.
    """
    unit = _unit("rows", rows)
    n, total = len(unit), unit.sum(axis=0)
    return float(1 - (total @ total - n) / (n * (n - 1)))


def effective_rank(rows: np.ndarray) -> float:
    """In how many directions the rows lie: exp of the entropy of their singular values, from 1 to D (Roy and Vetterli, EUSIPCO
    2007). Takes n D^2 products.

    Args:
        rows: float [n, D], all of images or all of texts.
    """
    unit = _unit("rows", rows)
    values = np.sqrt(np.linalg.eigvalsh(unit.T @ unit).clip(min=0))
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """exp(-2 |a - b|^2) of unit rows, [n, m]."""
    return np.exp(-2.0 * (2.0 - 2.0 * (a @ b.T)))


def _unit(name: str, rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    bad = int((~np.isfinite(rows)).any(axis=1).sum())
    if bad or len(rows) == 0:
        raise UserError(name, f"{bad} of {len(rows)} rows are NaN or infinite", "give finite embeddings, at least one")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
