"""The files of a sweep's folder, finished or not, and the figures that all parts of the report share.

Nothing here has to be complete: the report is written repeatedly while trials run.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation import metrics
from evaluation.reporting import number_format
from pipelines.io import storage
from pipelines.program.errors import UserError
from tuning import statistics
from tuning.held_out_items import Items, read_items


@dataclass(frozen=True)
class Measure:
    """A column of figures: the score, or one metric."""

    key: str  # of `Sweep.figures`: "score", or the metric's path
    title: str
    path: str  # of the metric, or of all that the score is the mean of
    percent: bool
    better: Callable[..., float]  # min or max
    chance: float  # what guessing scores; NaN where it is not known

    @property
    def unit(self) -> str:
        return "\N{NO-BREAK SPACE}%" if self.percent else ""

    def shown(self, value: float) -> str:
        return number_format.value(value, self.percent)

    def named(self, value: float) -> str:
        """22.3 % Average; 1.234 loss."""
        return f"{self.shown(value)}{self.unit} {self.title}"

    def mean_and_sd(self, row: Mapping[str, Any]) -> str:
        """Of a row of the summary: 22.3 (1.1)."""
        return self.shown(row["mean"]) + (f" ({spread})" if (spread := self.shown(row["sd"])) else "")


@dataclass(frozen=True)
class Sweep:
    """`info` is the content of sweep.json; `trials` a row a trial; `curves` a row an evaluation during training."""

    folder: Path
    info: dict[str, Any]
    trials: pd.DataFrame
    curves: pd.DataFrame

    @property
    def yet(self) -> str:
        """At the end of what is not there: " yet" while trials run."""
        return " yet" if self.info["state"] == "running" else ""

    @property
    def mode(self) -> str:
        return self.info["score"]["mode"]

    @cached_property
    def score(self) -> Measure:
        """What trials are ranked by: a metric, or the mean of several."""
        title, paths = self.info["score"]["title"], self.info["score"]["metrics"]
        return self._measure("score", self.names.get(title, title), paths, self.mode)

    @cached_property
    def measures(self) -> list[Measure]:
        """What is shown beside the score, first what it is the mean of."""
        ranked, modes = self.info["score"]["metrics"], {path: metrics.metric(path).better for path in self.metrics}
        modes |= dict.fromkeys(ranked, self.mode)
        return [self._measure(path, self.names[path], [path], modes[path]) for path in self.metrics if [path] != ranked]

    def _measure(self, key: str, title: str, paths: Sequence[str], mode: str) -> Measure:
        known = metrics.chances(self.info["baselines"])
        chance = math.fsum(known.get(path, math.nan) for path in paths) / len(paths)
        percent = all(metrics.metric(path).percent for path in paths)
        return Measure(key, title, " + ".join(paths), percent, min if mode == "min" else max, chance)

    @cached_property
    def cells(self) -> dict[str, list[str]]:
        """Every planned cell, in the order of the grid -> its label on each axis."""
        return {cell["cell"]: cell["labels"] for cell in self.info["cells"]}

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
        paths, trials = self.info["score"]["metrics"], self.results["trial"]
        return {trial: kept for trial in trials if (kept := read_items(self.folder / "trials" / trial, paths)) is not None}

    @cached_property
    def words(self) -> dict[str, str]:
        """For sentences: the score, the score at the start of one, and the splits of the search and of the final runs."""
        title, rows = self.score.title, {"validation": self.search, "test": self.final}
        splits = {name: str(of["split"].iloc[0]) if len(of) else name for name, of in rows.items()}
        return {"score": title, "Score": title[:1].upper() + title[1:]} | splits

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

    def means(self, measure: Measure) -> list[float]:
        """Of the cells that have results."""
        means = [self.figures[cell, measure.key]["mean"] for cell in self.cells]
        return [mean for mean in means if number_format.is_number(mean)]

    def point(self, cell: str) -> Mapping[str, Any]:
        """Hyperparameters of a cell's best point by key; empty where it has none."""
        rows = self.trials[(self.trials["cell"] == cell) & (self.trials["point"] == self.best_points.get(cell, -1))]
        return {} if rows.empty else {p["key"]: rows.iloc[0][p["key"]] for p in self.parameters}

    def state(self, cell: str) -> str:
        """In a word: `results`, or why there are none."""
        if self.figures[cell, "score"]["n"]:
            return "results"
        rows = self.trials[self.trials["cell"] == cell]
        if "running" in set(rows["status"]):
            return "running"
        final = rows[rows["phase"] == "final"]
        statuses = set((final if len(final) else rows)["status"])
        if not statuses or "finished" in statuses:
            return f"not run{self.yet}"
        return "stopped early" if "stopped" in statuses else "failed"


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Its rows; every column of these tables is named by a string."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def read(folder: Path) -> Sweep:
    """Raises `UserError` where the folder or one of its files is missing or not readable."""
    if not folder.is_dir():
        raise UserError(f"{folder}", "no such folder", "give the folder of a sweep, such as runs/openmoji-grid")
    info = _read(folder / "sweep.json", lambda path: json.loads(path.read_text(encoding="utf-8")))
    names = ("trials.parquet", "curves.parquet")
    trials, curves = (_read(folder / name, lambda path: storage.read_table(path).to_pandas()) for name in names)
    # Before the first trial ends, and in sweeps of earlier versions.
    missing = {name: math.nan for name in ("train_samples", *info["score"]["metrics"]) if name not in trials}
    return Sweep(folder, info, trials.assign(**missing), curves)


def _read(path: Path, parse: Callable[[Path], Any]) -> Any:
    try:
        return parse(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are among them
        why = " ".join(str(error).split())[:200]
        remedy = "give the folder of a sweep whose first trial has begun, or run the sweep's command again, which writes it anew"
        raise UserError(f"{path}", f"missing or not readable ({why})", remedy) from None
