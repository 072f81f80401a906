"""Retrieval: ranks in both directions with several captions per image and pessimistic ties, computed in tiles.

A query's rank is the number of wrong candidates that do not score strictly less than its best right candidate: ties and NaN
count against the model, so that a collapsed one scores 0 and not 100. R@k, the median and intervals over queries are all
functions of these ranks, one per query.

The matrix of scores is computed tile by tile and never stored. Its single precision values differ in the last bits with the
shape of the tile and would break ties between equal candidates at random, which alone costs several points. Therefore they
decide only where they differ from the right candidate's score by more than the rounding error. Closer candidates are scored again
one by one in double precision, like the right candidate: equal rows tie exactly, and ranks do not depend on tiles, threads or
libraries.
"""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from threading import Lock
from typing import Any

import numpy as np

DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}
MISS = np.iinfo(np.int64).max
_TILE = 1024  # rows and columns of a tile: 4 MiB of scores, which stay in a core's cache while they are counted
_NUMBERS = 2**20  # double precision numbers at a time where pairs are scored one by one


def ranks(queries: np.ndarray, candidates: np.ndarray, right: Sequence[np.ndarray], tile: int = _TILE) -> np.ndarray:
    """Rank of each query's best right candidate, from 0, int64 [Q]; `MISS` where the score of one of them is NaN.

    Args:
        queries: float [Q, D]; candidates: float [C, D]; both are read in single precision.
        right: for each query the indices of its right candidates, at least one, each once.
        tile: queries and candidates at a time; the ranks do not depend on it.
    """
    return _ranks(queries, candidates, _pairs(right, queries, candidates), False, tile)[0]


def both_ranks(
    images: np.ndarray, texts: np.ndarray, right: Sequence[np.ndarray], tile: int = _TILE
) -> tuple[np.ndarray, np.ndarray]:
    """`ranks` of images among texts and of texts among images, int64 [I] and [T], from one pass over the scores.

    Args:
        images: float [I, D]; texts: float [T, D].
        right: for each image the indices of its texts. Every text belongs to at least one image.
        tile: images and texts at a time.
    """
    by_image, by_text = _ranks(images, texts, _pairs(right, images, texts), True, tile)
    return by_image, by_text


def recalls(ranks_: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Percentage of queries whose rank is below k."""
    return {k: 100.0 * float(np.mean(ranks_ < k)) for k in ks}


def median_rank(ranks_: np.ndarray) -> float:
    """Median rank of the best right candidate, counted from 1; infinite where half of the queries miss."""
    return float(np.median(np.where(ranks_ == MISS, math.inf, ranks_ + 1.0)))


def chance(num_candidates: int, num_right: Sequence[int], k: int) -> float:
    """Expected R@k of random ranking, in percent."""
    k = min(k, num_candidates)
    missed = [comb(num_candidates - m, k) / comb(num_candidates, k) for m in num_right]
    return 100.0 * (1.0 - float(np.mean(missed)))


def mean_recalls(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Means of both directions for each dataset and k, such as `retrieval/openmoji/mean_recall@1`; by path or by name.

    Also over all k, `retrieval/openmoji/mean_recall`: with R@1, 5 and 10 the mean of six recalls that selects in fine-tuning.
    """
    result: dict[str, list[float]] = {}
    for path, value in metrics.items():
        for direction in (f"{name}_recall" for name in DIRECTIONS):
            if direction in path:
                result.setdefault(path.replace(direction, "mean_recall"), []).append(value)
                result.setdefault(path.partition(direction)[0] + "mean_recall", []).append(value)
    return {path: math.fsum(values) / len(values) for path, values in result.items()}


def top(queries: np.ndarray, candidates: np.ndarray, k: int, tile: int = _TILE) -> np.ndarray:
    """Indices of the k best candidates of each query, best first, int64 [Q, k]; of equals the earlier first, NaN last."""
    result = np.empty((len(queries), min(k, len(candidates))), dtype=np.int64)
    for q in range(0, len(queries), tile):
        rows = queries[q : q + tile].astype(np.float32, copy=False)
        scores, places = np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64)
        for c in range(0, len(candidates), tile):
            new = rows @ candidates[c : c + tile].astype(np.float32, copy=False).T
            indices = np.broadcast_to(np.arange(c, c + new.shape[1]), new.shape)
            scores, places = np.concatenate([scores, new], axis=1), np.concatenate([places, indices], axis=1)
            # Candidates from earlier tiles stand first, so that a stable sort prefers them among equals.
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, places = np.take_along_axis(scores, best, axis=1), np.take_along_axis(places, best, axis=1)
        result[q : q + tile] = places
    return result


