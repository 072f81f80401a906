"""NegCLIP: images against captions and hard-negative captions, so that word order and attributes count.

Yuksekgonul, Bianchi, Kalluri, Jurafsky and Zou, "When and why vision-language models behave like bags-of-words, and what to do
about it?", ICLR 2023, arXiv 2210.01936. With n_jk the k-th hard negative of pair j, a wrong caption that is close to y_j ("the
horse is eating the grass" as "the grass is eating the horse"), all of them negatives of every image of the batch:

    L = 1/2B sum_i [ -log exp(s_ii / t) / (sum_j exp(s_ij / t) + sum_jk exp(x_i.n_jk / t)) - log softmax_j(s_ji / t)_i ]

A hard negative has no image, so texts are compared with images as in CLIP. The paper makes one negative of each caption by
swapping words; here they are label columns of the dataset, made by whatever means, and a row may lack some. The paper's other
half, batches with images that are near to one another, is a matter of sampling and not here.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.contrast import contrast, find_candidates
from training.objectives.ops.losses import log_sums
from training.precision import unit


class NegClipSettings(ContrastiveSettings):
    """NegCLIP: CLIP with hard-negative captions of the dataset."""

    name: Literal["negclip"] = "negclip"
    negatives: tuple[str, ...] = Field(
        ("negative",),
        min_length=1,
        description="label columns of the dataset, each with a wrong caption that is close to the right one",
    )

    @property
    def needs(self) -> Needs:
        return replace(super().needs, texts=self.negatives)

    def build(self, task: Task) -> "NegClip":
        return NegClip(self)


class NegClip(Clip):
    """No state except the temperature."""

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale = self.scale()
        sums = contrast(embeddings, find_candidates(embeddings, batch, self._mask), scale, scale)
        absent = ~batch["label_there"]
        negatives = all_gather(unit(embeddings.label_projection)).flatten(0, 1)  # [B K, D]
        # Those that a row lacks are of another group than every image.
        groups = torch.zeros_like(absent[:, 0], dtype=torch.int64), all_gather(absent.long()).flatten()
        candidates = Candidates(torch.zeros_like(groups[0]), group=groups[0], all_groups=groups[1])
        hard, _ = log_sums(embeddings.image, negatives, scale, None, candidates)
        image = torch.logaddexp(sums.image, hard)
        total = ((image + sums.text) / 2 - scale * sums.own).mean()
        # The share of what pushes an image away from texts, its own included, that hard negatives have.
        share = (hard - image).detach().exp().mean()
        return Loss(total, {"temperature": 1 / scale.detach(), "hard": share})
