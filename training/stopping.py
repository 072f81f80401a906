"""Asks a run to stop: the driver sets a key in Ray's internal store, and the run's rank 0 polls it.

A file in the run's folder would not do: on a network disk, another machine may see a new file half a minute late. The workers
agree on the step at which they stop in the exchange that every step has anyway (`training.step`). The key is the run's place: its
folder, or its URI in a store, which is the same on every node.
"""

import threading
from contextlib import suppress
from pathlib import Path

from pipelines.program.ray_internals import Store

_STORE = Store("raylign")
_INTERVAL = 0.5  # seconds between two polls
_HERE, _STOP = b"here", b"stop"


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to stop, and has saved a checkpoint at `step`."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step:,}")
        self.step = step


class Asked:
    """On rank 0: `asked()` is whether the run was asked to stop. Polling begins with the first call; earlier, nothing is lost.

    A thread polls, so that no step waits for the cluster's head.
    """

    def __init__(self, place: Path | str):
        self._key, self._asked, self._over = _key(place), False, threading.Event()
        self._thread: threading.Thread | None = None

    def __call__(self) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self._asked

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(5)
        if error is None:  # after an error the request stays, and the restarted workers stop
            forget(self._key)

    def _look(self) -> None:
        while _STORE.ready:
            with suppress(Exception):  # the head may not answer at the moment
                value = _STORE.get(self._key)
                if value is None:
                    _STORE.put(self._key, _HERE)
                self._asked = value == _STOP
            if self._asked or self._over.wait(_INTERVAL):
                return


def ask(place: Path | str) -> bool:
    """Ask the run in this folder to stop. False if no process trains there, or not yet."""
    if not trains(place):
        return False
    _STORE.put(_key(place), _STOP)
    return True


def trains(place: Path | str) -> bool:
    """Whether a process is training in this folder."""
    return _STORE.has(_key(place))


def forget(place: Path | str) -> None:
    """Delete the key: no process trains here, and a request to an earlier run does not apply to the next."""
    if _STORE.ready:
        with suppress(Exception):
            _STORE.delete(_key(place))


def _key(place: Path | str) -> str:
    return str(place)
