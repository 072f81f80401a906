"""What is due at a step (a line, an evaluation, a checkpoint, the end), and how the time since the last line was spent."""

import resource
import sys
import time

import torch

from training.config import TrainSettings
from training.distributed import from_rank_zero
from training.plan import Plan


class Clock:
    """What is due at a step, and how the time since the last report was spent."""

    def __init__(self, settings: TrainSettings, seconds: float):
        self._settings = settings
        self._saved = time.monotonic()
        self._zero = time.monotonic() - seconds
        self.restart()

    def restart(self) -> None:
        """Start measuring here."""
        self.waited = 0.0
        self._start = time.perf_counter()
        self._steps = 0

    def total(self) -> float:
        """Seconds of training in all sessions."""
        return time.monotonic() - self._zero

    def out_of_time(self) -> bool:
        """Whether the run's minutes are over, by rank 0's clock. Checked at evaluations only, so that a run ends with one."""
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
        """Due at the end of every `every_epochs` epochs, and of the run."""
        return step % (plan.order.steps_per_epoch * self._settings.evaluation.every_epochs) == 0 or step == plan.total_steps

    def saves(self, step: int, due: bool) -> bool:
        """Whether to save at a step that is not `due` anyway, by rank 0's clock."""
        every, minutes = self._settings.checkpoint.every_steps, self._settings.checkpoint.every_minutes
        late = minutes is not None and time.monotonic() - self._saved >= 60 * minutes
        (late,) = from_rank_zero([late])
        due = due or late or (every is not None and step % every == 0)
        if due:
            self._saved = time.monotonic()
        return due

    def read(self) -> dict[str, float]:
        """Speed and waiting time since the last report, and this worker's peak memory since its start."""
        elapsed = max(time.perf_counter() - self._start, 1e-9)
        values = {
            "samples_per_second": self._steps * self._settings.global_batch_size / elapsed,
            "data_wait": min(1.0, self.waited / elapsed),
            "peak_memory_gib": _peak_memory(),
        }
        self.restart()
        return values


def _peak_memory() -> float:
    """GiB: of the GPU if there is one, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
