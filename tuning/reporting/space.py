"""The search space, cell by cell: in which range a parameter was searched, whether the best point lies at its edge, and
which parameters distinguish the best points."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evaluation.reporting import number_format
from evaluation.reporting.chart import Scale
from tuning.reporting.sweep_data import Sweep, records

MIN_TRIALS = 8  # finished ones, for importances
_EDGE = 0.05  # of the range
_TOP = 5  # optuna asks for at least so many trials above its quantile


@dataclass(frozen=True)
class Range:
    """`known`: as the sweep's settings say, else what was tried."""

    low: float
    high: float
    log: bool
    known: bool

    def edge(self, value: float) -> str:
        """`lower` or `upper` where a value lies within 5 % of an end of a range that is known."""
        if not self.known or self.low == self.high:
            return ""
        share = Scale(self.low, self.high, 0, 1, self.log)(value)
        return "lower" if share <= _EDGE else "upper" if share >= 1 - _EDGE else ""


def range_of(sweep: Sweep, cell: str, parameter: Mapping[str, Any]) -> Range | None:
    """The range in which a numeric parameter was searched in a cell; None where it was not, or is not numeric."""
    rows = sweep.search[sweep.search["cell"] == cell]
    tried = [value for value in rows[parameter["key"]] if number_format.is_number(value)]
    if not tried:
        return None
    told = sweep.ranges[cell].get(parameter["key"])
    if told is None or not told["low"] <= min(tried) <= max(tried) <= told["high"]:
        return Range(min(tried), max(tried), bool(parameter.get("log")) and min(tried) > 0, False)
    return Range(**told, known=True)


def edges(sweep: Sweep) -> list[tuple[str, str]]:
    """Best points at the edge of the searched range: the cell, and a sentence about it."""
    at_edges = []
    for cell in sweep.cells:
        point = sweep.point(cell)
        for parameter in sweep.parameters:
            value: Any = point.get(parameter["key"])
            searched = range_of(sweep, cell, parameter)
            if searched is not None and number_format.is_number(value) and (side := searched.edge(value)):
                end = number_format.parameter(searched.low if side == "lower" else searched.high)
                shown = f"{parameter['title']} {number_format.parameter(value)}"
                at_edges.append((cell, f"{shown} is at the edge of its range (its {side} end is {end}): widen it"))
    return at_edges


def importances(sweep: Sweep) -> list[tuple[str, int, int, list[tuple[str, float]]]]:
    """PED-ANOVA of the whole search, the axes of the grid being parameters too, and of every cell with enough trials.

    Returns for each: name, trials, how many count as best (and those level with the last), titles with shares, which sum to 1.
    Left out where nothing distinguishes the best.
    """
    done = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].map(math.isfinite)]
    axes = [axis for axis in sweep.axes if len(axis["labels"]) > 1]
    groups = [("whole search", done, [*axes, *sweep.parameters])] if len(sweep.cells) > 1 else []
    groups += [(cell, done[done["cell"] == cell], sweep.parameters) for cell in sweep.cells]
    made = []
    for name, rows, columns in groups:
        columns = [column for column in columns if rows[column["key"]].nunique() > 1]
        if len(rows) < MIN_TRIALS or len(columns) < 2:  # a single parameter has all of the importance
            continue
        top = max(_TOP, math.ceil(len(rows) / 10))
        # Half a trial less, so that rounding does not make it one more.
        shares = _ped_anova(rows, columns, sweep.mode, (top - 0.5) / len(rows))
        bars = sorted(((column["title"], shares[column["key"]]) for column in columns), key=lambda bar: -bar[1])
        if any(shares.values()):
            made.append((name, len(rows), top, bars))
    return made


def _ped_anova(rows: pd.DataFrame, columns: list[dict[str, Any]], mode: str, quantile: float) -> dict[str, float]:
    """Importance by key, with sum 1; all 0 where nothing distinguishes the best trials."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    kinds = {column["key"]: _distribution(rows[column["key"]].dropna(), bool(column.get("log"))) for column in columns}
    for row in records(rows):
        params = {key: row[key] for key in kinds if not pd.isna(row[key])}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions={key: kinds[key] for key in params}, value=float(row["score"]))
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # experimental in Optuna 4
        shares = PedAnovaImportanceEvaluator(target_quantile=quantile).evaluate(study)
    total = math.fsum(shares.values())
    return {key: shares.get(key, 0.0) / total if total else 0.0 for key in kinds}


def _distribution(values: pd.Series, log: bool) -> Any:
    """The distribution of the values, inferred from them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(number_format.is_number(value) for value in values):
        return FloatDistribution(float(values.min()), float(values.max()), log=log and bool(values.min() > 0))
    return CategoricalDistribution(sorted(values.unique(), key=str))
