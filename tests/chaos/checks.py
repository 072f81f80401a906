"""What must hold after a run under a schedule: it ended as the undisturbed one, and left nothing behind."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.chaos.schedule import STEPS, Fault, Schedule
from tests.training.gloo import Gloo
from tests.training.undisturbed import leg, planned
from training.checkpoint_registry import DIGESTS, changed, registered
from training.metrics_file import read_metrics
from training.placement import HELD
from training.sessions import SESSIONS
from training.tensor_tree import load_tree

# All that a finished run leaves, besides its checkpoints.
LEFT = {"config.yaml", "metrics.jsonl", "result.json", "report.html", "held_out.npz", "held_out.json", "unusable.jsonl", "towers"}
LEFT |= {"restarts.jsonl", ".lock", HELD, "newest_checkpoint.json", "checkpoint_manager_snapshot.json"}
LEFT |= {"checkpoint_manager_snapshot.kept.json", ".validate_storage_marker", "sessions.jsonl"}
NAMED = 60.0  # seconds after its patience within which a run names what hangs


class Broken(Exception):  # noqa: N818 - what a simulation is for
    """Something that must hold does not."""


@dataclass
class Injected:
    """A fault that came: `lost` steps were done again, and `seconds` later the run had done a new step."""

    number: int  # of the fault in its schedule
    fault: Fault
    when: float
    pids: list[int] = field(default_factory=list)  # of the processes that stand still
    lost: int = 0
    seconds: float | None = None


@dataclass
class Outcome:
    """How a run under a schedule ended: `broken` is empty if all held."""

    schedule: Schedule
    injected: list[Injected] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    samples: tuple[int, int] | None = None  # that the final weights have seen too often, and not; None: not known
    broken: str = ""


Undisturbed = tuple[list[dict[str, Any]], dict[int, list[int]], dict[str, Any]]


class Checks:
    """`home`: a folder to work in. `tree_of`: the config of a schedule's run."""

    def __init__(self, home: Path, tree_of: Callable[[Schedule], dict[str, Any]]):
        self._home, self._tree_of = home, tree_of
        self._undisturbed: dict[tuple[str, bool], Undisturbed] = {}

    def _reference(self, schedule: Schedule) -> Undisturbed:
        """Lines, samples and final state of the undisturbed run, without Ray: of as many workers, or of one for a range."""
        key = schedule.objective, schedule.fixed
        if key not in self._undisturbed:
            plan = planned(self._tree_of(schedule))
            place = self._home / f"undisturbed-{schedule.objective}"
            call = None, plan.total_steps, place
            if schedule.fixed:
                with Gloo(int(schedule.workers)) as gloo:
                    parts = gloo(int(schedule.workers), leg, plan, *call)
            else:
                parts = [leg(plan, *call)]
            samples: dict[int, list[int]] = {}
            for step, _, ids in sorted(entry for _, entries in parts for entry in entries):
                samples.setdefault(step, []).extend(ids)
            self._undisturbed[key] = parts[0][0], samples, load_tree(place, "state")
            shutil.rmtree(place)
        return self._undisturbed[key]

    def all_hold(self, schedule: Schedule, run: Path, aside: Path, outcome: Outcome, patience: float) -> None:
        """Check `run`, all that is stored of it, and what its workers have noted `aside`. Raises `Broken`."""
        expected, samples, state = self._reference(schedule)
        lines = read_metrics(run / "metrics.jsonl")
        _account(outcome.injected, aside)
        found = _consumed(aside)
        outcome.samples = _differences(found, samples)
        steps = [line["step"] for line in lines]
        if steps != list(range(1, STEPS + 1)):
            raise Broken(f"metrics.jsonl has the steps {steps}")
        if found != samples:
            wrong = [step for step in samples if found.get(step) != samples[step]]
            raise Broken(f"other samples than undisturbed in steps {wrong}: {found.get(wrong[0])}, {samples[wrong[0]]}")
        for line, fixed in zip(lines, expected, strict=True):
            off = abs(line["loss"] - fixed["loss"])
            if off > (0 if schedule.fixed else 1e-4) or (line["lr"], line["samples"]) != (fixed["lr"], fixed["samples"]):
                raise Broken(f"step {line['step']}: loss {line['loss']}, undisturbed {fixed['loss']}")
        final = load_tree(run / f"checkpoint_{STEPS:08d}", "state")
        tolerances = {"rtol": 0, "atol": 0} if schedule.fixed else {"rtol": 1e-3, "atol": 1e-4}
        for part in ("encoder", "objective", "teacher", *(["optimizer"] if schedule.fixed else [])):
            try:
                torch.testing.assert_close(final[part], state[part], **tolerances)
            except AssertionError as error:
                raise Broken(f"{part} of the final state differs: {error}") from None
        _nothing_is_half_written(run)
        _frozen_are_named(run, outcome.injected, patience)


