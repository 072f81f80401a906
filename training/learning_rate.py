"""The learning rate as a function of the step."""

from typing import Literal

from pydantic import Field

from pipelines.program.settings_base import Settings
from training.half_cosine import half_cosine


class ScheduleSettings(Settings):
    """The learning rate: linear warm-up, then a cosine or a constant."""

    name: Literal["cosine", "epoch_cosine", "constant"] = Field(
        "cosine", description="what follows the warm-up; epoch_cosine: a cosine with one step down per epoch"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    warmup_stair: int = Field(1, ge=1, description="steps between two rises of the warm-up")
    start_lr: float | None = Field(None, ge=0, description="learning rate of the first step of a warm-up; null: peak/steps")
    final_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")

    def lr_at(self, step: int, steps_per_epoch: int, total: int, peak: float) -> float:
        """Learning rate of a step; a function of the step alone, so that a resumed run continues it."""
        if step < self.warmup_steps:
            return self._rising(step, peak)
        fraction = {  # of the way from `peak` to `final_lr`
            "constant": 0.0,
            "epoch_cosine": step // steps_per_epoch * steps_per_epoch / total,
            "cosine": (step - self.warmup_steps) / max(1, total - self.warmup_steps),
        }[self.name]
        return half_cosine(peak, self.final_lr, fraction)

    def _rising(self, step: int, peak: float) -> float:
        """On a line from `start_lr` at the first step, or else from 0 before it, to `peak` at the end of the warm-up."""
        stair = step // self.warmup_stair * self.warmup_stair
        if self.start_lr is None:
            return peak * (stair + 1) / self.warmup_steps
        return self.start_lr + (peak - self.start_lr) * stair / self.warmup_steps
