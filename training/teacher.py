"""Teachers: networks whose embeddings an objective uses as targets.

A teacher only adds columns, `batch = teacher(batch)`: `teacher_image` and `teacher_text`, unit rows like the student's, or
features of frozen encoders. It is part of TrainState, and is updated once after each optimizer step.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal, cast

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings
from training.half_cosine import half_cosine
from training.moving_average import follow, follower
from training.precision import unit


class Teacher(nn.Module, ABC):
    """Called under no_grad and the student's autocast; always in eval mode."""

    @abstractmethod
    def forward(self, batch: Batch) -> Batch:
        """The batch with the teacher's columns."""

    def update(self, student: nn.Module, step: int) -> None:
        """Update from the student after optimizer step `step`, counted from 0."""

    def train(self, mode: bool = True) -> "Teacher":
        """Always eval mode, whatever the student's mode: no dropout, and BatchNorm with its running statistics."""
        return super().train(False)


class NoTeacher(Teacher):
    """Adds nothing."""

    def forward(self, batch: Batch) -> Batch:
        return batch


class EmaSettings(Settings):
    """A moving average of the student: one more forward pass without gradient per step."""

    name: Literal["ema"] = "ema"
    momentum: float | None = Field(
        None, ge=0, le=1, description="weight of the teacher in its update at the first step; null: 0.996, less in a short run"
    )
    final_momentum: float = Field(1.0, ge=0, le=1, description="the same at the last step; a half cosine in between")

    def build(self, student: nn.Module, total_steps: int, images_only: bool = False) -> "EmaTeacher":
        return EmaTeacher(self, student, total_steps, images_only)


class EmaTeacher(Teacher):
    """A moving average of the student (moving_average.py)."""

    def __init__(self, settings: EmaSettings, student: nn.Module, total_steps: int, images_only: bool = False):
        super().__init__()
        self.encoder = follower(student)
        self._settings, self._total_steps, self._images_only = settings, total_steps, images_only
        self.train(False)

    def forward(self, batch: Batch) -> Batch:
        if self._images_only:
            columns = cast(Any, self.encoder).images(batch)
            image, strong = columns["image_projection"], columns["strong_projection"]
            return {**batch, "teacher_image": unit(image), "teacher_strong": unit(strong)}
        embeddings = self.encoder(batch)
        return {**batch, "teacher_image": embeddings.image, "teacher_text": embeddings.text}

    def momentum(self, step: int) -> float:
        """m, from `momentum` to `final_momentum` on a half cosine."""
        first = self._settings.momentum
        if first is None:  # a teacher that averages over a quarter of the run at most
            first = min(0.996, max(0.0, 1 - 4 / self._total_steps))
        return half_cosine(first, self._settings.final_momentum, step / self._total_steps)

    def update(self, student: nn.Module, step: int) -> None:
        follow(self.encoder, student, self.momentum(step))


class FrozenEncoders(Teacher):
    """Two frozen encoders, run on the student's inputs, to unit rows.

    `frozen_image_features` [b, 1, F] and `frozen_text_features` [b, 1, G] join the batch.
    Checkpoints hold their identity, but not their weights, of which the run keeps a copy (saved_towers.py).
    """

    def __init__(self, image: nn.Module, text: nn.Module, widths: tuple[int, int], image_size: int, identity: str):
        """`widths`: F and G. `image_size`: of `image`, in pixels; views are resized to it. `identity`: a digest of both."""
        super().__init__()
        self._networks = [network.requires_grad_(False).eval() for network in (image, text)]  # in a list: not in a state dict
        self.widths, self._image_size, self._identity = widths, image_size, identity

    @property
    def text(self) -> Any:
        """The text encoder."""
        return self._networks[1]

    def forward(self, batch: Batch) -> Batch:
        pixels: Tensor = batch["image"]
        if pixels.shape[-1] != self._image_size:
            size = (self._image_size, self._image_size)
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        image, text = self._networks
        images, texts = unit(image(pixels)), unit(text(batch["frozen_text"], batch["frozen_mask"]))
        return {**batch, "frozen_image_features": images[:, None], "frozen_text_features": texts[:, None]}

    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenEncoders":
        for network in self._networks:
            network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> str:
        """The identity of the networks."""
        return self._identity

    def set_extra_state(self, state: str) -> None:
        """Raises `UserError` if a checkpoint was made with other networks."""
        if state != self._identity:
            problem = "their weights are not those that this run was trained with"
            raise UserError("frozen_encoders", problem, "put the former weights back, or give the run another name")
