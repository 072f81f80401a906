"""Writes the tables of a sweep: one row per trial, one row per evaluation, and a description of the sweep.

    trials.parquet, trials.csv   curves.parquet   sweep.json

The report is made of these and of the final runs' items (`tuning.held_out_items`) alone (`python -m tuning report SWEEP`).
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.dataset.prepared import Prepared
from pipelines.program.code_version import code_version
from pipelines.program.csv_text import to_csv
from tuning.config import SweepSettings
from tuning.optuna_points import alternative
from tuning.trials import Cell, Folder, Trial, command, read_json, score_of, write

_PACKAGES = ("ray", "torch", "torchvision", "transformers", "timm", "optuna", "pandas")


def write_tables(
    folder: Folder,
    settings: SweepSettings,
    cells: Sequence[Cell],
    trials: Iterable[Trial],
    overrides: Mapping[str, Mapping[str, Any]],
    score: Sequence[str],
    test_split: str = "test",
) -> None:
    """`trials.parquet`, `trials.csv` and `curves.parquet`, written atomically.

    Args:
        trials: those handed out so far, ended or not. overrides: of each trial's training config, by name.
    """
    by_label = {cell.label: cell for cell in cells}
    rows, lines = _Columns(), _Columns()
    for trial in trials:
        rows.add(_row(folder, settings, trial, by_label[trial.cell], overrides[trial.name], score, test_split))
        for line in folder.curve(trial.name):
            kept = {key: value for key, value in line.items() if "/" in key or key in ("epoch", "samples", "loss")}
            lines.add({"trial": trial.name} | kept | {"score": score_of(line, score)})
    table = rows.table(_row_keys(settings))
    first = [key for key in _row_keys(settings) if key in table]
    table = table[[*first, *sorted(str(key) for key in table if key not in first)]]
    for name in map(_column, settings.space):  # a column has one type, and choices may be text
        if name in table and not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = [None if _missing(v) else str(v) for v in table[name]]
    curves = lines.table(["trial", "epoch", "samples", "loss", "score"])
    _put(folder.path / "trials.csv", lambda path: path.write_text(to_csv(table), encoding="utf-8", newline=""))
    _put(folder.path / "trials.parquet", lambda path: table.to_parquet(path, index=False))
    _put(folder.path / "curves.parquet", lambda path: curves.to_parquet(path, index=False))


class _Columns:
    """A table, row by row. The driver of a sweep of thousands of trials should not grow by a dict for each."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Columns that other rows have and this one does not, or the reverse, are NaN there."""
        for key in [key for key in row if key not in self._columns]:
            self._columns[key] = [math.nan] * self._rows
        for key, column in self._columns.items():
            column.append(row.get(key, math.nan))
        self._rows += 1

    def table(self, columns: Sequence[str]) -> pd.DataFrame:
        """The table; `columns`: those that it has without any row."""
        return pd.DataFrame(self._columns, columns=None if self._rows else list(columns))


def _row_keys(settings: SweepSettings) -> list[str]:
    start = ["trial", "cell", "phase", "point", "seed"]
    start += [*map(_column, settings.grid), *map(_column, settings.space), "status", "reason", "split", "score"]
    return [*start, "train_samples", "epochs", "samples", "seconds", "peak_memory_gib", "loss", "started", "findings", "command"]


def _row(
    folder: Folder,
    settings: SweepSettings,
    trial: Trial,
    cell: Cell,
    overrides: Mapping[str, Any],
    score: Sequence[str],
    test_split: str,
) -> dict[str, Any]:
    """One row of trials.csv: the trial, how it ended, all its metrics."""
    outcome = folder.ended(trial.name)
    status = "running" if outcome is None else outcome.status
    outcome = outcome or folder.so_far(trial.name)
    row: dict[str, Any] = {
        "trial": trial.name,
        "cell": trial.cell,
        "phase": trial.phase,
        "point": trial.point,
        "seed": trial.seed,
    }
    row |= dict(zip(map(_column, settings.grid), cell.labels, strict=True))
    row |= {_column(key): trial.params.get(key, math.nan) for key in settings.space}
    row |= {"status": status, "reason": outcome.reason}
    row |= {"split": settings.validation if trial.phase == "search" else test_split}
    row |= {
        "score": score_of(outcome.metrics, score),
        "train_samples": math.nan if outcome.train_samples is None else outcome.train_samples,
    }
    row |= {"epochs": outcome.epochs, "samples": outcome.samples}
    row |= {"seconds": outcome.seconds, "peak_memory_gib": outcome.peak_memory_gib, "loss": outcome.loss}
    row |= {"started": (folder.of(trial.name) / "trial.json").stat().st_mtime}
    row |= {"findings": ", ".join(finding["kind"] for finding in outcome.findings)}
    row |= {"command": command(settings.base, trial.name, overrides)}
    return row | outcome.metrics


