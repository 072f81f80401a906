"""The temperature that nearly all objectives have: one key, learned or not."""

import math
from collections.abc import Mapping
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from training.objectives.base import ObjectiveSettings


class TemperatureSettings(ObjectiveSettings):
    """Settings of all objectives with a temperature: one key, however it is used."""

    temperature: float = Field(0.07, gt=0, description="of the softmax; the initial value, if it is learned")

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return 1 / self.temperature


class LearnedTemperatureSettings(TemperatureSettings):
    """Settings of all objectives whose temperature is a parameter."""

    learn_temperature: bool = Field(True, description="learn it; false: keep it fixed")
    max_scale: float = Field(100.0, gt=0, description="cap of the logit scale 1/temperature")

    @model_validator(mode="after")
    def _start_within(self) -> Self:
        if self.learn_temperature and not 1 <= 1 / self.temperature <= self.max_scale * (1 + 1e-9):
            raise ValueError(
                f"temperature: {self.temperature} is outside 1/max_scale = {1 / self.max_scale:g} to 1, where a learned one is "
                "kept; change it or max_scale, or pass learn_temperature=false"
            )
        return self

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return float(saved["scale.log"].exp())


class LogitScale(nn.Module):
    """exp(log), log = ln(1/temperature), clamped to [0, ln max_scale] after every optimizer step."""

    def __init__(self, settings: LearnedTemperatureSettings):
        super().__init__()
        start = torch.tensor(math.log(1 / settings.temperature))
        self.log = nn.Parameter(start, requires_grad=settings.learn_temperature)
        self._limit = math.log(settings.max_scale)

    def forward(self) -> Tensor:
        """The logit scale, a scalar."""
        return self.log.exp()

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep a learnable scale within its bounds."""
        if self.log.requires_grad:
            self.log.clamp_(0.0, self._limit)
