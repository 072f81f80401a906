"""Cells and trials: their names, their overrides, and what a sweep stores of them on disk.

SWEEP/trials/NAME/trial.json     cell, phase, point, seed, overrides; written before it starts
                  metrics.jsonl  one line per report
                  outcome.json   how it ended; written last, so that a trial without one resumes with the sweep
                  items.npz      of final runs: results on each test item (`tuning.held_out_items`)
                  checkpoint_... of final runs and of running trials

A sweep in an object store has the same there. Its driver has a working copy of all but checkpoints, and each trial's process
has one of its trial (`training.run_store`).
"""

import json
import math
import os
import shlex
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from evaluation.metrics import mean_recalls
from pipelines.io import storage
from pipelines.program import yaml_text
from pipelines.program.errors import UserError
from pipelines.program.settings import parse_overrides
from pipelines.program.settings_base import digest
from training.metrics_file import read_metrics
from training.run_store import RunStore, dropped, fetched, kept
from tuning.config import SweepSettings, label
from tuning.optuna_points import Result

Phase = Literal["search", "final"]
_BEGUN, _ENDED, _CURVE = "trial.json", "outcome.json", "metrics.jsonl"
_RECORDS = (_BEGUN, _ENDED, _CURVE, "result.json", "items.npz")
_WEIGHTS = ("*checkpoint*", "partial-*", "best", "towers", "held_out*")  # of a trial: also the list of checkpoints
_AT_ONCE = 16  # trials whose records are read at a time


@dataclass(frozen=True)
class Cell:
    """One combination of the grid's values."""

    labels: tuple[str, ...]  # one per axis
    overrides: dict[str, Any]

    @property
    def label(self) -> str:
        """The cell's name in tables and on pages."""
        return ", ".join(self.labels) or "all"

    @property
    def slug(self) -> str:
        """The name of trials and folders: ASCII letters, digits, `.`, `_` and `-`; a digest stands for replaced characters."""
        plain = "-".join(self.labels) or "all"
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in plain)
        safe = safe if safe[0].isalnum() else f"x{safe}"
        return safe if safe == plain else f"{safe}-{digest(list(self.labels))[:6]}"


def cells_of(settings: SweepSettings) -> list[Cell]:
    """All cells, in the order of the grid. Raises `UserError` if two would have the same name."""
    cells = [Cell(tuple(label(key, value) for key, value in cell.items()), cell) for cell in settings.cells()]
    for name in ("label", "slug"):
        twice = [value for value, count in Counter(getattr(cell, name) for cell in cells).items() if count > 1]
        if twice:
            raise UserError("grid", f"two of its cells would be called '{twice[0]}'", "choose values with distinct names")
    return cells


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep."""

    cell: str
    phase: Phase
    point: int
    seed: int
    params: dict[str, Any]  # the point: key of the training config -> value
    asked: dict[str, Any]  # the same in the sampler's own names and full precision
    slug: str

    @property
    def name(self) -> str:
        """Unique in the sweep: the cell, the point, and for final runs the seed."""
        parts = [self.slug, f"p{self.point}"] + ([f"seed{self.seed}"] if self.phase == "final" else [])
        return "-".join(parts)

    def overrides(self, settings: SweepSettings, cell: Cell, budget: Mapping[str, Any]) -> dict[str, Any]:
        """Overrides of the base config, without name and storage."""
        split = {"evaluation.split": settings.validation} if self.phase == "search" else {}
        seeds = dict.fromkeys(settings.seed_keys, self.seed)
        return settings.overrides | cell.overrides | self.params | seeds | dict(budget) | split


def command(base: Path, name: str, overrides: Mapping[str, Any]) -> str:
    """The command that trains exactly this trial again, as a separate run."""
    values = [f"{key}={_typed(value)}" for key, value in overrides.items()]
    return shlex.join(["python", "-m", "training", str(base), f"name={name}", *values])


def _typed(value: Any) -> str:
    """The value as typed on a command line, where it is read as YAML."""
    # YAML writes an empty text as a pair of quotes, which `key=` alone could not express.
    if isinstance(value, str) and value.strip() and parse_overrides([f"key={value}"])["key"] == value:
        return value
    return yaml_text.dump(value, flow=True).removesuffix("\n").removesuffix("\n...")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    status: Literal["finished", "stopped", "failed"]
    reason: str = ""
    diverged: bool = False
    metrics: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    epochs: float = math.nan
    samples: float = math.nan
    seconds: float = math.nan  # of training, in all sessions
    loss: float = math.nan
    peak_memory_gib: float = math.nan
    train_samples: int | None = None  # in its training split, or the fraction of it that the trial trains on
    findings: list[dict[str, str]] = field(default_factory=list)  # `training.diagnosis`; of a trial that was stopped none


class Folder:
    """A sweep's folder, with the records of its trials; the driver's working copy, if its place is a URI."""

    def __init__(self, place: Path | str):
        self.path = RunStore(place).folder if isinstance(place, str) else place
        self._place, self._lock = place, threading.Lock()

    def of(self, name: str) -> Path:
        """A trial's folder."""
        return self.path / "trials" / name

    def place(self, name: str) -> Path | str:
        """Where the trial is as a run: its folder, or its URI."""
        return storage.join(self._place, "trials", name)

    def begin(self, trial: Trial) -> None:
        """Record the trial, before it starts."""
        self.of(trial.name).mkdir(parents=True, exist_ok=True)
        write(self.of(trial.name) / _BEGUN, json.dumps(asdict(trial), indent=1))
        kept(self.of(trial.name), _BEGUN)

    def begun(self, name: str) -> dict[str, Any] | None:
        """What `begin` recorded, if it was called."""
        return read_json(self.of(name) / _BEGUN)

    def end(self, name: str, outcome: Outcome) -> None:
        """Record how it ended; see the function."""
        end(self.of(name), outcome)

    def ended(self, name: str) -> Outcome | None:
        """What `end` recorded, if it was called."""
        return ended(self.of(name))

    def so_far(self, name: str) -> Outcome:
        """The results so far of a trial without an outcome, as for a stopped one."""
        return outcome_of("stopped", "", read_metrics(self.of(name) / _CURVE))

    def curve(self, name: str) -> list[dict[str, Any]]:
        """Its evaluations."""
        return evaluations(read_metrics(self.of(name) / _CURVE))

    def hear(self, name: str) -> None:
        """Get what a trial's process has recorded, if the sweep is in a store."""
        with self._lock:  # the later of two threads has the newer files
            fetched(self.of(name), *_RECORDS)

    def keep(self) -> None:
        """Put the sweep's own files, such as its tables and its page, into the store, if it is in one."""
        own = (path for path in self.path.iterdir() if path.is_file() and not path.name.startswith("."))
        kept(self.path, *sorted(path.name for path in own if ".partial-" not in path.name))

    def clear(self) -> None:
        """Delete the weights that trials still have after their end.

        A process may have died while it deleted them, or saved a checkpoint after the driver had recorded that it was stopped.
        """
        if isinstance(self._place, str):
            files = (name.split("/") for name in RunStore(self._place).files("trials"))
            trials = {trial for trial, name, *_ in files if any(fnmatch(name, kind) for kind in _WEIGHTS)}
        else:
            trials = {path.name for path in self.path.glob("trials/*")}
        for trial in trials:
            _clear(self.of(trial))


