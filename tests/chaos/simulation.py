"""One run under a schedule on a cluster of this machine, and what must hold after it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray._private.state
import torch
import yaml
from ray.cluster_utils import Cluster

from tests.chaos.schedule import EVERY, STEPS, Fault, Schedule
from tests.training.lost_steps import NOTICE, add_node, give_notice
from tests.training.undisturbed import broken_squares, leg, planned, tree_of
from training.checkpoint_registry import newest_checkpoint
from training.placement import HELD
from training.tensor_tree import load_tree

import psutil  # isort: skip  comes with ray

ROOT = Path(__file__).parents[2]
NODES = 4  # of one CPU: for three workers, or two and a spare one, and for the tasks that read
STARTS = 8  # of the command, at most
SECONDS = 5.0  # that a worker stands still, or a disk is full
OF_A_PROCESS = {"kill-worker", "stop-worker", "kill-node", "notice"}
PATIENCE = 300.0  # seconds without any news of a run: it hangs

# All that a finished run leaves, besides its checkpoints.
LEFT = {"config.yaml", "metrics.jsonl", "result.json", "report.html", "held_out.npz", "held_out.json", "unusable.jsonl", "towers"}
LEFT |= {"restarts.jsonl", ".lock", HELD, "newest_checkpoint.json", "checkpoint_manager_snapshot.json"}
LEFT |= {"checkpoint_manager_snapshot.kept.json", ".validate_storage_marker", "sessions.jsonl"}


class Broken(Exception):  # noqa: N818 - what a simulation is for
    """Something that must hold does not."""


@dataclass
class Injected:
    """A fault that came: `lost` steps were done again, and `seconds` later the run had done a new step."""

    fault: Fault
    when: float
    lost: int = 0
    seconds: float | None = None


@dataclass
class Outcome:
    """How a run under a schedule ended: `broken` is empty if all held."""

    schedule: Schedule
    injected: list[Injected] = field(default_factory=list)
    starts: int = 0
    seconds: float = 0.0
    broken: str = ""


class Simulator:
    """A cluster, and runs on it one after another; a context.

    Args:
        home: a folder for all that the runs need and leave; those of runs that ended well are deleted.
        small: a folder of a small file system, which can be filled; None: no disk gets full.
    """

    def __init__(self, home: Path, small: Path | None = None):
        self._home, self._small, self._cluster = home, small, None
        self._leaving: list[tuple[Any, float]] = []  # nodes under notice, and when they are taken away
        home.mkdir(parents=True, exist_ok=True)
        data = home / "squares"
        self._squares = broken_squares(data)
        self._references: dict[str, tuple[list[dict[str, Any]], dict[int, list[int]], dict[str, Any]]] = {}

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, schedule: Schedule, name: str) -> Outcome:
        """A run under this schedule."""
        outcome, began = Outcome(schedule), time.monotonic()
        try:
            self._start()
            folder = self._run(schedule, name, outcome)
            self._take_away(time.monotonic() + NOTICE)
            self._check(schedule, folder / name, outcome)
            self._nothing_is_taken()
            shutil.rmtree(self._home / name)
            if folder != self._home / name:
                shutil.rmtree(folder / name)
        except Exception as error:
            outcome.broken = str(error) if isinstance(error, Broken) else f"the simulator failed: {traceback.format_exc()}"
            self._stop()  # whatever is left is gone before the next run
        outcome.seconds = time.monotonic() - began
        return outcome

    # --- the cluster

    def _start(self) -> None:
        if self._cluster is None:
            os.environ.pop("RAY_ADDRESS", None)
            self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}, connect=True)
        self._take_away(time.monotonic() + NOTICE)
        while len(self._cluster.worker_nodes) < NODES:
            add_node(self._cluster)
        for node in sorted(self._cluster.worker_nodes, key=str)[NODES:]:
            self._cluster.remove_node(node)

    def _take_away(self, now: float) -> None:
        """Kill the nodes whose notice has run out."""
        for entry in [entry for entry in self._leaving if entry[1] <= now]:
            self._leaving.remove(entry)
            if self._cluster is not None and entry[0] in self._cluster.worker_nodes:
                self._cluster.remove_node(entry[0], allow_graceful=False)

    def _stop(self) -> None:
        with suppress(Exception):
            ray.shutdown()
        if self._cluster is not None:
            with suppress(Exception):
                self._cluster.shutdown()
        self._cluster, self._leaving = None, []

    def _nothing_is_taken(self) -> None:
        """The cluster is as it was: no placement group, all CPUs free, and no actor but what Ray Data keeps for the cluster."""

        def taken() -> list[Any]:
            groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
            actors = [
                actor["ActorClassName"]
                for actor in ray._private.state.actors().values()
                if actor["State"] == "ALIVE" and not actor["IsDetached"]
            ]
            free = ray.available_resources().get("CPU", 0), ray.cluster_resources().get("CPU", 0)
            return groups + actors + ([] if free[0] == free[1] else [free])

        self._wait(lambda: not taken(), lambda: f"still taken in the cluster: {taken()}", 120)

    # --- one run

    def _run(self, schedule: Schedule, name: str, outcome: Outcome) -> Path:
        """Start the run, inject its faults, start it again until it has ended. Returns the folder of its storage."""
        place = self._home / name
        place.mkdir()
        full = any(fault.kind == "full-disk" for fault in schedule.faults)
        storage = self._small if full and self._small is not None else place
        (place / "schedule.json").write_text(json.dumps([[fault.phase, fault.step, fault.rank] for fault in schedule.faults]))
        tree = self._tree(schedule) | {"name": name, "storage": str(storage)}
        (place / "run.yaml").write_text(yaml.safe_dump(tree))
        program, news = None, time.monotonic()
        while True:
            if program is None:
                if outcome.starts == STARTS:
                    raise Broken(f"not ended after {STARTS} starts:\n{self._said(place)}")
                outcome.starts += 1
                program = self._program(place, outcome.starts)
                news = time.monotonic()
            for number, fault in enumerate(schedule.faults):
                told, go = place / f"at-{number}", place / f"go-{number}"
                if told.exists() and not go.exists():
                    worker = int(told.read_text())
                    if fault.kind in OF_A_PROCESS and not psutil.pid_exists(worker):
                        go.touch()  # an earlier fault took it along
                        continue
                    outcome.injected.append(Injected(fault, time.time()))
                    alive = self._inject(fault, worker, program, storage / name)
                    go.touch()
                    news = time.monotonic()
                    if not alive:
                        program = None
            if program is not None and (code := program.poll()) is not None:
                if code == 0:
                    break
                if not outcome.injected:
                    raise Broken(f"ended with code {code} before any fault:\n{self._said(place)}")
                program = None
            self._take_away(time.monotonic())
            if (storage / name / "metrics.jsonl").exists():
                changed = (storage / name / "metrics.jsonl").stat().st_mtime
                news = max(news, time.monotonic() - (time.time() - changed))
            if time.monotonic() - news > PATIENCE:
                said = self._said(place)
                if program is not None:
                    self._kill(program)
                raise Broken(f"no news for {PATIENCE:.0f} s:\n{said}")
            time.sleep(0.05)
        return storage

    def _tree(self, schedule: Schedule) -> dict[str, Any]:
        tree = tree_of(self._squares, schedule.objective)
        workers: Any = [1, 3] if schedule.workers == "1-3" else int(schedule.workers)
        return tree | {
            "global_batch_size": 7,
            "evaluation": tree["evaluation"] | {"every_epochs": 2},
            "checkpoint": {"every_steps": EVERY},
            "resources": {"num_workers": workers, "max_failures": 20},
        }

    def _program(self, place: Path, start: int) -> psutil.Popen:
        assert self._cluster is not None
        with (place / f"output-{start}.txt").open("w") as output:
            return psutil.Popen(
                [sys.executable, "-m", "tests.chaos.program", str(place), str(place / "run.yaml")],
                cwd=ROOT,
                env=os.environ | {"RAY_ADDRESS": self._cluster.address},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _said(self, place: Path) -> str:
        return "\n".join(f"[start {p.stem}] {p.read_text()[-1500:]}" for p in sorted(place.glob("output-*.txt"))[-2:])

    def _kill(self, program: psutil.Popen) -> None:
        with suppress(psutil.NoSuchProcess):  # it may have ended by itself
            program.kill()
        program.wait()

    def _inject(self, fault: Fault, worker: int, program: psutil.Popen, run: Path) -> bool:
        """Whether the program goes on."""
        assert self._cluster is not None
        if fault.kind == "kill-worker":
            os.kill(worker, signal.SIGKILL)
        elif fault.kind == "stop-worker":
            os.kill(worker, signal.SIGSTOP)
            time.sleep(SECONDS)
            os.kill(worker, signal.SIGCONT)
        elif fault.kind in ("kill-node", "notice"):
            raylets = [parent.pid for parent in psutil.Process(worker).parents()]
            (node,) = (n for n in self._cluster.worker_nodes if n.all_processes["raylet"][0].process.pid in raylets)
            if fault.kind == "notice":
                give_notice(self._cluster, node)
                self._leaving.append((node, time.monotonic() + NOTICE))
            else:
                self._cluster.remove_node(node, allow_graceful=False)
            add_node(self._cluster)
        elif fault.kind == "add-node":
            add_node(self._cluster)
        elif fault.kind == "full-disk":
            self._fill(run)
        elif fault.kind == "kill-head":
            self._cluster.head_node.kill_gcs_server(check_alive=False)
            with suppress(psutil.TimeoutExpired):
                program.wait(120)
            self._kill(program)
            self._stop()
            self._start()
            return False
        else:
            self._kill(program)
            self._damage(fault, run)
            return False
        return True

    def _fill(self, run: Path) -> None:
        """Leave no byte on the disk of the run for some seconds."""
        filler = run.parent / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        time.sleep(SECONDS)
        filler.unlink()

    def _damage(self, fault: Fault, run: Path) -> None:
        if fault.kind == "kill-driver":
            return
        self._wait(lambda: not _group_is_there(run), lambda: "the controller of a killed program lives on", 120)
        try:
            folder = newest_checkpoint(run)
        except Exception:  # none yet: there is nothing to damage
            return
        file = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(file.read_bytes())
        if fault.kind == "cut-checkpoint":
            file.write_bytes(data[: len(data) // 2])
        else:
            data[len(data) // 2] ^= 1
            file.write_bytes(data)

    def _wait(self, reached: Callable[[], bool], told: Callable[[], str], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not reached():
            if time.monotonic() > end:
                raise Broken(told())
            time.sleep(0.1)

    # --- what must hold

    def _reference(self, schedule: Schedule) -> tuple[list[dict[str, Any]], dict[int, list[int]], dict[str, Any]]:
        """Lines, samples and final state of the undisturbed run with one worker, in this process."""
        if schedule.objective not in self._references:
            plan = planned(self._tree(schedule))
            place = self._home / f"undisturbed-{schedule.objective}"
            lines, consumed = leg(plan, None, plan.total_steps, place)
            state = _state(place)
            shutil.rmtree(place)
            self._references[schedule.objective] = lines, {step: ids for step, _, ids in consumed}, state
        return self._references[schedule.objective]

    def _check(self, schedule: Schedule, run: Path, outcome: Outcome) -> None:
        expected, samples, state = self._reference(schedule)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        if steps != list(range(1, STEPS + 1)):
            raise Broken(f"metrics.jsonl has the steps {steps}")
        for line, fixed in zip(lines, expected, strict=True):
            if abs(line["loss"] - fixed["loss"]) > 1e-4 or (line["lr"], line["samples"]) != (fixed["lr"], fixed["samples"]):
                raise Broken(f"step {line['step']}: loss {line['loss']}, undisturbed {fixed['loss']}")
        found = _consumed(self._home / run.name)
        if found != samples:
            wrong = [step for step in samples if found.get(step) != samples[step]]
            raise Broken(f"other samples than undisturbed in steps {wrong}: {found.get(wrong[0])}, {samples[wrong[0]]}")
        final = _state(run / f"checkpoint_{STEPS:08d}")
        for part in ("encoder", "objective", "teacher"):
            try:
                torch.testing.assert_close(final[part], state[part], rtol=1e-3, atol=1e-4)
            except AssertionError as error:
                raise Broken(f"{part} of the final state differs: {error}") from None
        left = {path.name for path in run.iterdir() if not path.name.startswith(("checkpoint_", "damaged-"))} - LEFT
        if left:
            raise Broken(f"left in the run's folder: {sorted(left)}")
        for injected in outcome.injected:
            _account(injected, lines, self._home / run.name)


def _state(folder: Path) -> dict[str, Any]:
    return load_tree(folder, "state")


def _group_is_there(run: Path) -> bool:
    """Whether the controller of an earlier start holds its file: it registers checkpoints until it ends."""
    import fcntl

    try:
        with (run / HELD).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _records(place: Path) -> list[tuple[int, int, int, int, dict[int, list[int]]]]:
    """(time in ns, first step, rank, workers, samples by step) of each attempt's worker, the newest first."""
    found = []
    for path in place.glob("*-of-*.jsonl"):
        when, first, rank, _, workers = path.stem.split("-")
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        found.append((int(when), int(first), int(rank), int(workers), {line["step"]: line["ids"] for line in lines}))
    return sorted(found, key=lambda record: -record[0])


def _consumed(place: Path) -> dict[int, list[int]]:
    """The samples of each step that the final weights have seen: those of the last attempt that did it."""
    records, samples = _records(place), {}
    for step in range(STEPS):
        did = [record for record in records if step in record[4]]
        if did:
            _, first, _, workers, _ = did[0]
            newest = {}
            for record in did:
                if record[1] == first and record[3] == workers:
                    newest.setdefault(record[2], record[4][step])
            samples[step] = [i for rank in sorted(newest) for i in newest[rank]]
    return samples


def _account(injected: Injected, lines: list[dict[str, Any]], place: Path) -> None:
    """Steps that were done again after a fault, and seconds until a step that was new then had been done."""
    done = (
        injected.fault.step
        if injected.fault.phase in ("report", "checkpoint", "upload", "evaluation", "end")
        else injected.fault.step - 1
    )
    later = [first for when, first, *_ in _records(place) if when / 1e9 > injected.when]
    if later:
        injected.lost = max(0, done - later[-1])
    news = [line["time"] for line in lines if line["step"] > done and line["time"] > injected.when]
    injected.seconds = min(news) - injected.when if news else None
