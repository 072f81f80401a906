"""What the locks of runs on disks and in stores have in common: a lease, and what is said of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from pipelines.io.lease import Lease, Taken
from pipelines.io.retry import shown_place
from pipelines.program import interrupts
from pipelines.program.display import Display
from pipelines.program.errors import UserError


def taken(place: Path | str) -> UserError:
    """The error if another process holds a run or sweep."""
    return UserError("name", f"another process is training {shown_place(str(place))}", "wait for it, or give another name=")


def taken_over(place: Path | str) -> None:
    """End this process, after another one has taken its lease."""
    interrupts.say(f"{shown_place(str(place))}: another process has taken it over; this one ends")
    os._exit(1)


@contextmanager
def leased(place: Path | str, lock: Path | str, display: Display) -> Iterator[None]:
    """Hold the lease of a run or sweep. Raises `UserError` if another process holds it."""

    def wait() -> None:
        display.line(f"{place}: looking whether the process that trained it last still does, for up to a minute")

    try:
        with Lease(lock, wait, partial(taken_over, place)):
            yield
    except Taken:
        raise taken(place) from None
