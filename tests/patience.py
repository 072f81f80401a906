"""How long tests wait for what may hang. No result depends on it: what does not hang ends long before, on any machine."""

import time
from collections.abc import Callable

PATIENCE = 1800  # seconds


def wait_until(reached: Callable[[], bool], told: Callable[[], str] = str, every: float = 0.01) -> None:
    """Call `reached` every so many seconds until it is true; `told`: the message if it never is."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, told()
        time.sleep(every)