def pull(store: RunStore) -> None:
    """Make a driver's working copy what the store has of a sweep."""
    names = store.files()
    trials = {name.split("/")[1] for name in names if name.startswith("trials/")}
    shutil.rmtree(store.folder / "trials", ignore_errors=True)
    for path in store.folder.iterdir():
        if path.name not in names and path.is_file() and not path.name.startswith("."):
            path.unlink()
    fetched(store.folder, *(name for name in names if "/" not in name))
    folder = Folder(store.uri)
    for trial in trials:
        folder.of(trial).mkdir(parents=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda trial: fetched(folder.of(trial), *_RECORDS), trials))


def end(trial: Path, outcome: Outcome) -> None:
    """Record how the trial of a folder ended. Checkpoints of search trials are deleted: the trial's command makes them again."""
    write(trial / _ENDED, json.dumps(asdict(outcome), indent=1))
    kept(trial, _ENDED)
    _clear(trial)


def _clear(trial: Path) -> None:
    """Delete the weights of a trial that has ended, unless it is a final run that finished."""
    outcome, begun = ended(trial), read_json(trial / _BEGUN)
    if outcome is None or (begun is not None and begun["phase"] == "final" and outcome.status == "finished"):
        return
    for path in [path for kind in _WEIGHTS for path in trial.glob(kind)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:  # the registry of checkpoints, the embeddings of the held-out split
            path.unlink(missing_ok=True)
    dropped(trial, *_WEIGHTS)


def ended(trial: Path) -> Outcome | None:
    """How the trial of a folder ended, if that was recorded."""
    outcome = read_json(trial / _ENDED)
    if outcome is not None:  # the driver keeps the outcomes of all trials, whose metrics have the same names
        outcome["metrics"] = {sys.intern(name): value for name, value in outcome["metrics"].items()}
    return None if outcome is None else Outcome(**outcome)


def evaluations(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with scores, with means of both directions added."""
    return [line | mean_recalls(line) for line in lines if any("/" in key for key in line)]


def outcome_of(
    status: Literal["finished", "stopped", "failed"], reason: str, lines: Sequence[dict[str, Any]], diverged: bool = False
) -> Outcome:
    """An outcome from the lines of metrics.jsonl."""
    if not lines:
        return Outcome(status, reason, diverged)
    last, scored = lines[-1], evaluations(lines)
    return Outcome(
        status,
        reason,
        diverged,
        {key: value for key, value in scored[-1].items() if "/" in key} if scored else {},
        last["epoch"],
        last["samples"],
        last["seconds"],
        next((line["loss"] for line in reversed(lines) if "loss" in line), math.nan),
        max(line["peak_memory_gib"] for line in lines),
    )


def score_of(metrics: Mapping[str, float], names: Sequence[str]) -> float:
    """Mean of the named metrics; NaN if one is missing."""
    return math.fsum(metrics.get(name, math.nan) for name in names) / len(names)


def result_of_point(outcome: Outcome, curve: Sequence[dict[str, Any]], names: Sequence[str], cost: str | None) -> Result:
    """The result for the sampler."""
    if outcome.status == "finished":
        return Result((score_of(outcome.metrics, names), getattr(outcome, cost) if cost else 0.0))
    scores = [(line["epoch"], score_of(line, names)) for line in curve] if outcome.status == "stopped" else []
    return Result(None, scores, outcome.diverged)


def write_result(place: Path, result: dict[str, Any]) -> None:
    """`result.json` of a trial, as for any other run."""
    write(place / "result.json", json.dumps(result, indent=1))
    kept(place, "result.json")


def write(path: Path, text: str) -> None:
    """Write a temporary file, then rename it."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
