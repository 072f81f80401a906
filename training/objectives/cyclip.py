"""CyCLIP: CLIP plus consistency of the geometry of images and texts.

Goel et al., "CyCLIP: Cyclic Contrastive Language-Image Pretraining", NeurIPS 2022, arXiv 2205.14459:

    L = L_CLIP + in_modal/B sum_jk (<x_j, x_k> - <y_j, y_k>)^2 + cross_modal/B sum_jk (<x_j, y_k> - <x_k, y_j>)^2

The sums are of raw cosines, without the scale. They grow with B, so both weights depend on the batch size.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings


class CyClipSettings(ContrastiveSettings):
    """CyCLIP: CLIP with cycle consistency within and across modalities."""

    name: Literal["cyclip"] = "cyclip"
    in_modal: float = Field(0.25, ge=0, description="weight of image-image against text-text cosines")
    cross_modal: float = Field(0.25, ge=0, description="weight of the image-text matrix's asymmetry")

    def build(self, task: Task) -> "CyClip":
        return CyClip(self)


class CyClip(Clip):
    """No state except the temperature."""

    def __init__(self, settings: CyClipSettings):
        super().__init__(settings)
        self._in_modal, self._cross_modal = settings.in_modal, settings.cross_modal

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        clip = super().forward(embeddings, batch)
        image, text = embeddings.image, embeddings.text
        within, across = inconsistencies(image, text, all_gather(image), all_gather(text))
        in_modal, cross_modal = within.mean().to(clip.total.dtype), across.mean().to(clip.total.dtype)
        total = clip.total + self._in_modal * in_modal + self._cross_modal * cross_modal
        metrics = {"clip": clip.total.detach(), "in_modal": in_modal.detach(), "cross_modal": cross_modal.detach()}
        return Loss(total, clip.metrics | metrics)


def inconsistencies(image: Tensor, text: Tensor, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Both of the paper's sums over k, [b] each, of this worker's rows [b, D] among all [B, D].

    Multiplied out, they are quadratic forms of three D x D matrices, so no B x B matrix is needed. Computed in float64, since
    large numbers cancel if all rows point in nearly the same direction, as those of dual encoders do.
    """
    x, y, all_x, all_y = (part.double() for part in (image, text, images, texts))
    with torch.autocast(x.device.type, enabled=False):
        xx, yy, xy = all_x.T @ all_x, all_y.T @ all_y, all_x.T @ all_y

        def form(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
            return ((left @ matrix) * right).sum(1)

        within = form(x, xx, x) + form(y, yy, y) - 2 * form(x, xy, y)
        return within, form(x, yy, x) + form(y, xx, y) - 2 * form(x, xy.T, y)
