"""The plan of a run: all that the driver finds out before any worker starts, and the workers need to know."""

from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.suite import HeldOut
from pipelines.order import Order
from pipelines.stream import Stream, bank_rows
from pipelines.tokenizer import TextTokenizer
from training.config import TrainSettings
from training.encoder import DualEncoder, build_encoder
from training.objectives.base import Objective


@dataclass(frozen=True)
class Plan:
    """Picklable; the same on every worker."""

    settings: TrainSettings
    order: Order
    stream: Stream  # training batches
    held_out: HeldOut
    held_out_images: Stream  # held-out pictures
    tokenizer: TextTokenizer
    text_bank: Path | None  # features of all captions by text_id, where the text tower is locked
    prompt_bank: Path | None  # features of all prompts, where the text tower is locked
    code_version: str

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.order.steps_per_epoch * self.settings.epochs

    def build(self) -> tuple[DualEncoder, Objective]:
        """Networks with weights that are a function of the seed."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        encoder = build_encoder(
            settings.image_tower,
            settings.text_tower,
            (settings.image_head, settings.text_head),
            settings.embed_dim,
            (
                bank_rows(self.stream.image_bank).shape[1] if self.stream.image_bank else None,
                bank_rows(self.text_bank).shape[1] if self.text_bank else None,
            ),
            self.tokenizer.vocabulary_size,
        )
        return encoder, settings.objective.build(self.stream.prepared.num_samples)
