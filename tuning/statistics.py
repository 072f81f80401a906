"""Statistics of a sweep's trials: best points, means with intervals over seeds, corrected paired tests, and a verdict.

A difference between cells has two sources of chance: another run (seed) on the same test items, and other test items. If the runs
stored their items (`tuning.held_out_items`) a test covers both, else only the first, and a verdict says which.

Everything is computed from the table of trials (`trials.parquet`), which may be incomplete: a value that is missing or not finite
is ignored, and `n` counts the others. No function changes its input or depends on the order of rows. `mode` is "max" or "min":
which scores are better.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, combinations_with_replacement, product
from statistics import mean, median, stdev  # exact sums: equal values have no spread, and the order of rows has no effect
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # type: ignore[import-untyped]

from tuning.held_out_items import Items, variance

ALPHA = 0.05
_SIGN = {"max": 1, "min": -1}
_DIGITS = 9  # smaller differences are rounding, as between two means of the same hits
_MOST_RESAMPLES = 50_000
_DRAWS = 10_000
_COLUMNS = ["cell", "phase", "point", "seed", "status", "score", "seconds"]
_PAIR = {"better": str, "worse": str, "n": int, "difference": float, "sd": float, "p_alone": float}
_PAIR |= {"se_items": float, "df_items": float}


@dataclass(frozen=True)
class Verdict:
    """The verdict on the cells' scores. Every cell with results is the leader, in `level_with` or in `ahead_of`."""

    leader: str | None  # the best mean; of equal ones the first by name; None if nothing has a result
    value: float  # its mean score
    n: int  # its seeds
    level_with: list[str]  # the leader is not distinguishably better than these; best first
    ahead_of: list[str]  # the leader is distinguishably better than these; best first
    comparisons: int  # number of pairs that could be tested, for which p was corrected
    resolution: float | None  # a smaller mean difference would not be distinguishable; None if nothing could be tested
    over_items: bool  # chance includes other seeds and other test items; else only other seeds on the same items


def average(trials: pd.DataFrame, metrics: Sequence[str]) -> pd.Series:
    """Unweighted mean of the metrics of each row; NaN if any of them, or its column, is missing."""
    return trials.reindex(columns=list(metrics)).astype(float).mean(axis=1, skipna=False)


def best_points(trials: pd.DataFrame, mode: str = "max") -> dict[str, int]:
    """The point of each cell with the best score among its finished search trials; of equal ones the lowest.

    A cell without search trials has the point of its final ones. A cell whose search trials have no score is left out.
    """
    if trials.empty:
        return {}
    columns = (trials[name].tolist() for name in ("cell", "phase", "point", "status"))
    searched: set[str] = set()
    judged: dict[str, list[tuple[float, int]]] = {}
    trained: dict[str, list[int]] = {}
    for cell, phase, point, status, score in zip(*columns, trials["score"].astype(float).tolist(), strict=True):
        if phase == "search":
            searched.add(cell)
            if status == "finished" and math.isfinite(score):
                judged.setdefault(cell, []).append((round(-_SIGN[mode] * score, _DIGITS), int(point)))
        elif phase == "final":
            trained.setdefault(cell, []).append(int(point))
    best = {str(cell): min(scored)[1] for cell, scored in judged.items()}
    return best | {str(cell): min(points) for cell, points in trained.items() if cell not in searched}


