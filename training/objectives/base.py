"""The contract of an objective: what training minimizes, with its parameters and its state.

Temperature, bias and heads are parameters of the objective; queues, moving averages and per-sample state are its buffers.
`forward` reads them and can be replayed; `update` writes them once per optimizer step, with gathered values. An objective
never sees ranks or Ray: it gathers through `training.distributed`, which is the identity for one worker.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.batch import Batch, Needs
from pipelines.settings import Settings


class Embeddings(NamedTuple):
    """Unit rows in the joint space, float32 [b, D] each."""

    image: Tensor
    text: Tensor


class Loss(NamedTuple):
    """`total`: mean over this worker's rows, a scalar with gradient. `metrics`: detached scalars for the log."""

    total: Tensor
    metrics: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Base class. `forward` must not change state."""

    @abstractmethod
    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        """The loss of this worker's rows against the global batch."""

    def update(self, embeddings: Embeddings, batch: Batch) -> None:
        """Write state, once after each optimizer step."""


class ObjectiveSettings(Settings):
    """Base of an objective's settings: what it needs, and how it is built."""

    needs: ClassVar[Needs] = Needs()

    @abstractmethod
    def build(self, num_samples: int) -> Objective:
        """The objective; `num_samples` is N, for those with state per sample."""


class TemperatureSettings(ObjectiveSettings):
    """Settings of all objectives with one temperature."""

    temperature: float = Field(0.07, gt=0, description="of the softmax; where it is learnable, its start")
    learn_temperature: bool = Field(True, description="learn it; false: keep it fixed")
    max_scale: float = Field(100.0, gt=0, description="cap of the logit scale 1/temperature")


class LogitScale(nn.Module):
    """exp(log), log = ln(1/temperature), clamped to [0, ln max_scale] after every optimizer step."""

    def __init__(self, settings: TemperatureSettings):
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
