"""UniCLIP: images, their views and captions contrasted in one space, with a head that reads a view's augmentation code.

Lee et al., "UniCLIP: Unified Framework for Contrastive Language-Image Pre-training", NeurIPS 2022, arXiv 2209.13430. A random
crop may lose what the caption describes, so other objectives keep views and captions apart. Here

- the image head reads a code of the augmentation (`training.encoder.AugmentedHead`); inference uses the code of no augmentation;
- all pairs of views and captions enter one loss, MP-NCE (`training.objectives.ops.mp_nce`), whose positives do not compete;
- temperature and offset depend on what is compared: s = (<z, z'> - offset) / t for image-image, image-text and text-text.

There is no public code; the size of the head and equal weights of all pairs are ours. One plain view is used in addition to the
strong ones. With `codes` false any head may be used, without codes: MP-NCE without augmentation encoding, as in MCD's ablation.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from pipelines.dataset.strong_views import StrongAugment, StrongViews
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.clip import ContrastiveSettings
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.mp_nce import mp_nce
from training.objectives.ops.temperature import LogitScale
from training.precision import unit


class UniClipSettings(ContrastiveSettings):
    """UniCLIP: views and captions in one contrast, with a head that knows a view's augmentation."""

    name: Literal["uniclip"] = "uniclip"
    image_temperature: float = Field(0.1, gt=0, description="the same, between views of images")
    text_temperature: float = Field(0.1, gt=0, description="the same, between captions")
    self_pair: bool = Field(True, description="a row is a positive of itself, which only pushes negatives away")
    views: int = Field(1, ge=1, description="strong views of each image, in addition to the plain one")
    codes: bool = Field(True, description="give the image head the augmentation's code; false: a plain head")
    strong: StrongAugment = Field(StrongAugment(), description="the strong views")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, strong=StrongViews(self.strong, self.views), codes=self.codes)

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return float(saved["scales.0.log"].exp())

    def build(self, task: Task) -> "UniClip":
        return UniClip(self)


class UniClip(Objective):
    """No state except three temperatures and three offsets: image-text, image-image, text-text."""

    def __init__(self, settings: UniClipSettings):
        super().__init__()
        self._settings = settings
        temperatures = (settings.temperature, settings.image_temperature, settings.text_temperature)
        self.scales = nn.ModuleList(LogitScale(settings.model_copy(update={"temperature": t})) for t in temperatures)
        self.offsets = nn.Parameter(torch.zeros(3))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        strong = unit(embeddings.strong_projection).unbind(1)
        rows = [embeddings.image, *strong, embeddings.text]
        # For each pair of rows, which of the three applies.
        text = torch.tensor([False] * (len(rows) - 1) + [True])
        kind = torch.where(text[:, None] & text, 2, torch.where(text[:, None] | text, 0, 1)).to(self.offsets.device)
        scales = torch.stack([scale() for scale in self.scales])
        candidates = find_candidates(embeddings, batch, self._settings.mask_false_negatives)
        losses = mp_nce(
            rows, scales[kind], self.offsets[kind], torch.ones_like(scales[kind]), candidates, self._settings.self_pair
        )
        images = losses[:-1].mean().detach()
        log = {"temperature": 1 / scales[0].detach(), "images": images, "texts": losses[-1].mean().detach()}
        return Loss(losses.mean(), log)

    def update(self, batch: Batch, loss: Loss) -> None:
        for scale in self.scales:
            cast(LogitScale, scale).clamp()
