"""What each worker of a run is doing: a thread in it puts that into Ray's internal store, where the driver reads it (doctor.py).

The store is the cluster's head, as for requests to stop (stopping.py): a disk or a store of objects may be what hangs.
"""

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.util

from pipelines.dataset.stream import Worker
from pipelines.program.ray_internals import Store

_STORE = Store("raylign-pulse")
STAGES = ("start", "read", "step", "evaluate", "checkpoint", "upload", "report", "ended")
"""In the order in which a worker goes through them between one number of steps and the next."""
_INTERVAL = 1.0  # seconds between two beats
_LONG = 3.0  # seconds in one place, after which the stack is told too
_FRAMES = 8  # of a stack, the innermost
# Where a worker is that waits for others: frames of these files, or of this function, in which DDP averages gradients.
_WAITS_IN = ("training/distributed.py", "torch/distributed/")
_BACKWARD = "_engine_run_backward"


class _Doing:
    """What this process does now. Other threads only read it."""

    stage, step, first, moves = "start", 0, -1, 0
    beside: "Beside | None" = None


def at(stage: str, step: int | None = None) -> None:
    """Note that this worker begins one of `STAGES`, or goes on in it. Costs next to nothing.

    Args:
        step: number of steps that are done; None if it has not changed.
    """
    _Doing.stage = stage
    if step is not None:
        _Doing.step = step
        if _Doing.first < 0:
            _Doing.first = step
    _Doing.moves += 1


class Beside:
    """A context in which a thread beside the loop saves the checkpoint of a step."""

    def __init__(self, step: int):
        self._step, self._stage, self._thread = step, "", threading.get_ident()

    def __enter__(self) -> "Beside":
        _Doing.beside = self
        return self

    def __exit__(self, *_: object) -> None:
        _Doing.beside = None

    def at(self, stage: str) -> None:
        """Note that this thread begins one of `STAGES`."""
        self._stage = stage

    def told(self) -> dict[str, Any]:
        """What a pulse says of it: as of the worker, whose loop is elsewhere."""
        return {"stage": self._stage, "step": self._step, "moves": self._stage, "stack": _stack(self._thread), "waits": False}


class Pulse:
    """A context in which a thread reports what the worker does."""

    def __init__(self, folder: Path, worker: Worker):
        self._key, self._over, self._beat = _key(folder, worker.rank), threading.Event(), 0
        context = ray.get_runtime_context()
        self._worker = {"rank": worker.rank, "size": worker.world_size, "gpu": worker.device.type == "cuda", "born": time.time()}
        self._worker |= {"pid": os.getpid(), "node": context.get_node_id(), "address": ray.util.get_node_ip_address()}
        self._works_in = threading.get_ident()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        _Doing.first = -1
        at("start")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        at("ended")
        self._over.set()
        self._thread.join(5)

    def _follow(self) -> None:
        ended, moves, since = False, -1, time.monotonic()
        while not ended:
            ended = self._over.wait(_INTERVAL if self._beat else 0)
            self._beat += 1
            doing = {name: getattr(_Doing, name) for name in ("stage", "step", "first", "moves")}
            if doing["moves"] != moves:
                moves, since = doing["moves"], time.monotonic()
            stack = _stack(self._works_in) if time.monotonic() - since > _LONG else []
            doing |= {
                "beat": self._beat,
                "cpu": time.process_time(),
                "stack": stack,
                "waits": any(_waits(frame) for frame in stack),
                "beside": None if (beside := _Doing.beside) is None else beside.told(),
            }
            with suppress(Exception):  # the head may not answer at the moment
                _STORE.put(self._key, json.dumps(self._worker | doing).encode())


def _stack(thread: int) -> list[str]:
    """The innermost frames of a thread, the innermost first, as `function (file:line)`."""
    frame, frames = sys._current_frames().get(thread), list[str]()
    while frame is not None and len(frames) < _FRAMES:
        frames.append(f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})")
        frame = frame.f_back
    return frames


def _waits(frame: str) -> bool:
    return frame.startswith(_BACKWARD) or any(file in frame for file in _WAITS_IN)


def pulses(folder: Path) -> list[dict[str, Any]]:
    """What the workers in this folder last said, by rank; a rank that has said nothing ends the list. `beside` is the same of a
    thread that saves a checkpoint meanwhile; None if there is none.
    """
    found: list[dict[str, Any]] = []
    while not found or len(found) < found[0]["size"]:
        value = _STORE.get(_key(folder, len(found)))
        if value is None:
            break
        found.append(json.loads(value))
    return found


def forget(folder: Path, ranks: int) -> None:
    """Delete what the workers have said, of so many ranks."""
    for rank in range(ranks):
        with suppress(Exception):
            _STORE.delete(_key(folder, rank))


def say_why(folder: Path, cause: str) -> None:
    """Leave word for the controller of why a worker is ended."""
    _STORE.put(f"{folder}/why", cause.encode())


def told_why(folder: Path) -> str:
    """What `say_why` left, once; empty if it left nothing."""
    with suppress(Exception):  # the head may not answer at the moment
        if _STORE.ready and (value := _STORE.get(f"{folder}/why")):
            _STORE.delete(f"{folder}/why")
            return value.decode()
    return ""


def _key(folder: Path, rank: int) -> str:
    return f"{folder}/{rank}"
