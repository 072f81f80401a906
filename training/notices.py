"""What a run does when one of its nodes will be taken away, as a cloud announces for a spot instance.

The workers stop as if a user had asked them to (stopping.py): all at the same step, which is saved. Then they are started again,
on the nodes that stay. Ray Train learns of it only at that last report.
"""

from collections.abc import Callable
from typing import Any

import ray.train

from pipelines.program import ray_elastic


class Left(Exception):  # noqa: N818 - nothing went wrong
    """The workers leave a node, after a checkpoint at `step`: for Ray Train, which starts them again after an exception."""

    def __init__(self, step: int):
        super().__init__(f"saved at step {step:,}")
        self.step = step

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.step,)


class Notice:
    """In a worker: whether to leave a node, of which only rank 0 knows."""

    leaving = False  # since the last call of what `or_asked` returned, and not because the user asked

    def or_asked(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """A function that is called at each step: whether to stop, as the user asked, or to leave a node."""

        def stop() -> bool:
            told = asked()
            self.leaving = not told and ray_elastic.noticed()
            return told or self.leaving

        return stop

    def before_last_report(self) -> None:
        """Called on rank 0 before a report with a checkpoint."""
        if self.leaving:
            ray_elastic.leave()

    def after(self, returned: dict[str, Any]) -> dict[str, Any]:
        """What the loop `returned`. Raises `Left` if it stopped before its time to leave a node."""
        if self.leaving and "stopped" in returned:
            # On rank 0 only, and once the checkpoint is registered: then all workers are ended, wherever they are.
            ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
            raise Left(returned["stopped"])
        return returned
