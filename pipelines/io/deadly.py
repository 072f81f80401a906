"""Which image ended the process that read it: those that may have are read again, one by one, in a process apart.

Ray says that a task's process died, and not of what. Preparing reads apart from the start; training and banks read in tasks,
and look for the image only when a task has died for good.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pipelines.io import child_process
from pipelines.io.child_process import LIMITS, Limits

_MOST = 4096  # images that are tried: half a minute of photographs


def deadly(
    read: Callable[[int], Any],
    name: Callable[[int], str],
    rows: Sequence[int],
    limits: Limits = LIMITS,
) -> str:
    """A clause about the first row whose image ends the process that reads it; empty where none of them does.

    Args:
        read: decodes the image of a row; picklable, by Ray's pickle at least. What it raises is told elsewhere.
        name: what people call the image of a row.
    """
    for found in child_process.each(partial(_read, read, [int(row) for row in rows[:_MOST]]), limits):
        if isinstance(found, child_process.Fatal):
            return "" if found.about is None else f"{name(found.about)} {found.why}"
    return ""


def _read(read: Callable[[int], Any], rows: Sequence[int], first: int) -> Iterator[None]:
    for row in rows[first:]:
        child_process.begin(row)
        with child_process.limited(), suppress(Exception):
            read(row)
        yield None
