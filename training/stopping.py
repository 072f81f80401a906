"""How a run is asked to stop: the driver sets a key in Ray's internal store, which the run's rank 0 polls.

This is not a file in the run's folder: on a network disk, another machine may see a new file half a minute late. The workers
agree on the step at which they stop in the exchange that every step has anyway (`training.step`).
"""

import threading
from contextlib import suppress
from pathlib import Path

from pipelines.program.ray_internals import Store

_STORE = Store("raylign")
_LOOK = 0.5  # seconds between two looks
_HERE, _STOP = b"here", b"stop"


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A run was asked to stop, and has saved a checkpoint at `step`."""

    def __init__(self, step: int):
        super().__init__(f"stopped at step {step:,}")
        self.step = step


class Asked:
    """On rank 0: whether the run was asked to stop. It can be asked after the first call; before that nothing would be lost.

    A thread polls, so that no step waits for the cluster's head.
    """

    def __init__(self, folder: Path):
        self._key, self._asked, self._over = _key(folder), False, threading.Event()
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
        if error is None:  # else the next workers would be asked to stop, too
            forget(Path(self._key))

    def _look(self) -> None:
        while _STORE.ready:
            with suppress(Exception):  # the head does not answer just now
                found = _STORE.get(self._key)
                if found is None:
                    _STORE.put(self._key, _HERE)
                self._asked = found == _STOP
            if self._asked or self._over.wait(_LOOK):
                return


def ask(folder: Path) -> bool:
    """Ask the run in this folder to stop. False if no process trains there, or not yet."""
    if not trains(folder):
        return False
    _STORE.put(_key(folder), _STOP)
    return True


def trains(folder: Path) -> bool:
    """Whether steps are under way."""
    return _STORE.has(_key(folder))


def forget(folder: Path) -> None:
    """Nobody trains here, and what was asked of an earlier run is not asked of the next."""
    if _STORE.ready:
        with suppress(Exception):
            _STORE.delete(_key(folder))


def _key(folder: Path) -> str:
    return str(folder)
