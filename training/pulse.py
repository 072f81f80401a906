"""What each worker of a run is doing: a thread in it puts that into Ray's internal store, where the driver reads it (doctor.py).

The store is the cluster's head, as for requests to stop (stopping.py): a disk or a store of objects may be what hangs.
"""

import json
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
_INTERVAL = 1.0  # seconds between two beats


class _Doing:
    """What this process does now. Other threads only read it."""

    stage, step, first, moves = "start", 0, -1, 0


def at(stage: str, step: int | None = None) -> None:
    """Note that this worker begins a stage: read, step, evaluate, checkpoint, upload or report. Costs next to nothing.

    Args:
        step: number of steps that are done; None if it has not changed.
    """
    _Doing.stage = stage
    if step is not None:
        _Doing.step = step
        if _Doing.first < 0:
            _Doing.first = step
    _Doing.moves += 1


class Pulse:
    """A context in which a thread reports what the worker does."""

    def __init__(self, folder: Path, worker: Worker):
        self._key, self._over, self._beat = _key(folder, worker.rank), threading.Event(), 0
        context = ray.get_runtime_context()
        self._worker = {"rank": worker.rank, "size": worker.world_size, "gpu": worker.device.type == "cuda", "born": time.time()}
        self._worker |= {"node": context.get_node_id(), "address": ray.util.get_node_ip_address()}
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
        ended = False
        while not ended:
            ended = self._over.wait(_INTERVAL if self._beat else 0)
            self._beat += 1
            doing = {name: getattr(_Doing, name) for name in ("stage", "step", "first", "moves")}
            with suppress(Exception):  # the head may not answer at the moment
                _STORE.put(self._key, json.dumps(self._worker | doing | {"beat": self._beat}).encode())


def pulses(folder: Path) -> list[dict[str, Any]]:
    """What the workers in this folder last said, by rank; a rank that has said nothing ends the list."""
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


def _key(folder: Path, rank: int) -> str:
    return f"{folder}/{rank}"
