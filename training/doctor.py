"""Follows a run's workers by their pulses, in a thread of its driver: who trains since when, what it waits for, and what hangs.

A worker that has not moved for `resources.patience_minutes` is examined, together with all processes of the run that somebody has
stopped: the report names the worker that the others wait for, its stage, its step and its stack, and stopped processes. These are
then ended, or that worker is. Ray starts a reading task again; after a lost worker the run resumes from its last checkpoint, or
ends: it counts as one of `resources.max_failures`. Without Ray Train's controller it ends.

A run that waits for resources does not hang: `placement` says what for.
"""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.util

from pipelines.program.display import Display
from training.metrics_file import read_metrics
from training.placement import nodes_of, waiting
from training.process_states import PATIENCE, Process, end, examined
from training.pulse import STAGES, forget, pulses, say_why
from training.sessions import note

_INTERVAL = 1.0  # seconds between two looks
_SILENT = 5.0  # seconds without a beat, which comes every second
_PATIENCE = 5.0  # seconds within which a group that fits is placed
_LONGEST = 8 * PATIENCE  # seconds for nodes to answer, where that took too long before: their machines may be busy
_SHOWN = 3  # frames of a stack

_DOES = {
    "start": "starts",
    "read": "waits for data",
    "step": "is in a step",
    "evaluate": "evaluates",
    "checkpoint": "writes a checkpoint",
    "upload": "uploads a checkpoint",
    "report": "reports",
}


