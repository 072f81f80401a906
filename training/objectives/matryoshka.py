"""Matryoshka: embeddings whose first entries are embeddings too, so that one run serves indexes of several sizes.

Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, arXiv 2205.13147. With [:w] the first w entries of a
projection, normalised anew, and L_CLIP the loss of `clip`:

    L = mean over w in widths of L_CLIP(unit(x[:w]), unit(y[:w]))

The paper sums over widths with weight 1; a mean (ours) keeps the loss on CLIP's scale. The temperature is one for all. The joint
space's own width is always one of them. Cut embeddings have to be normalised again before they are compared.
"""

from typing import Literal

import torch
from pydantic import Field

from pipelines.dataset.batch import Batch
from pipelines.program.errors import UserError
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import contrast, find_candidates
from training.precision import unit


class MatryoshkaSettings(ContrastiveSettings):
    """Matryoshka: CLIP at several widths of the same embedding."""

    name: Literal["matryoshka"] = "matryoshka"
    widths: tuple[int, ...] | None = Field(
        None, description="numbers of first entries, besides embed_dim; null: 1/2, 1/4, 1/8 and 1/16 of it, down to 8"
    )

    def build(self, task: Task) -> "Matryoshka":
        return Matryoshka(self, task)


class Matryoshka(Clip):
    """No state except the temperature."""

    def __init__(self, settings: MatryoshkaSettings, task: Task):
        super().__init__(settings)
        widths, whole = settings.widths, task.embed_dim
        if widths is None:
            widths = tuple(whole // share for share in (2, 4, 8, 16) if whole // share >= 8)
        for width in widths:
            if not 1 <= width <= whole:
                problem = f"{width} is not between 1 and embed_dim={whole}"
                raise UserError("objective.widths", problem, "leave it out, or raise embed_dim")
        self._widths = sorted({*widths, whole})

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale, candidates = self.scale(), find_candidates(embeddings, batch, self._mask)
        losses = {}
        for width in self._widths:
            image, text = (rows[:, :width] for rows in (embeddings.image_projection, embeddings.text_projection))
            sums = contrast(embeddings._replace(image=unit(image), text=unit(text)), candidates, scale, scale)
            losses[f"width_{width}"] = ((sums.image + sums.text) / 2 - scale * sums.own).mean()
        metrics = {"temperature": 1 / scale.detach()} | {name: value.detach() for name, value in losses.items()}
        return Loss(torch.stack([*losses.values()]).mean(), metrics)
