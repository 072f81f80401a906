"""95 % intervals of scores over items: how much a score would vary with another test set of the same size.

A proportion of independent items (top-1, R@k of images, a subset's accuracy) has Wilson's interval. Other scores (several
captions per image, the mean of both directions, the mean over classes) have the percentile interval of a bootstrap over items
(Efron, 1979). Where all items have the same value, every resample equals the sample and that interval would have no width, but 0
hits of 86 do not prove 0 %. Then the interval allows for as many unseen items of the other outcome as Wilson's does.
"""

import numpy as np

from pipelines.program.wilson import wilson

_MAX_INDICES = 4_000_000  # drawn indices in memory at a time


def interval(
    values: np.ndarray,
    groups: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a score in percent: the mean of `values`, or of each row's mean where there are several rows.

    With `groups` the score is the mean over groups of each group's mean, such as recall per class. Items are resampled over
    all groups together, as a new test set would be; a resample's mean leaves out the groups that it misses.

    Args:
        values: float [n] or [rows, n], one column per item, from 0 to 100; items must be independent of one another.
        groups: int [n], not negative.
        weights: float, of the shape of `values`: how much an item counts in its row's mean, such as its number of captions.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    n = table.shape[1]
    if n == 0 or not ((table >= 0) & (table <= 100)).all():
        raise ValueError(f"interval: needs at least one item, and percentages of all, got {n} items")
    shares = np.ones_like(table) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    means = np.array([row[share > 0].mean() for row, share in zip(table, shares, strict=True)])
    same = all((row[share > 0] == mean).all() for row, share, mean in zip(table, shares, means, strict=True))
    if same:
        effective = min(_effective(share if groups is None else _group_weights(groups)) for share in shares)
        unseen = wilson(0, effective)[1]
        return float(means.mean() * (1 - unseen)), float(means.mean() + (100 - means.mean()) * unseen)
    if groups is None and len(table) == 1 and np.isin(table, (0, 100)).all() and (shares == shares[0, 0]).all():
        low, high = wilson(table.sum() / 100, n)
        return 100 * low, 100 * high
    random = np.random.default_rng(seed)
    at_once = max(1, _MAX_INDICES // n)
    resampled = []
    for start in range(0, resamples, at_once):
        drawn = random.integers(0, n, (min(at_once, resamples - start), n))
        if groups is None:
            resampled.append(np.mean([_weighted(row, share, drawn) for row, share in zip(table, shares, strict=True)], axis=0))
        else:
            resampled.append(np.mean([_mean_over_groups(row[drawn], groups[drawn]) for row in table], axis=0))
    low, high = np.percentile(np.concatenate(resampled), [2.5, 97.5])
    return float(low), float(high)


def _effective(weights: np.ndarray) -> float:
    """Effective sample size of weighted items (Kish, 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def _group_weights(groups: np.ndarray) -> np.ndarray:
    """Weight of each item in the mean over groups, up to a common factor."""
    return 1.0 / np.bincount(groups)[groups]


def _weighted(values: np.ndarray, weights: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Means of resamples, [resamples]; a resample without weight has the mean of the sample."""
    sums, totals = (values * weights)[drawn].sum(axis=1), weights[drawn].sum(axis=1)
    return np.where(totals > 0, sums / np.maximum(totals, 1e-300), (values * weights).sum() / weights.sum())


def _mean_over_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The mean over groups of each resample, [resamples], from values and groups [resamples, n]."""
    width = int(groups.max()) + 1
    cells = (groups + width * np.arange(len(groups))[:, None]).ravel()
    counts = np.bincount(cells, minlength=width * len(groups)).reshape(-1, width)
    sums = np.bincount(cells, weights=values.ravel(), minlength=width * len(groups)).reshape(-1, width)
    recalls = sums / np.maximum(counts, 1)  # 0 where a group was not drawn
    return recalls.sum(axis=1) / (counts > 0).sum(axis=1)
