"""What is due at a step (a report, an evaluation, a checkpoint, the end), and how the time since the last report was spent."""

import resource
import sys
import time

import torch

from training.config import TrainSettings
from training.distributed import from_rank_zero
from training.plan import Plan


class Clock:
    """Decides what is due, and measures speed. `seconds`: training time of earlier sessions."""

    def __init__(self, settings: TrainSettings, seconds: float):
        self._settings = settings
        self._saved = time.monotonic()
        self._zero = time.monotonic() - seconds
        self.restart()

    def restart(self) -> None:
        """Start a new measurement."""
        self.waited = self.saving = 0.0
        self._start = time.perf_counter()
        self._steps = 0

    def total(self) -> float:
        """Seconds of training in all sessions."""
        return time.monotonic() - self._zero

    def out_of_time(self) -> bool:
        """Whether `max_minutes` have passed, by rank 0's clock. Checked at evaluations only, so that a run ends with one."""
        limit = self._settings.max_minutes
        if limit is None:
            return False
        (spent,) = from_rank_zero([self.total() >= 60 * limit])
        return spent

    def reports(self, step: int, plan: Plan) -> bool:
        """Whether this step is reported; the same on every worker."""
        self._steps += 1
        every = self._settings.checkpoint.every_steps
        due = step % self._settings.log_every == 0 or (every is not None and step % every == 0)
        return due or self.evaluates(step, plan)

    def evaluates(self, step: int, plan: Plan) -> bool:
        """Whether an evaluation is due: after every `every_epochs` epochs, and at the end of the run."""
        return step % (plan.order.steps_per_epoch * self._settings.evaluation.every_epochs) == 0 or step == plan.total_steps

    def saves(self, step: int, due: bool) -> bool:
        """Whether to save: if `due` for another reason, every `every_steps`, or after `every_minutes` by rank 0's clock."""
        every, minutes = self._settings.checkpoint.every_steps, self._settings.checkpoint.every_minutes
        overdue = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        (overdue,) = from_rank_zero([overdue])
        due = due or overdue or (every is not None and step % every == 0)
        if due:
            self._saved = time.monotonic()
        return due

    def read(self) -> dict[str, float]:
        """Since the last report: speed, and the shares of time in which this worker waited for data, and for the checkpoint that
        was due then, if any. Its peak memory since its start.
        """
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "samples_per_second": self._steps * self._settings.global_batch_size / elapsed,
            "data_wait": min(1.0, self.waited / elapsed),
            "checkpoint_wait": min(1.0, self.saving / elapsed),
            "peak_memory_gib": _peak_memory(),
        }
        self.restart()
        return values


def _peak_memory() -> float:
    """In GiB: the GPU's if there is one, else the process's."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
