"""The part of `ray_internals` about exceptions: what Ray's wrap, and which of them mean that a process or a node was lost."""

import re
from typing import Any

# Attributes in which Ray's wrappers keep the wrapped exception, or one per worker (train/v2/_internal/exceptions.py,
# train/v2/api/exceptions.py, exceptions.py).
_INSIDE = ("_base_exc", "health_check_failure", "controller_failure", "cause", "worker_failures")
# Exceptions, in exceptions.py, that mean that a process or node was lost.
_DEATHS = {
    "ActorDiedError",
    "ActorUnavailableError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "RayActorError",
    "WorkerCrashedError",
}
# Its cause, by the exception's name or text, as none has a field for it (exceptions.py; core/src/ray: raylet/raylet,
# gcs/gcs_server).
LOW_MEMORY = re.compile(r"low on memory|OutOfMemoryError")
NODE_LOST = re.compile(r"NodeDiedError|node (?:has )?(?:died|is dead)|[Nn]ode .{0,80}terminat")
OWNER_LOST = re.compile(r"OwnerDiedError|owner has died|LocalRayletDiedError")
# Ray Train's barrier, when another worker did not reach it (train/v2/_internal/exceptions.py).
BARRIER_BROKEN, BARRIER_TEXT = "BroadcastCollectiveTimeoutError", "have not joined the collective"


def of_ray(error: BaseException) -> bool:
    """Whether Ray's own code created this exception, and not a user's."""
    return type(error).__module__.startswith("ray.")


def inside(error: BaseException) -> Any:
    """What one of Ray's wrappers contains: an exception, or exceptions by worker rank; None if it is not a wrapper."""
    return next((inner for field in _INSIDE if (inner := getattr(error, field, None))), None)


def is_death(error: BaseException) -> bool:
    """Whether it means that a process or node was lost."""
    return type(error).__name__ in _DEATHS and of_ray(error)


def failed_at_start(error: BaseException) -> bool:
    """Whether an actor was lost because its own __init__ raised; the text of such an error is a traceback (exceptions.py)."""
    return bool(getattr(error, "actor_init_failed", False))
