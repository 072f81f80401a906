"""What a run does when one of its nodes will be taken away, as a cloud announces for a spot instance.

The workers stop as if a user had asked them to (stopping.py): all at the same step, which is saved. Then they are started again,
on the nodes that stay. Ray Train learns of it only at that last report.
"""

from collections.abc import Callable

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
    """Called at each step: whether to stop, as the user asked, or to leave a node, of which only rank 0 knows."""

    def __init__(self, asked: Callable[[], bool]):
        self._asked = asked
        self.leaving = False  # whether the last call said to leave, and not to stop

    def __call__(self) -> bool:
        asked = self._asked()
        self.leaving = not asked and ray_elastic.noticed()
        return asked or self.leaving

    def before_last_report(self) -> None:
        """Called before a report with a checkpoint."""
        if self.leaving:
            ray_elastic.leave()

    def after(self, stopped: int | None) -> None:
        """Called when the loop has ended, with the step at which it `stopped` before its time. Raises `Left` if workers move."""
        if self.leaving and stopped is not None:
            # On rank 0 only, and once the checkpoint is registered: then all workers are ended, wherever they are.
            ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
            raise Left(stopped)
