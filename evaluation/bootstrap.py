"""How far a score could have fallen otherwise: percentile bootstrap intervals over items (Efron, 1979)."""

import numpy as np

_AT_A_TIME = 4_000_000  # drawn indices held at once


def interval(values: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean, in the unit of `values`: its 2.5th and 97.5th percentile over resampled items.

    With `groups` the score is the mean over groups of each group's mean, such as recall per class. Items are resampled over
    all groups together, as a new test set would be; a group that a resample misses is left out of that resample's mean.

    Args:
        values: float or bool [n], one an item; what counts as one item must be independent of the others.
        groups: int [n], not negative.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"bootstrap: needs at least one value and all of them finite, got {len(values)} values")
    random = np.random.default_rng(seed)
    rows = max(1, _AT_A_TIME // len(values))
    means = []
    for start in range(0, resamples, rows):
        drawn = random.integers(0, len(values), (min(rows, resamples - start), len(values)))
        means.append(values[drawn].mean(axis=1) if groups is None else _mean_over_groups(values[drawn], groups[drawn]))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _mean_over_groups(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Row by row, both [rows, n]."""
    width = int(groups.max()) + 1
    cells = (groups + width * np.arange(len(groups))[:, None]).ravel()
    counts = np.bincount(cells, minlength=width * len(groups)).reshape(-1, width)
    sums = np.bincount(cells, weights=values.ravel(), minlength=width * len(groups)).reshape(-1, width)
    recalls = sums / np.maximum(counts, 1)  # 0 where a group was not drawn
    return recalls.sum(axis=1) / (counts > 0).sum(axis=1)
