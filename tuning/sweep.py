"""Run every trial of a sweep and tabulate: `trials.csv`, a row a trial, and `summary.csv`, a row a cell and metric.

A trial is overrides, and its run is an ordinary run below `storage/name`: the same command again skips what is finished and
goes on with the rest. A trial that cannot run is a row with its reason.
"""

import os
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.display import Display
from pipelines.settings import UserError, load
from training.config import TrainSettings
from training.run import run
from tuning.config import SweepSettings


def sweep(settings: SweepSettings, display: Display) -> pd.DataFrame:
    """All trials, then both tables. Returns the summary."""
    folder = settings.storage / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    trials = [(cell, seed) for cell in settings.cells() for seed in settings.seeds]
    # A mistake in the sweep file is one for all trials: say it before the first.
    configs = [_trial(settings, cell, seed) for cell, seed in trials]
    rows = []
    with display.task(settings.name, len(trials)) as task:
        for done, ((cell, seed), config) in enumerate(zip(trials, configs, strict=True), start=1):
            row: dict[str, Any] = {"trial": config.name, **cell, "seed": seed}
            try:
                result = run(config, Display(quiet=True, verbose=display.verbose))
                row |= {"status": "finished", "reason": "", "seconds": sum(result["seconds"].values())} | result["metrics"]
            except UserError as error:
                row |= {"status": "failed", "reason": str(error)}
            rows.append(row)
            _write(pd.DataFrame(rows), folder / "trials.csv")
            task.update(done, f"{config.name} {row['status']}")
    summary = summarize(pd.DataFrame(rows), list(settings.grid))
    _write(summary, folder / "summary.csv")
    header = ["cell", "metric", "n", "mean", "sd"]
    cells = zip(*(summary[name] for name in header), strict=True)
    table = [[str(cell), metric, str(n), f"{mean:.2f}", f"{sd:.2f}"] for cell, metric, n, mean, sd in cells]
    display.table(f"{settings.name}: mean and standard deviation over seeds, %", header, table)
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        display.line(f"failed: {row['trial']}: {row['reason']}")
    display.line(f"tables: {folder / 'trials.csv'}, {folder / 'summary.csv'}")
    if len(failed) == len(rows):
        raise UserError(f"{settings.name}: every trial failed; the first: {failed[0]['reason']}")
    return summary


def _trial(settings: SweepSettings, cell: dict[str, Any], seed: int) -> TrainSettings:
    label = [f"{key.split('.')[-1]}={value}" for key, value in cell.items()]
    name = "-".join([*label, f"seed={seed}"]).replace("/", "_").replace(" ", "")
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    overrides = settings.overrides | cell | dict.fromkeys(settings.seed_keys, seed)
    overrides |= {"name": name, "storage": str(settings.storage / settings.name)}
    return load(TrainSettings, settings.base, overrides)


def summarize(trials: pd.DataFrame, grid: list[str]) -> pd.DataFrame:
    """Mean and sample standard deviation of each metric over the finished trials of each cell.

    Returns columns cell, metric, n, mean, sd; sd is NaN for a single trial.
    """
    finished = trials[trials["status"] == "finished"]
    metrics = [name for name in trials.columns if "/" in name]
    cells = finished[grid].astype(str).agg(", ".join, axis=1) if grid else pd.Series("all", index=finished.index)
    long = finished[metrics].assign(cell=cells).melt(id_vars="cell", var_name="metric", value_name="value")
    grouped = long.groupby(["cell", "metric"], sort=False)["value"]
    return grouped.agg(n="count", mean="mean", sd="std").reset_index()


def _write(table: pd.DataFrame, path: Path) -> None:
    aside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    table.to_csv(aside, index=False)
    aside.rename(path)
