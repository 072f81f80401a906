"""The files of a sweep's folder, finished or not, and the figures that all parts of the report share.

Nothing here has to be complete: the report is written repeatedly while trials run.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation import metrics
from pipelines.io import storage
from pipelines.program.errors import UserError
from tuning import statistics
from tuning.held_out_items import Items, read_items

_TEXT = ("trial", "cell", "phase", "status", "reason", "split", "command")
_NUMBERS = ("point", "seed", "train_samples", "epochs", "samples", "seconds", "loss", "score")


@dataclass(frozen=True)
class Sweep:
    """`info` is the content of sweep.json; `trials` a row a trial; `curves` a row an evaluation during training."""

    folder: Path
    info: dict[str, Any]
    trials: pd.DataFrame
    curves: pd.DataFrame

    @property
    def running(self) -> bool:
        return self.info["state"] == "running"

    @property
    def mode(self) -> str:
        return self.info["score"]["mode"]

    @property
    def title(self) -> str:
        """Name of the score, in words."""
        title = self.info["score"]["title"]
        return self.names.get(title, title)

    @property
    def heading(self) -> str:
        """`title` at the start of a sentence."""
        return self.title[:1].upper() + self.title[1:]

    @property
    def percent(self) -> bool:
        """The score is a percentage."""
        return all(metrics.metric(path).percent for path in self.info["score"]["metrics"])

    @property
    def score_path(self) -> str:
        """What the score is the mean of."""
        return " + ".join(self.info["score"]["metrics"])

    def is_percent(self, metric: str) -> bool:
        """Of `score` or a path."""
        return self.percent if metric == "score" else metrics.metric(metric).percent

    def better(self, metric: str) -> Callable[..., float]:
        """`min` or `max`; the sweep's mode says so for what it ranks by."""
        ranked = metric == "score" or metric in self.info["score"]["metrics"]
        return min if (self.mode if ranked else metrics.metric(metric).better) == "min" else max

    @property
    def unit(self) -> str:
        return " %" if self.percent else ""

    @cached_property
    def cells(self) -> dict[str, list[str]]:
        """Every planned cell, in the order of the grid -> its label on each axis."""
        return {cell["cell"]: cell["labels"] for cell in self.info["cells"]}

    @property
    def axes(self) -> list[dict[str, Any]]:
        return self.info["axes"]

    @cached_property
    def parameters(self) -> list[dict[str, Any]]:
        """What was searched, as far as a trial has tried it."""
        return [parameter for parameter in self.info["space"] if parameter["key"] in self.trials.columns]

    @cached_property
    def metrics(self) -> list[str]:
        """Paths to show, those of the score first."""
        return [path for path in self.info["metrics"] if path in self.trials.columns]

    @cached_property
    def names(self) -> dict[str, str]:
        paths = [*self.info["score"]["metrics"], *self.info["metrics"]]
        return metrics.headings(list(dict.fromkeys(paths)), [dataset["name"] for dataset in self.info["datasets"]])

    @cached_property
    def chances(self) -> dict[str, float]:
        """What guessing scores, by path, `score` too; NaN where it is not known of all that it is the mean of."""
        known = metrics.chances(self.info["baselines"])
        parts = [known.get(path, math.nan) for path in self.info["score"]["metrics"]]
        return known | {"score": math.fsum(parts) / len(parts) if parts else math.nan}

    @cached_property
    def search(self) -> pd.DataFrame:
        return self.trials[self.trials["phase"] == "search"]

    @cached_property
    def final(self) -> pd.DataFrame:
        return self.trials[self.trials["phase"] == "final"]

    @cached_property
    def best_points(self) -> dict[str, int]:
        return statistics.best_points(self.trials, self.mode)

    @cached_property
    def results(self) -> pd.DataFrame:
        return statistics.results(self.trials, self.mode)

    @cached_property
    def summary(self) -> pd.DataFrame:
        return statistics.summarize(self.trials, list(self.cells), self.metrics, self.mode)

    @cached_property
    def items(self) -> dict[str, Items]:
        """Of the results' trials, as far as they kept them."""
        metrics = self.info["score"]["metrics"]
        read = {trial: read_items(self.folder / "trials" / trial, metrics) for trial in self.results["trial"]}
        return {trial: found for trial, found in read.items() if found is not None}

    @property
    def without_items(self) -> int:
        """Results that kept none."""
        return len(self.results) - len(self.items)

    @property
    def test_split(self) -> str:
        """Where the seeds' runs are scored."""
        return str(self.final["split"].iloc[0]) if len(self.final) else "test"

    @property
    def validation_split(self) -> str:
        """Where points are chosen."""
        return str(self.search["split"].iloc[0]) if len(self.search) else "validation"

    @cached_property
    def comparisons(self) -> pd.DataFrame:
        return statistics.compare(self.trials, "score", self.mode, self.items)

    @cached_property
    def verdict(self) -> statistics.Verdict:
        return statistics.verdict(self.trials, self.mode, self.items)

    @cached_property
    def figures(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(cell, metric) -> row of the summary, `score` being a metric too."""
        return {(row["cell"], row["metric"]): row for row in records(self.summary)}

    def point(self, cell: str) -> Mapping[str, Any]:
        """Hyperparameters of a cell's best point by key; empty where it has none."""
        rows = self.trials[(self.trials["cell"] == cell) & (self.trials["point"] == self.best_points.get(cell, -1))]
        return {} if rows.empty else {p["key"]: rows.iloc[0][p["key"]] for p in self.parameters}

    def state(self, cell: str) -> str:
        """In a word: `results`, or why there are none."""
        if self.figures[cell, "score"]["n"]:
            return "results"
        rows = self.trials[self.trials["cell"] == cell]
        if (rows["status"] == "running").any():
            return "running"
        final = rows[rows["phase"] == "final"]
        decided = final if len(final) else rows
        if decided.empty or (decided["status"] == "finished").any():
            return "not run yet" if self.running else "not run"
        return "stopped early" if (decided["status"] == "stopped").any() else "failed"

    def with_status(self, status: str) -> pd.DataFrame:
        return self.trials[self.trials["status"] == status]


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Its rows; every column of these tables is named by a string."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def read(folder: Path) -> Sweep:
    """Raises `UserError` where the folder or one of its files is missing or not readable."""
    if not folder.is_dir():
        raise UserError(f"{folder}", "no such folder", "give the folder of a sweep, such as runs/openmoji-grid")
    info = _read(folder / "sweep.json", lambda path: json.loads(path.read_text(encoding="utf-8")))
    trials, curves = (
        _read(folder / name, lambda path: storage.read_table(path).to_pandas()) for name in ("trials.parquet", "curves.parquet")
    )
    return Sweep(folder, info, _trials(trials, info), curves)


def _read(path: Path, parse: Callable[[Path], Any]) -> Any:
    try:
        return parse(path)
    except FileNotFoundError:
        problem = f"missing: {path.parent} is no sweep's folder, or its first trial has not begun"
        raise UserError(f"{path}", problem, "give the folder of a sweep that has begun") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path}", f"not readable ({why})", "run the sweep's command again, which writes it anew") from None


def _trials(table: pd.DataFrame, info: dict[str, Any]) -> pd.DataFrame:
    """With every column that the report reads: before the first trial there may be none."""
    texts = [*_TEXT, *(axis["key"] for axis in info["axes"])]
    missing: dict[str, Any] = {name: "" for name in texts if name not in table}
    missing |= {name: float("nan") for name in (*_NUMBERS, *info["score"]["metrics"]) if name not in table}
    return table.assign(**missing)
