"""SLIP: CLIP, and SimCLR between two strong views of each image in a separate space.

Mu, Kirillov, Wagner and Xie, "SLIP: Self-supervision meets Language-Image Pre-training", ECCV 2022, arXiv 2112.12750; SimCLR's
loss is NT-Xent (Chen et al., ICML 2020, arXiv 2002.05709). Of the 2B vectors z = [p; q] that a head makes of the image tower's
features for the strong views, partner pi(k) shows the same image:

    L = L_CLIP + weight L_SSL,   L_SSL = -1/2B sum_k log e^{<z_k, z_pi(k)>/t} / sum_{l != k} e^{<z_k, z_l>/t}

Three forward passes of the image tower per step. Captions are contrasted with a plain view; the head is discarded after training.
Views of the same image in another row are not negatives (ours; a no-op without duplicates). Both contrasts gather with gradient;
the public code does so for the views only.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch, Needs
from pipelines.dataset.strong_views import StrongAugment, StrongViews
from training.distributed import all_gather, all_rows, first_row
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.heads import mlp
from training.objectives.ops.losses import log_sums
from training.precision import exact, unit


class SlipSettings(ContrastiveSettings):
    """SLIP: CLIP with SimCLR on two strong views of each image."""

    name: Literal["slip"] = "slip"
    weight: float = Field(1.0, ge=0, description="weight of the contrast between strong views")
    view_temperature: float = Field(0.1, gt=0, description="fixed temperature of that contrast")
    hidden: int = Field(4096, ge=1, description="width of the head's two hidden layers")
    width: int = Field(256, ge=1, description="width of the space in which views are compared")
    strong: StrongAugment = Field(StrongAugment(), description="the strong views")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, strong=StrongViews(self.strong, 2))

    @property
    def least_batch(self) -> int:
        return 8

    def build(self, task: Task) -> "Slip":
        return Slip(self, task)


class Slip(Clip):
    """No state except the temperature and the head."""

    def __init__(self, settings: SlipSettings, task: Task):
        super().__init__(settings)
        self._weight, self._scale = settings.weight, 1 / settings.view_temperature
        self.head = mlp(task.image_width, settings.hidden, settings.hidden, settings.width)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        clip = super().forward(embeddings, batch)
        views = torch.stack([self.head(view) for view in embeddings.strong_features.unbind(1)], dim=1)
        views_loss = nt_xent(unit(views), self._scale, batch["image_id"] if self._mask else None).mean()
        metrics = {"clip": clip.total.detach(), "views": views_loss.detach()}
        return Loss(clip.total + self._weight * views_loss, clip.metrics | metrics)


def nt_xent(views: Tensor, scale: float, image_id: Tensor | None = None) -> Tensor:
    """NT-Xent [2b] of two views each, unit rows [b, 2, D], against those of all workers.

    Args:
        scale: 1/temperature.
        image_id: int64 [b]; other rows with the same id are not negatives. None: all other rows are negatives.
    """
    own = torch.cat(exact(views).unbind(1))  # [2b, D]: first views, then second
    first, second = (all_gather(exact(view)) for view in views.unbind(1))
    rows, everywhere = len(views), all_rows(len(views))
    place = torch.arange(rows, device=views.device) + first_row(rows)
    # Candidates with the row's id, except its target, are left out: the vector itself, and views of its image in other rows.
    ids = place if image_id is None else image_id
    pairs = torch.stack([ids, ids], dim=1).repeat(2, 1)
    candidates = Candidates(
        torch.cat([place + everywhere, place]), pairs, torch.cat([all_gather(ids)[:, None].expand(-1, 2)] * 2)
    )
    sums, _ = log_sums(own, torch.cat([first, second]), own.new_tensor(scale), None, candidates)
    cosines = (exact(views[:, 0]) * exact(views[:, 1])).sum(1)
    return sums - scale * cosines.repeat(2)
