"""What lost and failed workers mean for a run: whether it starts them again, and what that costs.

A node that was lost, or will be according to a notice, is the cluster's doing: the run always goes on, at no cost. Any other
failure counts as one of `resources.max_failures`, if a restart may resolve it: that of a process, a network or a store. Anything
else is an exception in our code or the user's, which would recur at the same step every time, and ends the run at once. So does
the same failure three times in a row without a step in between, whatever `max_failures` is.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import ray.exceptions
import ray.train
import torch

from pipelines.program.causes import first_cause, innermost
from pipelines.program.ray_elastic import FAILURE
from pipelines.program.ray_errors import of_ray
from training.distributed import PeerLost

# gloo raises a bare RuntimeError if a peer is gone, with a text such as "[../gloo/transport/tcp/pair.cc:534] Connection closed by
# peer" or "Application timeout caused pair closure".
_PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket timeout|pair closure", re.IGNORECASE)
_TRANSIENT: tuple[type[BaseException], ...] = (OSError, EOFError, PeerLost, torch.AcceleratorError)
_LOOP = 3  # equal failures in a row at the same step
_NUMBERS = re.compile(r"0x[0-9a-f]+|\b[0-9a-f]{8,}\b|\d+")  # ranks, ports, ids and addresses, which differ from time to time


class NoRestartError(RuntimeError):
    """Why a run is not started again, though each of its failures alone would be worth a restart."""


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


def _note_nothing(*_: Any) -> None:
    pass


class Restarts(ray.train.UserCallback):
    """Decides about each restart, in Ray Train's controller, which itself restarts workers without a limit.

    `note`: called before each restart, with its kind, its cause, the workers' errors and the last step that was reported.
    """

    def __init__(
        self, max_failures: int, note: Callable[[str, str, Mapping[int, BaseException], int | None], None] = _note_nothing
    ):
        self._max_failures, self._note = max_failures, note
        self._step: int | None = None
        self._failures: list[tuple[str, int | None]] = []  # cause without numbers, and the last step reported before

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Called in the controller once all workers have reported."""
        self._step = metrics[0].get("step")

    def __call__(self, kind: str, cause: str | None, errors: Mapping[int, BaseException]) -> None:
        """Called before workers are started again; what is raised here ends the run. `cause`: None to take it from `errors`."""
        if kind == FAILURE:
            self._allow(errors)
        self._note(kind, cause or first_cause(errors), errors, self._step)

    def _allow(self, errors: Mapping[int, BaseException]) -> None:
        for error in errors.values():
            if not is_transient(error):
                raise innermost(error)
        cause = first_cause(errors)
        self._failures.append((_NUMBERS.sub("#", cause), self._step))
        last = self._failures[-_LOOP:]
        if len(last) == _LOOP and len(set(last)) == 1:
            where = "before the first report" if self._step is None else f"with no report after step {self._step:,}"
            raise NoRestartError(f"{cause}; {_LOOP} times in a row {where}")
        if 0 <= self._max_failures < len(self._failures):
            raise NoRestartError(f"{cause}; after resources.max_failures={self._max_failures}")
