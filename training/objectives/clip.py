"""CLIP: match each image with its caption among the batch's captions, and vice versa.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020:

    L = (CE(s X Y^T) + CE(s Y X^T)) / 2,   s = 1 / temperature, learnable and clamped to [1, 100]

Rows of a batch with the same image or caption are not negatives of each other (ours; a no-op without duplicates).
"""

from typing import Literal

from pydantic import Field

from pipelines.dataset.batch import Batch, Needs
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.contrast import contrast, find_candidates
from training.objectives.ops.temperature import LearnedTemperatureSettings, LogitScale


class ContrastiveSettings(LearnedTemperatureSettings):
    """Settings of all objectives that contrast pairs within a batch at a learned temperature."""

    mask_false_negatives: bool = Field(True, description="rows with the same image or caption are not negatives")

    @property
    def needs(self) -> Needs:
        return Needs(ids=self.mask_false_negatives)


class ClipSettings(ContrastiveSettings):
    """CLIP, the symmetric InfoNCE: the baseline."""

    name: Literal["clip"] = "clip"

    def build(self, task: Task) -> "Clip":
        return Clip(self)


class Clip(Objective):
    """No state except the temperature."""

    def __init__(self, settings: ContrastiveSettings):
        super().__init__()
        self._mask = settings.mask_false_negatives
        self.scale = LogitScale(settings)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale = self.scale()
        sums = contrast(embeddings, find_candidates(embeddings, batch, self._mask), scale, scale)
        total = ((sums.image + sums.text) / 2 - scale * sums.own).mean()
        return Loss(total, {"temperature": 1 / scale.detach()})

    def update(self, batch: Batch, loss: Loss) -> None:
        self.scale.clamp()
