"""Find the image that crashed the process that read it: candidates are read again, one by one, in a separate process.

Ray reports that a task's process died, but not why. Preparing always reads in child processes; training and stored features
read in tasks, and search for the image only when a task has failed for good.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from pipelines.io import child_process
from pipelines.io.child_process import LIMITS, Limits

_MOST = 4096  # maximum number of images to try: half a minute of photographs


def deadly(
    read: Callable[[int], Any],
    name: Callable[[int], str],
    rows: Sequence[int],
    limits: Limits = LIMITS,
) -> str:
    """A clause about the first row whose image crashes the process that reads it; empty if none does.

    Args:
        read: decodes the image of a row; picklable, by Ray's pickle at least. Its exceptions are reported elsewhere.
        name: a readable name of a row's image.
    """
    for result in child_process.each(partial(_read, read, [int(row) for row in rows[:_MOST]]), limits):
        if isinstance(result, child_process.Fatal):
            return "" if result.about is None else f"{name(result.about)} {result.why}"
    return ""


def _read(read: Callable[[int], Any], rows: Sequence[int], first: int) -> Iterator[None]:
    for row in rows[first:]:
        child_process.begin(row)
        with child_process.limited(), suppress(Exception):
            read(row)
        yield None
