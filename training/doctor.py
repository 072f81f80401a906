"""Follows a run's workers by their pulses, in a thread of its driver: who trains since when, and what the run waits for."""

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from training.metrics_file import read_metrics
from training.placement import waiting
from training.pulse import forget, pulses
from training.sessions import note

_INTERVAL = 1.0  # seconds between two looks
_PATIENCE = 5.0  # seconds within which a group that fits is placed


class Doctor:
    """A context in which the thread runs."""

    def __init__(self, folder: Path):
        self._folder, self._over = folder, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._ranks = 0  # the most that were seen
        self._born: set[float] = set()  # of the workers that were seen first
        self._reached = max((line["step"] for line in read_metrics(folder / "metrics.jsonl")), default=0)
        self._waits: float | None = None  # since when, by this process's clock
        self._said = ""

    def __enter__(self) -> None:
        forget(self._folder, max(1, len(pulses(self._folder))))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)
        forget(self._folder, self._ranks)

    def _follow(self) -> None:
        while not self._over.wait(_INTERVAL):
            with suppress(Exception):  # the head or the disk may not answer at the moment
                self._look()

    def _look(self) -> None:
        self._note_waiting(waiting(self._folder))
        workers = pulses(self._folder)
        self._ranks = max(self._ranks, len(workers))
        if workers and len(workers) == workers[0]["size"]:
            self._note_workers(workers)

    def _note_waiting(self, text: str) -> None:
        now = time.monotonic()
        self._waits = None if not text else self._waits or now
        if bool(text) != bool(self._said) and (not text or now - (self._waits or now) > _PATIENCE):
            note(self._folder, "waiting", text=text)
            self._said = text

    def _note_workers(self, workers: list[dict[str, Any]]) -> None:
        born = {worker["born"] for worker in workers}
        first = workers[0]["first"]
        if first >= 0 and not born & self._born:
            values = {"step": first, "redone": max(0, self._reached - first), "workers": len(workers)}
            values |= {"gpus": sum(worker["gpu"] for worker in workers), "nodes": sorted({w["address"] for w in workers})}
            note(self._folder, "workers", **values)
            self._born, self._reached = born, first
        if born == self._born:
            self._reached = max(self._reached, *(worker["step"] for worker in workers))
