"""Which failure of a worker may pass if it starts again: that of a process, a machine, a network or a store.

All else is an exception of the code, ours or the user's, and comes again at the same step, as often as one tries.
"""

import re
from typing import Any

import ray.exceptions
import ray.train
import torch

from pipelines.program.causes import innermost
from pipelines.program.ray_internals import of_ray
from training.distributed import PeerLost

# gloo raises a bare RuntimeError where a peer is gone, in words such as "[../gloo/transport/tcp/pair.cc:534] Connection closed by
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
    """Given to Ray Train as a callback: it restarts lost workers, and ends the run where the code raised."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller before it decides. What is raised here it does not try again."""
        for error in worker_exceptions.values():
            if not may_pass(error):
                raise innermost(error)
