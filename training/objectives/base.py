"""The contract of an objective: what training minimizes, with its parameters and its state.

Temperature, bias and heads are parameters of the objective; queues, moving averages and per-sample state are its buffers.
`forward` reads them and can be replayed; `update` writes them once per optimizer step, with gathered values. An objective
never sees ranks or Ray: it gathers through `training.distributed`, which is the identity for one worker. A teacher, whatever
it is, reaches an objective as two more columns of the batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipelines.batch import Batch, Needs
from pipelines.settings import Settings
from training.teacher import NoTeacher, Teacher


class Embeddings(NamedTuple):
    """float32 [b, D] each: unit rows in the joint space, and the projections they were made from."""

    image: Tensor
    text: Tensor
    image_projection: Tensor
    text_projection: Tensor


class Loss(NamedTuple):
    """What `forward` found.

    total: mean over this worker's rows, a scalar with gradient.
    metrics: detached scalars for the log.
    state: detached values for this worker's rows, which `update` will write.
    """

    total: Tensor
    metrics: dict[str, Tensor]
    state: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Task:
    """What an objective or a teacher may know of the run it serves."""

    num_images: int  # image ids lie in [0, num_images)
    num_texts: int  # text ids lie in [0, num_texts)
    embed_dim: int  # D
    steps_per_epoch: int
    total_steps: int
    seed: int


class Objective(nn.Module, ABC):
    """Base class. `forward` must not change state."""

    @abstractmethod
    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        """The loss of this worker's rows against the global batch."""

    def update(self, batch: Batch, loss: Loss) -> None:
        """Write state, once after each optimizer step, from what `forward` found."""


class ObjectiveSettings(Settings):
    """Base of an objective's settings: what it needs, and how it is built."""

    @property
    def needs(self) -> Needs:
        """What it reads beside the embeddings and its teacher's."""
        return Needs()

    def build_teacher(self, encoder: nn.Module, task: Task) -> Teacher:
        """Who adds `teacher_image` and `teacher_text` to the batch."""
        return NoTeacher()

    @abstractmethod
    def build(self, task: Task) -> Objective:
        """The objective, with its state at the start."""


class TemperatureSettings(ObjectiveSettings):
    """Settings of all objectives with a temperature: one key, whatever becomes of it."""

    temperature: float = Field(0.07, gt=0, description="of the softmax; where it is learned, its start")


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
