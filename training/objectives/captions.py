"""Several captions of an image at once: what a caption leaves out, another may say.

The loss is LaCLIP's for several texts (Fan, Krishnan, Isola, Katabi and Tian, "Improving CLIP Training with Language Rewrites",
NeurIPS 2023, arXiv 2305.20088), in both directions (ours). With y^k the k-th of an image's K captions, and L_CLIP the loss of
`clip`:

    L = 1/K sum_k L_CLIP(x, y^k)

The captions are different ones of the sample, drawn anew every epoch, K in each; a sample with fewer repeats its own. The k-th
caption is compared with the k-th captions of other samples, so captions of one image are never negatives of one another.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from pipelines.dataset.batch import Batch, Needs
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import contrast, find_candidates
from training.precision import unit


class CaptionsSettings(ContrastiveSettings):
    """CLIP with several captions of an image at once."""

    name: Literal["captions"] = "captions"
    captions: int = Field(2, ge=2, description="of an image in a step; each costs a forward pass of the text tower")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, captions=self.captions)

    def build(self, task: Task) -> "Captions":
        return Captions(self)


class Captions(Clip):
    """No state except the temperature."""

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale, losses = self.scale(), []
        texts = [embeddings.text, *unit(embeddings.more_projection).unbind(1)]
        ids = [batch["text_id"], *batch["more_id"].unbind(1)] if self._mask else []
        for place, text in enumerate(texts):
            rows = embeddings._replace(text=text)
            columns: Batch = {"image_id": batch["image_id"], "text_id": ids[place]} if self._mask else batch
            sums = contrast(rows, find_candidates(rows, columns, self._mask), scale, scale)
            losses.append(((sums.image + sums.text) / 2 - scale * sums.own).mean())
        first, others = losses[0], torch.stack(losses[1:])
        metrics = {"temperature": 1 / scale.detach(), "first": first.detach(), "others": others.detach().mean()}
        return Loss(torch.stack(losses).mean(), metrics)
