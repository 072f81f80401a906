"""Retrieval: R@k both ways, several captions an image, pessimistic ties, in blocks.

A query's rank is the number of wrong candidates that do not score strictly less than its best right candidate: ties and
NaN go against the model, so a collapsed one scores 0 and not 100. The right candidate's score is taken from the same matrix
product as the others': computed apart, rounding alone costs several points.
"""

from collections.abc import Sequence
from math import comb

import numpy as np

MISS = np.iinfo(np.int64).max
_BLOCK = 1024


def ranks(queries: np.ndarray, candidates: np.ndarray, right: Sequence[np.ndarray]) -> np.ndarray:
    """Rank of each query's best right candidate, from 0; `MISS` where its score is NaN.

    Args:
        queries: float [Q, D]; candidates: float [C, D].
        right: for each query the indices of its right candidates, at least one.
    """
    result = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _BLOCK):
        scores = queries[start : start + _BLOCK].astype(np.float32) @ candidates.astype(np.float32).T
        for row, query in zip(scores, range(start, start + len(scores)), strict=True):
            best = np.max(row[right[query]])  # NaN if any of them is
            wrong = ~(row < best)
            wrong[right[query]] = False
            result[query] = MISS if np.isnan(best) else int(wrong.sum())
    return result


def recalls(ranks_: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Percentage of queries whose rank is below k."""
    return {k: 100.0 * float(np.mean(ranks_ < k)) for k in ks}


def chance(num_candidates: int, num_right: Sequence[int], k: int) -> float:
    """Expected R@k of random ranking, in percent."""
    k = min(k, num_candidates)
    missed = [comb(num_candidates - m, k) / comb(num_candidates, k) for m in num_right]
    return 100.0 * (1.0 - float(np.mean(missed)))


def top(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k best candidates of each query, best first, int64 [Q, k]."""
    scores = queries.astype(np.float32) @ candidates.astype(np.float32).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]