def _nothing_is_half_written(run: Path) -> None:
    beside = [path.name for path in run.parent.iterdir() if path.name != run.name] if run.parent.name == "brought" else []
    left = {path.name for path in run.iterdir() if not path.name.startswith(("checkpoint_", "damaged-"))} - LEFT
    if left or beside:
        raise Broken(f"left in the run's folder: {sorted(left)}; beside it: {beside}")
    checkpoints = {path.name for path in run.glob("checkpoint_*") if path.is_dir()}
    listed = {path.name for path in registered(run)}
    if checkpoints != listed:
        raise Broken(f"the run has the checkpoints {sorted(checkpoints)}, and lists {sorted(listed)}")
    for name in checkpoints:
        files = {path.name for path in (run / name).iterdir()}
        wanted = {*json.loads((run / name / DIGESTS).read_text())["files"], DIGESTS}
        if files != wanted or (what := changed(run / name)):
            raise Broken(f"{name} has the files {sorted(files)}, and should have {sorted(wanted)}; {what}")


def _frozen_are_named(run: Path, faults: list[Injected], patience: float) -> None:
    """By the doctor, in time; unless another fault ended them, or nobody needed what they do."""
    stalls = [line for line in read_metrics(run / SESSIONS) if line["event"] == "stall"]
    for fault in faults:
        end = fault.when + patience + NAMED
        named = [
            pid
            for pid in fault.pids
            for line in stalls
            if fault.when < line["time"] < end and re.search(rf"process {pid}\b", line["text"])
        ]
        others = [other for other in faults if other is not fault and fault.when <= other.when < end]
        unneeded = fault.fault.kind == "freeze-task" and (fault.seconds is None or fault.seconds < patience)
        frozen = fault.fault.kind.startswith("freeze-") and fault.pids
        if frozen and not named and not others and not unneeded:
            raise Broken(f"{fault.fault}: process {fault.pids} is not named within {patience + NAMED:.0f} s: {stalls}")


def _differences(found: dict[int, list[int]], wanted: dict[int, list[int]]) -> tuple[int, int]:
    """How many (step, sample) there are too many, and too few."""
    ours, theirs = (Counter((step, i) for step, ids in of.items() for i in ids) for of in (found, wanted))
    return (ours - theirs).total(), (theirs - ours).total()


@dataclass(frozen=True)
class _Attempt:
    """What one worker of one start consumed."""

    when: float
    first: int
    rank: int
    workers: int
    samples: dict[int, list[int]]  # by step, counted from 0
    times: dict[int, float]


def _attempts(aside: Path) -> list[_Attempt]:
    """The newest first."""
    found = []
    for path in aside.glob("*-of-*.jsonl"):
        when, first, rank, _, workers = path.stem.split("-")
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        samples, times = {line["step"]: line["ids"] for line in lines}, {line["step"]: line["time"] for line in lines}
        found.append(_Attempt(int(when) / 1e9, int(first), int(rank), int(workers), samples, times))
    return sorted(found, key=lambda attempt: -attempt.when)


def _consumed(aside: Path) -> dict[int, list[int]]:
    """The samples of each step that the final weights have seen: those of the last attempt that did it."""
    attempts, samples = _attempts(aside), {}
    for step in range(STEPS):
        did = [attempt for attempt in attempts if step in attempt.samples]
        newest: dict[int, list[int]] = {}
        for attempt in did:
            if (attempt.first, attempt.workers) == (did[0].first, did[0].workers):
                newest.setdefault(attempt.rank, attempt.samples[step])
        if did:
            samples[step] = [i for rank in sorted(newest) for i in newest[rank]]
    return samples


def _account(faults: list[Injected], aside: Path) -> None:
    """Steps done again after a fault, and seconds until the run began a step that was new; both if before the next fault."""
    attempts = _attempts(aside)
    times = list(_begun(attempts))
    for fault, after in zip(faults, [*(other.when for other in faults[1:]), float("inf")], strict=True):
        begun = max((step for time, step in times if time < fault.when), default=-1)
        # A checkpoint is written while training goes on.
        done = max(begun, fault.fault.step - (fault.fault.phase not in ("report", "checkpoint", "upload", "evaluation", "end")))
        starts = [attempt.first for attempt in attempts if fault.when < attempt.when < after]
        fault.lost = max(0, done - starts[-1]) if starts else 0
        news = [time for time, step in times if fault.when < time < after and step > begun]
        fault.seconds = min(news) - fault.when if news else None


def _begun(attempts: list[_Attempt]) -> Iterator[tuple[float, int]]:
    """When the last worker of a start began a step, and which."""
    together: dict[int, _Attempt] = {}  # by rank
    for attempt in reversed(attempts):
        if attempt.rank in together or any((a.first, a.workers) != (attempt.first, attempt.workers) for a in together.values()):
            together = {}
        together[attempt.rank] = attempt
        if len(together) == attempt.workers:
            for step in range(STEPS):
                if all(step in one.times for one in together.values()):
                    yield max(one.times[step] for one in together.values()), step
