"""How a run is asked to stop: the driver sets a key in Ray's internal store, which the run's rank 0 polls.

This is not a file in the run's folder: on a network disk, another machine may see a new file half a minute late. The workers
agree on the step at which they stop in the exchange that every step has anyway (`training.step`).
"""

import threading
from contextlib import suppress
from pathlib import Path

from ray.experimental import internal_kv as store

_SPACE = "raylign"
_LOOK = 0.5  # seconds between two polls
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
        while store._internal_kv_initialized():
            with suppress(Exception):  # the head does not answer at the moment
                found = store._internal_kv_get(self._key, namespace=_SPACE)
                if found is None:
                    store._internal_kv_put(self._key, _HERE, namespace=_SPACE)
                self._asked = found == _STOP
            if self._asked or self._over.wait(_LOOK):
                return


def ask(folder: Path) -> bool:
    """Ask the run in this folder to stop. False if no process trains there, or not yet."""
    if not trains(folder):
        return False
    store._internal_kv_put(_key(folder), _STOP, namespace=_SPACE)
    return True


def trains(folder: Path) -> bool:
    """Whether steps are running."""
    return bool(store._internal_kv_exists(_key(folder), namespace=_SPACE))


def forget(folder: Path) -> None:
    """Mark that no process trains here, and clear a request to stop an earlier run."""
    if store._internal_kv_initialized():
        with suppress(Exception):
            store._internal_kv_del(_key(folder), namespace=_SPACE)


def _key(folder: Path) -> str:
    return str(folder)
