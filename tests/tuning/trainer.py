"""A trainer that needs no training, and a sweep that is run with it: for tests of the schedule. No Ray."""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.program.settings import validate
from tuning.config import SweepSettings
from tuning.search_order import Schedule
from tuning.trials import Folder, Outcome, Trial, cells_of, outcome_of

SCORE = ["m/a", "m/b"]
Judge = Callable[[Trial], Outcome]


def settings(**changes: Any) -> SweepSettings:
    """Two objectives x two optimizers, five points in each cell, two seeds; `changes` of it."""
    tree = {
        "name": "s",
        "base": "base.yaml",
        "grid": {"objective.name": ["clip", "vicreg"], "optimizer.name": ["adamw", "sgd"]},
        "space": {
            "optimizer.lr": {"low": 1e-4, "high": 1, "log": True},
            "objective.temperature": {"low": 0.01, "high": 1, "log": True, "when": {"objective.name": "clip"}},
        },
        "sampler": {"name": "tpe", "startup": 2},
        "trials": 5,
        "seeds": [0, 1],
    }
    return validate(SweepSettings, tree | changes, "sweep.yaml")


def listed(choices: list[Any], **changes: Any) -> SweepSettings:
    """One cell whose point n is the n-th of these choices, so that a test decides every score."""
    tree = {"grid": {}, "space": {"k": {"choices": choices}}, "sampler": {"name": "grid"}, "trials": None}
    return settings(**tree | changes)


def schedule_of(sweep: SweepSettings, folder: Path) -> Schedule:
    """As the driver makes it; each cell's config is what its labels say."""
    cells = cells_of(sweep)
    trees = [{key.split(".")[0]: {"name": value} for key, value in cell.overrides.items()} for cell in cells]
    return Schedule(sweep, cells, trees, SCORE, Folder(folder))


NUMBERS: dict[str, float] = {"epochs": 2.0, "samples": 200.0, "seconds": 3.0, "loss": 1.0, "peak_memory_gib": 0.5}


def finished(score: float, **more: Any) -> Outcome:
    """Two metrics, 1 above and 1 below their mean."""
    return Outcome("finished", metrics={"m/a": score + 1, "m/b": score - 1, "m/other": -score}, **NUMBERS | more)


def failed(reason: str, diverged: bool = False) -> Outcome:
    """A trial whose last evaluation was far better than any other's."""
    return Outcome("failed", reason, diverged, {"m/a": 98.0, "m/b": 98.0}, **NUMBERS)


def line(epoch: float, score: float) -> dict[str, Any]:
    """Of metrics.jsonl."""
    numbers = {"epoch": epoch, "samples": 100 * epoch, "seconds": epoch, "loss": 1.0, "peak_memory_gib": 0.5}
    return {"step": round(10 * epoch), "time": 0.0, "m/a": score + 1, "m/b": score - 1} | numbers


def quality(trial: Trial) -> float:
    """What its parameters are worth: a function of nothing else but the phase's data and the seed's luck."""
    value = -abs(math.log10(trial.params.get("optimizer.lr", 0.01)) + 2) - abs(
        math.log10(trial.params.get("objective.temperature", 0.1)) + 1
    )
    return 50 + 10 * value + (0 if trial.phase == "search" else 0.1 * trial.seed - 5)


def smooth(trial: Trial) -> Outcome:
    """Every trial comes to its end."""
    return finished(quality(trial), seconds=1.0 + trial.point % 3)


def rough(trial: Trial) -> Outcome:
    """Large learning rates diverge, some trials fail, some are stopped: a function of the trial alone."""
    if trial.phase == "final":
        return failed("lost") if trial.seed == 1 and trial.cell == "clip, sgd" else finished(quality(trial))
    if trial.params["optimizer.lr"] > 0.3:
        return failed("the loss is nan", diverged=True)
    if trial.point % 5 == 3:
        return failed("out of memory")
    if trial.point % 5 == 1:
        return outcome_of("stopped", "by asha", [line(1, quality(trial) - 2), line(2, quality(trial))])
    return smooth(trial)


@dataclass
class Run:
    """What a sweep's sessions did: trials as they were handed out, and how each ended."""

    folder: Path
    judge: Judge
    handed: list[Trial] = field(default_factory=list)
    ended: dict[str, Outcome] = field(default_factory=dict)

    def session(self, schedule: Schedule, at_once: int = 1, order: int = 0, ends: int | None = None) -> Schedule:
        """Hand out, train, take in, until all is done, or this driver is killed after so many trials have ended.

        Trials end in an order drawn from `order`. The kill may come before a trial is noted as begun, or before the schedule has
        heard of one that has ended.
        """
        draw, folder = random.Random(order), Folder(self.folder)
        out: list[Trial] = []
        left = math.inf if ends is None else ends
        while True:
            while len(out) < at_once and (trial := schedule.next()) is not None:
                assert trial.name not in self.ended, f"{trial.name} is trained a second time"
                before = [known for known in self.handed if known.name == trial.name]
                assert all(known == trial for known in before), f"{trial.name} is another trial now"
                self.handed.append(trial)
                if left == 0 and draw.random() < 0.5:
                    return schedule
                folder.begin(trial)
                out.append(trial)
            if not out or left == 0:
                return schedule
            trial = out.pop(draw.randrange(len(out)))
            outcome = self.judge(trial)
            if outcome.status == "stopped":
                lines = [line(1, quality(trial) - 2), line(2, quality(trial))]
                text = "".join(json.dumps(one) + "\n" for one in lines)
                (folder.of(trial.name) / "metrics.jsonl").write_text(text)
            folder.end(trial.name, outcome)
            self.ended[trial.name] = outcome
            left -= 1
            if left == 0 and draw.random() < 0.3:
                return schedule
            schedule.ended(trial.name, outcome)

    def trials(self) -> dict[str, Mapping[str, Any]]:
        """What was trained to an end: by name, all that makes the trial what it is."""
        of = {trial.name: vars(trial) for trial in self.handed}
        return {name: of[name] for name in self.ended}

    def names(self) -> list[str]:
        """In the order in which they were handed out."""
        return [trial.name for trial in self.handed]


def run(sweep: SweepSettings, folder: Path, judge: Judge = smooth, at_once: int = 1, order: int = 0) -> tuple[Run, Schedule]:
    """A whole sweep in one session."""
    ran = Run(folder, judge)
    return ran, ran.session(schedule_of(sweep, folder), at_once, order)
