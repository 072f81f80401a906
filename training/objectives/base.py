"""The contract of an objective: what training minimizes, with its parameters and its state.

Temperature, bias and heads are parameters of the objective; queues, moving averages and per-sample state are its buffers.
`forward` reads them and can be replayed; `update` writes them once per optimizer step, with gathered values. An objective never
sees ranks or Ray: it gathers through `training.distributed`, which is the identity for one worker, and counts all rows through
it, as workers may have different numbers of them. To an objective, a teacher is just more columns of the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from pydantic import ConfigDict
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Named
from training.objectives.embeddings import Embeddings as Embeddings
from training.teacher import NoTeacher, Teacher


class Loss(NamedTuple):
    """The result of `forward`.

    total: mean over this worker's rows, a scalar with gradient.
    metrics: detached scalars for the log.
    state: detached values for this worker's rows, for `update` to write.
    """

    total: Tensor
    metrics: dict[str, Tensor]
    state: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Task:
    """What an objective or a teacher may know about its run."""

    num_images: int  # image ids lie in [0, num_images)
    num_texts: int  # text ids lie in [0, num_texts)
    embed_dim: int  # D
    image_width: int  # F, of the image tower's features
    steps_per_epoch: int
    total_steps: int
    seed: int
    states_width: int = 0  # S, of the text tower's state of a token
    image_states_width: int = 0  # S', of the image tower's state of a place, if the objective asks for them
    vocabulary_size: int = 0
    frozen_widths: tuple[int, int] = (0, 0)  # of the columns frozen_image_features and frozen_text_features


class Objective(nn.Module, ABC):
    """Base class. `forward` must not change state."""

    @abstractmethod
    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        """The loss of this worker's rows against the global batch."""

    def update(self, batch: Batch, loss: Loss) -> None:
        """Write state from the result of `forward`, once after each optimizer step."""

    def skip(self) -> None:
        """Advance after a skipped step: schedules move, nothing is learned."""


class ObjectiveSettings(Named):
    """Base of an objective's settings: what it needs, and how it is built."""

    @property
    def needs(self) -> Needs:
        """What it reads in addition to the embeddings and the teacher's."""
        return Needs()

    @property
    def least_batch(self) -> int:
        """Smallest global batch, in pairs."""
        return 2

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        """1/temperature for image-caption pairs, from a trained objective's state dict; None if there is no single number."""
        return None

    def logit_bias(self, saved: Mapping[str, Tensor]) -> float | None:
        """What is added to the scaled cosines, from a trained objective's state dict; None if nothing is."""
        return None

    def build_teacher(self, encoder: nn.Module, task: Task) -> Teacher:
        """The teacher, which adds `teacher_image` and `teacher_text` to the batch."""
        return NoTeacher()

    @abstractmethod
    def build(self, task: Task) -> Objective:
        """The objective, with its initial state."""


class ForeignObjective(ObjectiveSettings):
    """Settings of a user's own objective, read from a checkpoint as data: its class is not imported, and it cannot be built."""

    model_config = ConfigDict(extra="allow")

    def build(self, task: Task) -> Objective:
        problem = f"{self.name} was read from a checkpoint as data, and cannot be built"
        raise UserError("objective.name", problem, "load the run's own config.yaml, which imports the class")