def _pairs(right: Sequence[np.ndarray], queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All right pairs as two arrays of indices. Raises `ValueError` unless each query has one list without duplicates."""
    if len(right) != len(queries):
        raise ValueError(f"right: {len(right)} lists for {len(queries)} queries")
    owners = np.repeat(np.arange(len(right)), [len(indices) for indices in right])
    indices = np.concatenate([np.empty(0, np.int64), *right]).astype(np.int64)
    if len(np.unique(owners * len(candidates) + indices)) != len(indices):
        raise ValueError("right: a candidate is listed twice for the same query")
    return owners, indices


def _ranks(
    queries: np.ndarray, candidates: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], both: bool, tile: int
) -> list[np.ndarray]:
    """Ranks of the queries, and of the candidates as queries too if `both`."""
    with np.errstate(invalid="ignore", over="ignore"):  # NaN is expected
        exact = _exact(queries, candidates, *pairs)
        reach = _reach(queries, candidates)
        sides = [_Side(len(queries), pairs[0], exact, reach[0])]
        if both:
            sides.append(_Side(len(candidates), pairs[1], exact, reach[1]))

    def count(q: int) -> None:
        rows = queries[q : q + tile].astype(np.float32, copy=False)
        with np.errstate(invalid="ignore", over="ignore"):  # of this thread
            for c in range(0, len(candidates), tile):
                scores = rows @ candidates[c : c + tile].astype(np.float32, copy=False).T
                for axis, side in enumerate(sides):
                    start = (q, c)[axis]
                    surely, unsure = side.judge(scores, axis, start)
                    i, j = np.divmod(unsure, scores.shape[1])
                    side.settle(surely, _exact(queries, candidates, q + i, c + j), (i, j)[axis], start)

    # The product of a tile uses all cores, and counting uses one: other tiles are multiplied meanwhile.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(count, range(0, len(queries), tile)))
    return [side.ranks() for side in sides]


class _Side:
    """One direction of retrieval: a threshold per query, and how many candidates scored at or above it so far."""

    def __init__(self, count: int, owners: np.ndarray, exact: np.ndarray, reach: np.ndarray):
        best, has_right = np.full(count, -np.inf), np.zeros(count, dtype=bool)
        np.maximum.at(best, owners, exact)  # NaN if any of them is
        has_right[owners] = True
        if not has_right.all():
            raise ValueError(f"right: query {int(np.argmin(has_right))} has no right candidate")
        self.best, self.lock = best, Lock()
        self.low, self.high = (best - reach).astype(np.float32), (best + reach).astype(np.float32)
        # Minus the right candidates that are counted with the others: the best, and those that equal it.
        self.counted = -np.bincount(owners[exact == best[owners]], minlength=count)

    def judge(self, scores: np.ndarray, axis: int, start: int) -> tuple[np.ndarray, np.ndarray]:
        """For each query of a tile how many are surely at or above its threshold; and the undecided, as flat indices."""
        own = slice(start, start + scores.shape[axis])
        low, high = np.expand_dims(self.low[own], 1 - axis), np.expand_dims(self.high[own], 1 - axis)
        below, not_above = scores < low, scores <= high
        surely = scores.shape[1 - axis] - not_above.sum(axis=1 - axis, dtype=np.int32)
        return surely, np.flatnonzero(below ^ not_above)

    def settle(self, surely: np.ndarray, exact: np.ndarray, owners: np.ndarray, start: int) -> None:
        """Add a tile's counts: the sure ones, and the undecided by their exact scores; `owners` count from `start`."""
        best = self.best[start : start + len(surely)]
        unsure = np.bincount(owners[~(exact < best[owners])], minlength=len(best))
        with self.lock:
            self.counted[start : start + len(surely)] += surely + unsure

    def ranks(self) -> np.ndarray:
        return np.where(np.isnan(self.best), MISS, self.counted)


def _exact(queries: np.ndarray, candidates: np.ndarray, q: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Scores of pairs of rows, float64 [P], by additions whose order does not depend on the position."""
    result = np.empty(len(q))
    step = max(1, _NUMBERS // queries.shape[1])
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        left, right = (rows.astype(np.float32, copy=False) for rows in (queries[q[part]], candidates[c[part]]))
        result[part] = (left.astype(np.float64) * right).sum(axis=1)
    return result


def _reach(queries: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bound on the rounding error of a single precision score, for each query and for each candidate, float64.

    A sum of D products in any order is wrong by at most D u |q| |c| to first order, with u half the distance from 1 to the
    next number (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1). Eight more u cover the higher
    orders and the rounding of the thresholds.
    """
    unit = np.finfo(np.float32).eps / 2
    norms = [_norms(rows) for rows in (queries, candidates)]
    largest = [float(np.max(of, where=np.isfinite(of), initial=0.0)) for of in norms]
    terms = (queries.shape[1] + 8) * unit
    return terms * norms[0] * largest[1], terms * norms[1] * largest[0]


def _norms(rows: np.ndarray) -> np.ndarray:
    """Norms of rows, float64 [n], without converting all at a time."""
    parts = [np.linalg.norm(rows[i : i + _TILE].astype(np.float64), axis=1) for i in range(0, len(rows), _TILE)]
    return np.concatenate(parts) if parts else np.empty(0)
