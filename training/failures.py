"""Which failures of a worker a restart may resolve: those of a process, a machine, a network or a store.

Anything else is an exception in the code, ours or the user's, and would recur at the same step every time.
"""

import re
from typing import Any

import ray.exceptions
import ray.train
import torch

from pipelines.program.causes import innermost
from pipelines.program.ray_internals import of_ray
from training.distributed import PeerLost

# gloo raises a bare RuntimeError if a peer is gone, with a text such as "[../gloo/transport/tcp/pair.cc:534] Connection closed by
# peer" or "Application timeout caused pair closure".
_OF_A_PEER = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket timeout|pair closure", re.IGNORECASE)
_PASSING: tuple[type[BaseException], ...] = (
    *(OSError, EOFError),
    *(PeerLost, torch.AcceleratorError),
)


def may_pass(error: BaseException) -> bool:
    """Whether a restart from the last checkpoint may help."""
    found = innermost(error)
    if isinstance(found, ray.exceptions.RayTaskError):
        return False
    if isinstance(found, (ray.exceptions.RayError, *_PASSING)):
        return True
    if of_ray(found):  # of Ray Train: a missed health check, a barrier that a peer never reached
        return True
    return type(found) is RuntimeError and bool(_OF_A_PEER.search(str(found)))


class EndAtOnce(ray.train.UserCallback):
    """A callback for Ray Train: restarts lost workers, and ends the run if the code raised."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller before it decides. It does not retry what is raised here."""
        for error in worker_exceptions.values():
            if not may_pass(error):
                raise innermost(error)