def results(trials: pd.DataFrame, mode: str = "max") -> pd.DataFrame:
    """The rows that count for the report: final trials of each cell's best point, finished."""
    if trials.empty:
        return trials.reindex(columns=[*trials.columns, *(name for name in _COLUMNS if name not in trials)])
    best = trials["cell"].map(best_points(trials, mode))
    return trials[(trials["phase"] == "final") & (trials["status"] == "finished") & (trials["point"] == best)]


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over resamples of `values`; NaN, NaN for fewer than two, and if all are equal.

    Equal values do not prove that there is no spread: from 0 % with two seeds no interval can be computed.

    Exact (all n^n resamples) up to n = 6, else from seeded draws. Few seeds make it too narrow: for n <= 3 it is the range, which
    covers the true mean of symmetric values in 1 - 2^(1-n) of all cases, 75 % for n = 3.
    """
    finite = np.sort(_finite(values))
    n = len(finite)
    if n < 2:
        return math.nan, math.nan
    if finite[-1] - finite[0] < 10**-_DIGITS:
        return math.nan, math.nan
    counts, ways = _resamples(n)
    means = finite[0] + counts @ (finite - finite[0]) / n  # so that the mean of equal values is exactly that value
    order = np.argsort(means, kind="stable")
    means, ways = means[order], ways[order]
    tail = (1 - level) / 2 * ways.sum()
    low = means[np.searchsorted(ways.cumsum(), tail)]
    high = means[::-1][np.searchsorted(ways[::-1].cumsum(), tail)]
    return float(low), float(high)


@lru_cache(maxsize=8)
def _resamples(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Resamples of n values as int counts [R, n], and the number of ways to draw each, int [R]."""
    if n**n > _MOST_RESAMPLES:
        return np.random.default_rng(0).multinomial(n, [1 / n] * n, size=_DRAWS), np.ones(_DRAWS, int)
    counts = [[draw.count(i) for i in range(n)] for draw in combinations_with_replacement(range(n), n)]
    ways = [math.factorial(n) // math.prod(math.factorial(count) for count in row) for row in counts]
    return np.array(counts), np.array(ways)


def summarize(trials: pd.DataFrame, cells: Sequence[str], metrics: Sequence[str], mode: str = "max") -> pd.DataFrame:
    """One row per cell and metric, in the order given, with "score" as the first metric of each cell.

    Returns columns cell; point (NaN where there is no best one); metric; n; mean; sd (n - 1; NaN for n < 2); low, high
    (`bootstrap_interval`); rank (of the cell, by its mean score: 1 is best, equal ones share the lowest number, NaN without
    results); seconds (mean training time of its results); total_seconds (of all its trials, whatever their phase and status).
    """
    finals, points = results(trials, mode), best_points(trials, mode)
    ranks = _ranks(_by_cell(finals, "score"), mode)
    seconds = {cell: mean(times.values()) for cell, times in _by_cell(finals, "seconds").items()}
    spent = {} if trials.empty else trials.groupby("cell")["seconds"].sum().to_dict()
    names = ["score", *(name for name in metrics if name != "score")]
    by_metric = {name: _by_cell(finals, name) for name in names}
    rows: list[dict[str, Any]] = []
    for cell, name in product(cells, names):
        values = list(by_metric[name].get(cell, {}).values())
        low, high = bootstrap_interval(values)
        rows.append(
            {"cell": cell, "point": points.get(cell, math.nan), "metric": name, "n": len(values)}
            | {"mean": mean(values) if values else math.nan, "sd": stdev(values) if len(values) > 1 else math.nan}
            | {"low": low, "high": high, "rank": ranks.get(cell, math.nan)}
            | {"seconds": seconds.get(cell, math.nan), "total_seconds": float(spent.get(cell, 0.0))}
        )
    columns = ["cell", "point", "metric", "n", "mean", "sd", "low", "high", "rank", "seconds", "total_seconds"]
    return pd.DataFrame(rows, columns=columns)


def compare(
    trials: pd.DataFrame, value: str = "score", mode: str = "max", items: Mapping[str, Items] | None = None
) -> pd.DataFrame:
    """Every pair of cells with results, tested on the seeds that both have; the pairs of the best cell first.

    Args:
        value: column that is compared. `mode` is the score's, and counts for both: which point is best, which value is.
        items: of the column's values, by trial; used if every result has some.

    A few seeds say little about the spread of one pair: with three, a paired t-test has two degrees of freedom, and no difference
    survives the correction for many pairs. So the variance over seeds of a mean difference is pooled over all pairs, or the
    pair's own if that is larger, since cells are not equally noisy. The pooled spread is the root mean square of the pairs' sds;
    if every cell has every seed its square is exactly twice the residual variance of the two-way layout cells x seeds, with
    (cells - 1)(seeds - 1) degrees of freedom. Without items p is the t-test against it: with two cells, the paired t-test.

    With items the variance over them is added (`tuning.held_out_items.variance`): the interaction of seeds and items is counted
    in both, so the sum is conservative, like a bootstrap over both (Owen, 2007). p is the level at which the difference is
    sqrt(t_s^2 V_s + t_i^2 V_i), each t with its own degrees of freedom, which is conservative for any ratio of the two variances
    (Banerjee, Biometrika 1961). A bootstrap of two or three seeds would not be: its resamples hardly differ.

    Returns columns better, worse (by the mean over shared seeds; over all seeds where none is shared); n (shared seeds);
    difference (mean of the paired differences, >= 0); sd (of these, n - 1); p_alone (two-sided paired t-test of this pair's seeds
    alone); se_items, df_items (standard error over test items, and its degrees of freedom; NaN without); p; p_adjusted (p
    corrected by Holm over all pairs that have one); distinguishable (p_adjusted < ALPHA). Both p are NaN for n < 2, and if there
    is no spread.
    """
    finals = results(trials, mode)
    scores, kept = _by_cell(finals, value), _items_by_cell(finals, items)
    pairs = [_pair(first, second, scores, mode, kept) for first, second in combinations(_best_first(scores, mode), 2)]
    table = pd.DataFrame(pairs, columns=list(_PAIR)).astype(_PAIR)
    table["p"] = _p(table, *_spread(table, scores))
    table["p_adjusted"] = holm(table["p"].tolist())
    return table.assign(p_adjusted=table["p_adjusted"].astype(float), distinguishable=table["p_adjusted"] < ALPHA)


def _pair(
    first: str, second: str, scores: Mapping[str, Mapping[int, float]], mode: str, kept: Mapping[str, Mapping[int, Items]]
) -> dict[str, Any]:
    """A row of `compare`; `first` is the better one over all its seeds."""
    shared = sorted(scores[first].keys() & scores[second].keys())
    differences = [_SIGN[mode] * (scores[first][seed] - scores[second][seed]) for seed in shared]
    n = len(differences)
    difference = mean(differences) if n else math.nan
    sd = stdev(differences) if n > 1 else math.nan
    if sd < 10**-_DIGITS:
        sd = 0.0
    better, worse = (second, first) if round(difference, _DIGITS) < 0 else (first, second)
    p = 2 * float(stdtr(n - 1, -abs(difference) / sd * math.sqrt(n))) if sd > 0 else math.nan
    over = variance([(kept[first][seed], kept[second][seed]) for seed in shared]) if kept else None
    row = {"better": better, "worse": worse, "n": n, "difference": abs(difference), "sd": sd, "p_alone": p}
    return row | {"se_items": math.sqrt(over[0]) if over else math.nan, "df_items": over[1] if over else math.nan}


def _items_by_cell(finals: pd.DataFrame, items: Mapping[str, Items] | None) -> dict[str, dict[int, Items]]:
    """Cell -> seed -> items; empty unless every result has some, so that all pairs are tested against the same kinds of
    chance."""
    if items is None or finals.empty or not set(finals["trial"]) <= items.keys():
        return {}
    by_cell: dict[str, dict[int, Items]] = {}
    for cell, seed, trial in zip(finals["cell"], finals["seed"], finals["trial"], strict=True):
        by_cell.setdefault(str(cell), {})[int(seed)] = items[trial]
    return by_cell


def _spread(pairs: pd.DataFrame, scores: Mapping[str, Mapping[int, float]]) -> tuple[pd.Series, int]:
    """Standard error over seeds of each pair's difference (NaN: too few), and the degrees of freedom of its pooled part."""
    weights = (pairs["n"] - 1).clip(lower=0)
    pooled = math.sqrt((weights * pairs["sd"].fillna(0.0) ** 2).sum() / weights.sum()) if weights.sum() else 0.0
    return pairs["sd"].clip(lower=pooled) / np.sqrt(pairs["n"]), _freedom(scores)


def _needed(pairs: pd.DataFrame, seeds: pd.Series, freedom: int) -> Callable[[Any], np.ndarray]:
    """From a two-sided probability p to the differences that chance exceeds that rarely; without items, over seeds alone."""
    errors = seeds.to_numpy()
    over, degrees = pairs["se_items"].fillna(0.0).to_numpy(), pairs["df_items"].fillna(1.0).to_numpy()
    return lambda p: np.hypot(stdtrit(freedom, p / 2) * errors, stdtrit(degrees, p / 2) * over)


def _p(pairs: pd.DataFrame, seeds: pd.Series, freedom: int) -> np.ndarray:
    """The p at which each difference is just the required one, at least 1e-40; NaN if there is no spread."""
    difference, errors = pairs["difference"].to_numpy(), seeds.to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        alone = np.where(errors > 0, 2 * stdtr(freedom, -difference / errors), math.nan)
    if pairs["se_items"].isna().all():
        return alone
    needed = _needed(pairs, seeds, freedom)
    low, high = np.full(len(pairs), math.log(1e-40)), np.zeros(len(pairs))  # logarithms of p, by bisection
    for _ in range(45):
        middle = (low + high) / 2
        likelier = needed(np.exp(middle)) > difference
        low, high = np.where(likelier, middle, low), np.where(likelier, high, middle)
    return np.where(pairs["se_items"].isna(), alone, np.where(np.isnan(errors), math.nan, np.exp(high)))


def _freedom(scores: Mapping[str, Mapping[int, float]]) -> int:
    """Degrees of freedom of the residuals if every cell and every seed has its own mean; isolated cells and seeds add none."""
    seeds = Counter(seed for values in scores.values() for seed in values)
    cells = [kept for values in scores.values() if (kept := [seed for seed in values if seeds[seed] > 1])]
    shared = {seed for kept in cells for seed in kept}
    return max(1, sum(map(len, cells)) - len(cells) - len(shared) + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given; NaN stays NaN and is not counted."""
    tested = sorted((value, i) for i, value in enumerate(p) if not math.isnan(value))
    adjusted = [math.nan] * len(p)
    largest = 0.0
    for step, (value, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - step) * value))
        adjusted[i] = largest
    return adjusted


def verdict(trials: pd.DataFrame, mode: str = "max", items: Mapping[str, Items] | None = None) -> Verdict:
    """Which cell leads by mean score, and which differences exceed chance; arguments as in `compare`."""
    finals = results(trials, mode)
    scores = _by_cell(finals, "score")
    if not scores:
        return Verdict(None, math.nan, 0, [], [], 0, None, False)
    leader, *others = _best_first(scores, mode)
    pairs = compare(trials, mode=mode, items=items)
    ahead = set(pairs.loc[(pairs["better"] == leader) & pairs["distinguishable"], "worse"])
    return Verdict(
        leader=leader,
        value=mean(scores[leader].values()),
        n=len(scores[leader]),
        level_with=[cell for cell in others if cell not in ahead],
        ahead_of=[cell for cell in others if cell in ahead],
        comparisons=int(pairs["p"].notna().sum()),
        resolution=resolution(trials, mode, items),
        over_items=bool(pairs["se_items"].notna().any()),
    )


def resolution(
    trials: pd.DataFrame, mode: str = "max", items: Mapping[str, Items] | None = None, seeds: int | None = None
) -> float | None:
    """The difference that would just pass Holm's first step, at ALPHA over the number of comparisons: median of pairs.

    `seeds`: if every cell had that many, with the observed spread. None if nothing could be tested.
    """
    scores = _by_cell(results(trials, mode), "score")
    pairs = compare(trials, mode=mode, items=items)
    spread, freedom = _spread(pairs, scores)
    tested = pairs["p"].notna()
    if not tested.any():
        return None
    if seeds is not None:
        spread, freedom = spread * np.sqrt(pairs["n"] / seeds), (len(scores) - 1) * (seeds - 1)
    needed = _needed(pairs[tested], spread[tested], freedom)(ALPHA / int(tested.sum()))
    return float(median(needed.tolist()))


def pareto(values: Sequence[float], costs: Sequence[float], mode: str = "max") -> list[bool]:
    """Whether each row is Pareto-optimal: no other is at least as good at no higher cost, and better in one; False for NaN."""
    points = [(_SIGN[mode] * value, -cost) for value, cost in zip(values, costs, strict=True)]
    return [
        not math.isnan(value + cost) and not any(v >= value and c >= cost and (v, c) != (value, cost) for v, c in points)
        for value, cost in points
    ]


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _by_cell(finals: pd.DataFrame, value: str) -> dict[str, dict[int, float]]:
    """Cell -> seed -> value, finite values only; cells without any are left out."""
    if value not in finals:
        return {}
    scores: dict[str, dict[int, float]] = {}
    for cell, seed, number in zip(finals["cell"], finals["seed"], finals[value].astype(float), strict=True):
        if math.isfinite(number):
            scores.setdefault(str(cell), {})[int(seed)] = number
    return scores


def _best_first(scores: Mapping[str, Mapping[int, float]], mode: str) -> list[str]:
    """Cells sorted by mean; equal ones by name."""
    return sorted(scores, key=lambda cell: (round(-_SIGN[mode] * mean(scores[cell].values()), _DIGITS), cell))


def _ranks(scores: Mapping[str, Mapping[int, float]], mode: str) -> dict[str, int]:
    means = {cell: round(_SIGN[mode] * mean(values.values()), _DIGITS) for cell, values in scores.items()}
    return {cell: 1 + sum(other > own for other in means.values()) for cell, own in means.items()}
