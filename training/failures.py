"""Which worker failures a restart may resolve: those of a process, a machine, a network or a store.

Anything else is an exception in our code or the user's, and would recur at the same step every time.
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
_PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket timeout|pair closure", re.IGNORECASE)
_TRANSIENT: tuple[type[BaseException], ...] = (OSError, EOFError, PeerLost, torch.AcceleratorError)


def is_transient(error: BaseException) -> bool:
    """Whether a restart from the last checkpoint may help."""
    root = innermost(error)
    if isinstance(root, ray.exceptions.RayTaskError):
        return False
    if isinstance(root, (ray.exceptions.RayError, *_TRANSIENT)):
        return True
    if of_ray(root):  # of Ray Train: a missed health check, a barrier that a peer never reached
        return True
    return type(root) is RuntimeError and bool(_PEER_LOST.search(str(root)))


class EndAtOnce(ray.train.UserCallback):
    """A callback for Ray Train that ends the run if the code raised, instead of restarting the workers."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the controller before it decides about a restart; what is raised here ends the run."""
        for error in worker_exceptions.values():
            if not is_transient(error):
                raise innermost(error)
