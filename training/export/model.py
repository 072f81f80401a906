"""A run opened for export: its towers, the heads that follow them, and what else decides an embedding."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings
from training.checkpoint import Trained, find_checkpoint, load_encoder
from training.checkpoint_registry import ABOUT
from training.config import TrainSettings
from training.towers.from_run import innermost
from training.wise_ft import KEY, mixed


class CannotHoldError(Exception):
    """A target has no way to express a run; the message is the reason, a clause about the run."""


@dataclass(frozen=True)
class Side:
    """Half of a dual encoder: the tower itself, and what projects its features into the joint space."""

    key: Literal["image", "text"]
    settings: Any  # of the tower; of a tower that is half of a run, those of the tower inside it
    tower: Any
    heads: list[nn.Module]
    width: int  # D

    def projection(self, first: Tensor | None = None) -> Tensor:
        """The matrix [D, F] that is all heads in a row.

        `first`: a projection [D', F] that comes before them. Raises `CannotHoldError` if a head is not a matrix.
        """
        rows = torch.eye(self.tower.width) if first is None else first.detach()
        for head in self.heads:
            if isinstance(head, nn.Identity):
                continue
            if not isinstance(head, nn.Linear) or head.bias is not None:
                raise CannotHoldError(f"its {self.key}_head is not one matrix, which is all that projects features there")
            rows = head.weight.detach() @ rows
        return rows.contiguous()

    @property
    def projects(self) -> bool:
        """Whether any head does something."""
        return not all(isinstance(head, nn.Identity) for head in self.heads)

    def pixels(self, reordered: bool) -> tuple[list[float], list[float]]:
        """Mean and deviation of red, green and blue in the image tower.

        Raises `CannotHoldError` if it reorders channels, unless the exported network does so itself (`reordered`).
        """
        about = self.tower.pixels.about
        order = about["order"]
        if order != [0, 1, 2] and not reordered:
            raise CannotHoldError(f"its image tower reads the channels in the order {order}, and not red, green, blue")
        place = [order.index(channel) for channel in range(3)]
        return [about["mean"][i] for i in place], [about["std"][i] for i in place]


@dataclass(frozen=True)
class Model:
    """What is exported. `about`: the content of checkpoint.json. `wise_ft`: alpha, if the weights are between start and end."""

    checkpoint: Path
    about: dict[str, Any]
    trained: Trained
    wise_ft: float | None = None

    @property
    def settings(self) -> TrainSettings:
        return self.trained.settings

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.trained.tokenizer

    @property
    def scale(self) -> float:
        """The factor of the cosines; 1 if the objective has none."""
        return 1.0 if self.trained.scale is None else self.trained.scale

    @property
    def bias(self) -> float:
        """What is added to the scaled cosines."""
        return self.trained.bias or 0.0

    @cached_property
    def image(self) -> Side:
        return self._side("image", self.settings.image_tower, self.trained.encoder.image_tower, self.trained.encoder.image_head)

    @cached_property
    def text(self) -> Side:
        return self._side("text", self.settings.text_tower, self.trained.encoder.text_tower, self.trained.encoder.text_head)

    def _side(self, key: Literal["image", "text"], settings: Settings, tower: Any, head: nn.Module) -> Side:
        return Side(key, *innermost(settings, tower, head), self.settings.embed_dim)


def open_model(run: Path | str, wise_ft: float | None = None) -> Model:
    """A run's newest checkpoint, or the checkpoint at `run`. Raises `UserError` if there is none, or it is damaged."""
    checkpoint = find_checkpoint(run)
    trained = load_encoder(checkpoint)
    if wise_ft is not None:
        try:
            trained = mixed(trained, wise_ft)
        except UserError as error:
            raise UserError("--wise-ft" if error.key == KEY else error.key, error.problem, error.remedy) from None
    return Model(checkpoint, json.loads((checkpoint / ABOUT).read_text(encoding="utf-8")), trained, wise_ft)
