"""Why something failed, in one readable line, from whatever Ray, Ray Train or Ray Tune wrap an exception in.

It reports the root cause, not the last line of the last traceback. When one of several workers dies, the others fail a moment
later in their next communication with it: a broken connection is a consequence, not a cause.
"""

import errno
import re
from collections.abc import Mapping

from pipelines.io.retry import Unreachable, shown
from pipelines.program import ray_errors
from pipelines.program.errors import UserError
from pipelines.program.ray_errors import of_ray

_LONGEST = 400  # characters of an exception's message
# What torch's gloo and NCCL, and Ray Train's barrier, say when another worker was lost.
_BROKEN = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Connection refused|GLHF|NCCL|ProcessGroup"
    rf"|{ray_errors.BARRIER_TEXT}|Socket (?:closed|Timeout)|pair closure|remote process exited",
    re.IGNORECASE,
)
_BROKEN_TYPES = {"DistBackendError", "DistNetworkError", "DistStoreError", ray_errors.BARRIER_BROKEN}
_DIED = "its process died: killed from outside, or by the system for lack of memory, or it crashed"
# Reasons for a death; the first that matches is reported.
_DEATHS = (
    (ray_errors.LOW_MEMORY, "the node ran low on memory, and Ray ended its process"),
    (ray_errors.NODE_LOST, "its node was lost"),
    (ray_errors.OWNER_LOST, "the process or node that had started it was lost"),
)

# What is wrong with a disk, and neither with the code nor with the data.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE}


def of_storage(error: BaseException) -> UserError | None:
    """The user's error, if a store does not answer, or a disk is full, fails or is read-only; None for any other error."""
    error = innermost(error)
    if isinstance(error, Unreachable):
        return UserError("", str(error), "try again when it answers: the same command resumes")
    if isinstance(error, OSError) and error.errno in _DISK:
        text = str(error).removeprefix(f"[Errno {error.errno}] ")
        return UserError("", f"the disk fails: {text}", "make room or repair it: the same command resumes")
    return None


def cause_of(error: BaseException) -> str:
    """What went wrong, in one line."""
    error = innermost(error)
    name, text = type(error).__name__, _text(error)
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if name == "RuntimeEnvSetupError":
        return f"its process could not be set up: {text}"
    if ray_errors.failed_at_start(error):
        # The text is a traceback, which ends with the exception that the actor's own __init__ raised.
        return f"its process could not be set up: {_cut(_last_line(str(error)))}"
    if ray_errors.is_death(error):
        return next((words for pattern, words in _DEATHS if pattern.search(f"{name} {text}")), _DIED)
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":  # Python's or torch's, which says how much was asked for
        return "out of memory" + (f": {text}" if text else "")
    return f"{name}: {text}" if text else name


def first_cause(failures: Mapping[int, BaseException]) -> str:
    """For workers that failed together, by rank: the cause of the first failure, and how many others failed with it."""
    if not failures:
        return "no worker gave a reason"
    errors = {rank: innermost(error) for rank, error in sorted(failures.items())}
    own = {rank: error for rank, error in errors.items() if not is_broken_connection(error)}
    if not own:
        rank, error = next(iter(errors.items()))
        lost = f"worker {rank} lost its connection to another ({_text(error)[:160]})"
        return f"a worker was lost, or the network between workers: {lost}"
    # An exception says more than a death, and is not a consequence of another worker's death.
    rank = min(own, key=lambda rank: (of_ray(own[rank]), rank))
    cause = f"worker {rank}: {cause_of(own[rank])}"
    others = len(errors) - 1
    return cause if not others else f"{cause} ({others} other{'s' if others > 1 else ''} failed with it)"


def is_broken_connection(error: BaseException) -> bool:
    """Whether it only means that another worker was lost."""
    error = innermost(error)
    return type(error).__name__ in _BROKEN_TYPES or (isinstance(error, RuntimeError) and bool(_BROKEN.search(str(error))))


def innermost(error: BaseException) -> BaseException:
    """The exception inside Ray's wrappers."""
    seen = [error]
    while True:
        last = seen[-1]
        inner = ray_errors.inside(last)
        if isinstance(inner, Mapping):  # of workers
            own = {rank: failure for rank, failure in inner.items() if not is_broken_connection(failure)}
            inner = next(iter((own or inner).values()))
        if not isinstance(inner, BaseException) or any(inner is earlier for earlier in seen):
            return last
        seen.append(inner)


def _text(error: BaseException) -> str:
    return _cut(str(error))


def _cut(text: str) -> str:
    """One line without secrets, cut at the end: the beginning says what happened."""
    text = shown(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().split("\n") if line.strip()]
    return lines[-1] if lines else ""
