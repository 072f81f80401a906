"""CLIP: match each image with its caption among the batch's captions, and the reverse.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, arXiv 2103.00020:

    L = (CE(s X Y^T) + CE(s Y X^T)) / 2,   s = 1 / temperature, learnable and clamped to [1, 100]

Rows of a batch that show the same picture or caption are no negatives of one another (ours; a no-op without duplicates).
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from pipelines.batch import Batch, Needs
from training.distributed import all_gather, first_row
from training.objectives.base import Embeddings, LogitScale, Loss, Objective, TemperatureSettings
from training.objectives.functional import info_nce, same_pair


class ClipSettings(TemperatureSettings):
    """CLIP, the symmetric InfoNCE: the baseline."""

    needs: ClassVar[Needs] = Needs(ids=True)
    name: Literal["clip"] = "clip"
    mask_false_negatives: bool = Field(True, description="rows with the same picture or caption are no negatives")

    def build(self, num_samples: int) -> "Clip":
        return Clip(self)


class Clip(Objective):
    """No state but the temperature."""

    def __init__(self, settings: ClipSettings):
        super().__init__()
        self._mask = settings.mask_false_negatives
        self.scale = LogitScale(settings)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        images, texts = all_gather(embeddings.image), all_gather(embeddings.text)
        rows = len(embeddings.image)
        targets = torch.arange(rows, device=images.device) + first_row(rows)
        excluded = None
        if self._mask:
            image_id, text_id = batch["image_id"], batch["text_id"]
            excluded = same_pair(image_id, text_id, all_gather(image_id), all_gather(text_id), targets)
        scale = self.scale()
        image_to_text = info_nce(embeddings.image, texts, targets, scale, excluded)
        text_to_image = info_nce(embeddings.text, images, targets, scale, excluded)
        return Loss((image_to_text + text_to_image) / 2, {"temperature": 1 / scale.detach()})

    def update(self, embeddings: Embeddings, batch: Batch) -> None:
        self.scale.clamp()
