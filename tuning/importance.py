"""Which parameters distinguish the best trials of a search from the rest: PED-ANOVA (arXiv 2304.10255), by Optuna."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evaluation.reporting import number_format

MIN_TRIALS = 8  # finished ones
_TOP = 5  # optuna asks for at least so many trials above its quantile


@dataclass(frozen=True)
class Importances:
    """`shares`: by parameter, with sum 1, largest first. `best` of `trials` count as best, and those level with the last."""

    trials: int
    best: int
    shares: dict[str, float]


def importances(trials: pd.DataFrame, log: Mapping[str, bool], mode: str) -> Importances | None:
    """Of a search's finished trials; None where they are too few, differ in one parameter, or nothing distinguishes the best.

    Args:
        trials: a row each, with `status`, `score` and a column a parameter, NaN or None where a trial has it not.
        log: parameter -> whether it was searched on a logarithmic scale; mode: "max" or "min".
    """
    rows = trials[(trials["status"] == "finished") & trials["score"].map(math.isfinite)]
    keys = [key for key in log if rows[key].nunique() > 1]
    if len(rows) < MIN_TRIALS or len(keys) < 2:  # a single parameter has all of the importance
        return None
    best = max(_TOP, math.ceil(len(rows) / 10))
    # Half a trial less, so that rounding does not make it one more.
    shares = _ped_anova(rows, {key: log[key] for key in keys}, mode, (best - 0.5) / len(rows))
    total = math.fsum(shares.values())
    ordered = sorted(((key, shares.get(key, 0.0) / (total or 1.0)) for key in keys), key=lambda entry: -entry[1])
    return Importances(len(rows), best, dict(ordered)) if total else None


def _ped_anova(rows: pd.DataFrame, log: Mapping[str, bool], mode: str, quantile: float) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    kinds = {key: _distribution(rows[key].dropna(), log[key]) for key in log}
    for row in rows.to_dict("records"):
        params = {key: row[key] for key in kinds if not pd.isna(row[key])}
        distributions = {key: kinds[key] for key in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=float(row["score"])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # experimental in Optuna 4
        return PedAnovaImportanceEvaluator(target_quantile=quantile).evaluate(study)


def _distribution(values: pd.Series, log: bool) -> Any:
    """The distribution of the values, inferred from them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(number_format.is_number(value) for value in values):
        return FloatDistribution(float(values.min()), float(values.max()), log=log and bool(values.min() > 0))
    return CategoricalDistribution(sorted(values.unique(), key=str))