class Doctor:
    """A context in which the thread runs. `cause`: why the workers that are lost now were ended; empty if not by us."""

    def __init__(self, folder: Path, patience: float | None, display: Display):
        """`patience`: in seconds; None: nothing is ever taken to hang."""
        self._folder, self._patience, self._display, self._over = folder, patience, display, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._ranks = 0  # the most that were seen
        self._born: set[float] = set()  # of the workers that were seen first
        self._reached = max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)
        self._waits: float | None = None  # since when, by this process's clock
        self._said = ""
        # By rank, and whether it is a thread beside the loop: where it was seen, first when, its CPU time then.
        self._moved: dict[tuple[int, bool], tuple[Any, float, float]] = {}
        self._beaten: dict[int, tuple[Any, float]] = {}  # by rank: its last beat, and first when
        self._answer = PATIENCE  # seconds for nodes to answer
        self._calm = time.monotonic()  # when a worker last beat, or something else was known to be the matter
        self.cause = ""

    def __enter__(self) -> "Doctor":
        forget(self._folder, max(1, len(pulses(self._folder))))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)
        with suppress(Exception):  # those that have worked for less than a second
            self._note_workers(pulses(self._folder))
        forget(self._folder, self._ranks)

    def _follow(self) -> None:
        while not self._over.wait(_INTERVAL):
            with suppress(Exception):  # the head or the disk may not answer at the moment
                self._look()

    def _look(self) -> None:
        waits, workers, now = waiting(self._folder), pulses(self._folder), time.monotonic()
        self._note_waiting(waits, now)
        self._ranks = max(self._ranks, len(workers))
        self._note_workers(workers)
        if self._patience is None:
            return
        still = self._still(workers, now)
        if waits or (workers and all(worker["stage"] == "ended" for worker in workers)):
            self._be_calm(now)
        elif still or now - self._calm > self._patience:
            self._treat(still)
            self._be_calm(time.monotonic())

    def _note_waiting(self, text: str, now: float) -> None:
        self._waits = None if not text else self._waits or now
        if bool(text) != bool(self._said) and (not text or now - (self._waits or now) > _PATIENCE):
            note(self._folder, "waiting", text=text)
            self._said = text

    def _note_workers(self, workers: list[dict[str, Any]]) -> None:
        if not workers or len(workers) < workers[0]["size"]:
            return
        born = {worker["born"] for worker in workers}
        first = workers[0]["first"]
        if first >= 0 and not born & self._born:
            values: dict[str, Any] = {"time": round(max(born), 3), "step": first, "redone": max(0, self._reached - first)}
            values |= {"workers": len(workers), "gpus": sum(worker["gpu"] for worker in workers)}
            values |= {"nodes": sorted({worker["address"] for worker in workers})}
            note(self._folder, "workers", **values)
            self._born, self._reached, self.cause = born, first, ""
        if born == self._born:
            self._reached = max(self._reached, *(worker["step"] for worker in workers))

    def _still(self, workers: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
        """The workers that have not moved for too long, in their loop or beside it."""
        assert self._patience is not None
        still = []
        saving = [worker | worker["beside"] for worker in workers if worker["beside"] is not None]
        for worker, beside in [*((worker, False) for worker in workers), *((worker, True) for worker in saving)]:
            rank, beat = worker["rank"], (worker["born"], worker["beat"])
            place = worker["born"], worker["moves"], worker["step"] if beside else None
            if self._moved.get((rank, beside), (None,))[0] != place:
                self._moved[rank, beside] = place, now, worker["cpu"]
            if self._beaten.get(rank, (None,))[0] != beat:
                self._beaten[rank] = beat, now
                self._calm = now
            _, since, cpu = self._moved[rank, beside]
            scores = worker["stage"] == "evaluate" and worker["cpu"] - cpu > (now - since) / 2  # which may take long
            if now - since > self._patience and worker["stage"] != "ended" and not scores:
                still.append(worker | {"silent": now - self._beaten[rank][1] > _SILENT})
        return still

    def _be_calm(self, now: float) -> None:
        """Give everything its whole patience again."""
        self._calm, self._moved = now, {}

    def _treat(self, still: list[dict[str, Any]]) -> None:
        """Say what hangs, and end it."""
        blamed = _blamed(still)
        nodes = {worker["node"]: worker["address"] for worker in still} | nodes_of(self._folder)
        nodes[ray.get_runtime_context().get_node_id()] = ray.util.get_node_ip_address()  # where the controller is
        known = {(worker["node"], worker["pid"]) for worker in blamed}
        found, mute = examined(nodes, known, self._answer)
        self._answer = min(2 * self._answer, _LONGEST) if mute else PATIENCE
        ours = [one for one in found if (one.node, one.pid) in known]
        stopped = [one for one in found if one.stopped]
        parts = [_described(worker, found, worker["node"] in mute) for worker in blamed] or ["no worker has begun"]
        parts += [
            f"{one.title} (process {one.pid}) on {one.address} is stopped, by a signal" for one in stopped if one not in ours
        ]
        parts += [f"node {nodes[node]} does not answer" for node in mute]
        text = f"nothing has moved for {self._patience:.0f} s: {'; '.join(parts)}"
        note(self._folder, "stall", text=text)
        ended = [one for one in stopped if one.ours] or ours
        if any(one in ours or one.controls for one in ended):
            self.cause = text
            say_why(self._folder, text)
        what = f"ending process {', '.join(str(one.pid) for one in ended)}" if ended else "nothing can be done about it from here"
        self._display.line(f"{text}; {what}")
        end(ended)


def _blamed(still: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those for which the others wait: they do not even beat, or else are behind, or else do not wait for others themselves."""
    silent = [worker for worker in still if worker["silent"]]

    def place(worker: dict[str, Any]) -> tuple[int, int, bool]:
        return worker["step"], STAGES.index(worker["stage"]), worker["waits"]

    return silent or [worker for worker in still if place(worker) == min(map(place, still))]


def _described(worker: dict[str, Any], found: list[Process], unseen: bool) -> str:
    """A worker in words; `unseen`: its node did not answer."""
    process = next((one for one in found if (one.node, one.pid) == (worker["node"], worker["pid"])), None)
    does = f"{_DOES[worker['stage']]}{', where it waits for the others,' if worker['waits'] else ''}"
    words = f"worker {worker['rank']} of {worker['size']} on {worker['address']} {does} after step {worker['step']:,}"
    if process is None:
        words += "" if unseen else "; its process has gone, and no other has started"
    elif process.stopped:
        words += f", and its process {process.pid} is stopped, by a signal"
    elif worker["silent"]:
        words += f", and its process {process.pid} ({process.state}) does not answer"
    stack = (worker["silent"] and process and process.stack) or worker["stack"] or (process and process.stack)
    return words + (f", in {' < '.join(stack[:_SHOWN])}" if stack else "")
