"""Figures of benchmarks as files: what was measured, how often, by which command and on what; and whether they have drifted.

A ratio to what a user would pick instead holds on any machine, and is compared; seconds and MiB are this machine's, and are not.
"""

import importlib.metadata
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.runs import machine
from pipelines.io.storage import written

FOLDER = Path("docs/benchmarks")
DRIFT = 0.05  # a ratio that moved by less is the same, whatever its rounds say
_PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "webdataset", "pillow", "optuna")


@dataclass(frozen=True)
class Figure:
    """One number, measured in several rounds.

    unit: `x` for a ratio within a round.
    better: which direction is; empty: neither.
    """

    name: str
    values: list[float]
    unit: str = "x"
    better: Literal["more", "less", ""] = "more"

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The least and the most of fewer than four rounds."""
        if len(self.values) < 4:
            return min(self.values), max(self.values)
        low, _, high = statistics.quantiles(self.values, n=4)
        return low, high

    def __str__(self) -> str:
        median, low, high = (f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in (self.median, *self.quartiles))
        return f"{median} ({low} to {high})"


def write(name: str, command: str, figures: Sequence[Figure]) -> Path:
    """Keep the figures of a benchmark beside its page."""
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    told = {"command": command, "machine": machine(), "versions": versions, "figures": [asdict(figure) for figure in figures]}
    with written(path := FOLDER / f"{name}.json") as aside:
        aside.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return path


def read(name: str) -> tuple[dict[str, Any], list[Figure]]:
    """What was kept of a benchmark: command, machine and versions, and its figures."""
    told = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return told, [Figure(**figure) for figure in told.pop("figures")]


def drift(kept: Sequence[Figure], now: Sequence[Figure]) -> list[str]:
    """A line for each ratio that moved by more than `DRIFT` and beyond the quartiles of both, or that only one of them has."""
    before, after = ({figure.name: figure for figure in figures if figure.unit == "x"} for figures in (kept, now))
    lines = [f"{name}: not among the kept figures" for name in after.keys() - before.keys()]
    lines += [f"{name}: not measured" for name in before.keys() - after.keys()]
    for name in before.keys() & after.keys():
        old, new = before[name], after[name]
        (old_low, old_high), (low, high) = old.quartiles, new.quartiles
        if abs(new.median / old.median - 1) > DRIFT and (low > old_high or high < old_low):
            more = "more" if new.median > old.median else "less"
            word = "changed" if not old.better else "better" if more == old.better else "worse"
            lines.append(f"{name}: {word}, {new} now, {old} before")
    return sorted(lines)