def write_about(folder: Folder, about: Mapping[str, Any]) -> None:
    """`sweep.json`."""
    write(folder.path / "sweep.json", json.dumps(about, indent=1))


def about_of(
    settings: SweepSettings, cells: Sequence[Cell], configs: Sequence[Mapping[str, Any]], score: Sequence[str]
) -> dict[str, Any]:
    """The description of a sweep that is available before it runs. `configs`: each cell's training config, as a tree."""
    axes = [
        {"key": _column(key), "title": _title(key), "labels": list(dict.fromkeys(cell.labels[i] for cell in cells))}
        for i, key in enumerate(settings.grid)
    ]
    space = [
        {"key": _column(key), "title": _title(key), "log": alternatives[0].log, "choices": alternatives[0].choices}
        for key, alternatives in settings.space.items()
    ]
    return {
        "name": settings.name,
        "settings": settings.model_dump(mode="json"),
        "axes": axes,
        "cells": [
            {"cell": cell.label, "labels": list(cell.labels), "ranges": _ranges(settings, config)}
            for cell, config in zip(cells, configs, strict=True)
        ],
        "space": space,
        "score": {"title": score[0] if len(score) == 1 else "Average", "metrics": list(score), "mode": settings.mode},
        "seeds": settings.seeds,
        "seed_keys": settings.seed_keys,
        "sampler": settings.sampler.name,
        "scheduler": settings.scheduler.name,
        "versions": {"python": platform.python_version(), "raylign": code_version()} | {p: version(p) for p in _PACKAGES},
        "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
    }


def _ranges(settings: SweepSettings, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Column -> the range that is searched in a cell; not of choices, and not where it depends on the rest of a point."""
    ranges = {}
    for key, alternatives in settings.space.items():
        if not any(name in settings.space for dimension in alternatives for name in dimension.when):
            index = alternative(key, alternatives, config, {})
            if index is not None and alternatives[index].choices is None:
                ranges[_column(key)] = alternatives[index].model_dump(include={"low", "high", "log"})
    return ranges


def dataset_of(prepared: Prepared, train: int, validation: int, test: int) -> dict[str, Any]:
    """What the report says about the data."""
    manifest = prepared.manifest
    return {
        "name": prepared.name,
        "path": str(prepared.path),
        "fingerprint": prepared.fingerprint,
        "licence": manifest["licence"],
        "attribution": manifest["attribution"],
        "counts": manifest["counts"],
        "train_samples": train,
        "validation_samples": validation,
        "test_samples": test,
        "shuffled": prepared.shuffled,
    }


def baselines_and_sizes(folder: Folder, trials: Iterable[Trial]) -> dict[str, Any]:
    """Baselines and sample sizes of the test split, from the first seed's run that has ended; empty before."""
    for trial in trials:
        if trial.phase == "final" and (result := read_json(folder.of(trial.name) / "result.json")):
            return {"baselines": result["baselines"], "sample_sizes": result["sample_sizes"]}
    return {"baselines": {}, "sample_sizes": {}}


def _column(key: str) -> str:
    """The name of a key's column: a key without dots, such as epochs, might already be a column."""
    return key if "." in key else f"config.{key}"


def _title(key: str) -> str:
    """`objective.name` becomes objective; of other keys the last part is enough."""
    parts = key.split(".")
    return (parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]).replace("_", " ")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _put(path: Path, save: Any) -> None:
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    save(partial)
    partial.rename(path)
