"""CLIP-PING: a small encoder guided by nearest neighbours according to frozen single-modality encoders.

Thwal et al., "CLIP-PING: Boosting Lightweight Vision-Language Models with Proximus Intrinsic Neighbors Guidance", arXiv
2412.03871. For sample k, n is the sample whose image is nearest according to a frozen image encoder, and m the sample whose
caption is nearest according to a frozen text encoder (`pipelines.features.frozen_encoders`). In addition to CLIP, two heads on
the student's projections contrast it with the features A^I, A^T of nearest neighbours (NN) and of cross nearest neighbours (XNN):

    L = L_CLIP + nearest [ G(p^I, A^I_n) + G(p^T, A^T_m) ] / 2 + cross_nearest [ G(p^I, A^I_m) + G(p^T, A^T_n) ] / 2
    G(p, f): symmetric InfoNCE of the batch's p and f at its own temperature; same neighbours are not negatives

The paper prints no equations and has no public code: these losses are our reading of its text. With `cross: other_modality` XNN
is G(p^I, A^T_n) + G(p^T, A^I_m), with two more heads.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_gather, mean_over_workers
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.contrast import contrast, find_candidates
from training.objectives.ops.temperature import LogitScale
from training.precision import unit

# Index in the frozen encoders' columns: the sample, its image's neighbour n, its caption's neighbour m.
_OWN, _BY_IMAGE, _BY_TEXT = range(3)


class ClipPingSettings(ContrastiveSettings):
    """CLIP-PING: CLIP, and nearest neighbours according to frozen image and text encoders."""

    renamed: ClassVar[dict[str, str]] = {"nn": "nearest", "xnn": "cross_nearest", "own": "own_features"}
    name: Literal["clip-ping"] = "clip-ping"
    nearest: float = Field(1.0, ge=0, description="weight of nearest neighbours")
    cross_nearest: float = Field(1.0, ge=0, description="weight of cross nearest neighbours")
    own_features: float = Field(0.0, ge=0, description="weight of the sample's own features, as in distillation")
    cross: Literal["same_modality", "other_modality"] = Field(
        "same_modality", description="what XNN compares an image with: the image of m, or the caption of n"
    )
    neighbour_temperature: float = Field(
        0.07, gt=0, description="temperature of the contrast with neighbours; learned if `temperature` is"
    )

    @property
    def needs(self) -> Needs:
        return replace(super().needs, frozen_encoders="neighbours")

    def build(self, task: Task) -> "ClipPing":
        return ClipPing(self, task)


class ClipPing(Clip):
    """No state except two temperatures and the heads."""

    def __init__(self, settings: ClipPingSettings, task: Task):
        super().__init__(settings)
        self._settings = settings
        self.neighbour_scale = LogitScale(settings.model_copy(update={"temperature": settings.neighbour_temperature}))
        image_width, text_width = task.frozen_widths
        self.image_head, self.text_head = nn.Linear(task.embed_dim, image_width), nn.Linear(task.embed_dim, text_width)
        if settings.cross == "other_modality":
            self.image_cross, self.text_cross = nn.Linear(task.embed_dim, text_width), nn.Linear(task.embed_dim, image_width)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings, clip = self._settings, super().forward(embeddings, batch)
        ids, images, texts = (batch[name] for name in ("neighbour_ids", "frozen_image_features", "frozen_text_features"))
        projections = embeddings.image_projection, embeddings.text_projection
        image, text = unit(self.image_head(projections[0])), unit(self.text_head(projections[1]))

        def term(rows: Tensor, features: Tensor, which: int) -> Tensor:
            return guidance(rows, features[:, which], ids[:, which], self.neighbour_scale())

        total, metrics = clip.total, {"clip": clip.total.detach()}
        if settings.nearest:
            nearest = (term(image, images, _BY_IMAGE) + term(text, texts, _BY_TEXT)) / 2
            total, metrics["nearest"] = total + settings.nearest * nearest, nearest.detach()
        if settings.cross_nearest:
            if settings.cross == "same_modality":
                cross = (term(image, images, _BY_TEXT) + term(text, texts, _BY_IMAGE)) / 2
            else:
                image_too, text_too = unit(self.image_cross(projections[0])), unit(self.text_cross(projections[1]))
                cross = (term(image_too, texts, _BY_IMAGE) + term(text_too, images, _BY_TEXT)) / 2
            total, metrics["cross_nearest"] = total + settings.cross_nearest * cross, cross.detach()
        if settings.own_features:
            own = (term(image, images, _OWN) + term(text, texts, _OWN)) / 2
            total, metrics["own_features"] = total + settings.own_features * own, own.detach()
        return Loss(total, clip.metrics | metrics)

    def update(self, batch: Batch, loss: Loss) -> None:
        super().update(batch, loss)
        self.neighbour_scale.clamp()


def guidance(rows: Tensor, features: Tensor, ids: Tensor, scale: Tensor) -> Tensor:
    """G: symmetric InfoNCE of this worker's unit rows [b, F] with features [b, F] of samples `ids` [b], against all workers'.

    Rows with the same id are not negatives of each other; a row with id -1 has no neighbour and is left out.
    """
    has_neighbour = ids >= 0
    features = features.to(rows.dtype)
    pairs = Embeddings(rows, features, rows, features)
    columns = torch.stack([ids, ids], dim=1)
    candidates = Candidates(
        targets=find_candidates(pairs, {}, ids=False).targets,
        ids=columns,
        all_ids=all_gather(columns),
        group=has_neighbour,
        all_groups=all_gather(has_neighbour),
    )
    sums = contrast(pairs, candidates, scale, scale)
    losses = (sums.image + sums.text) / 2 - scale * sums.own
    return mean_over_workers(torch.where(has_neighbour, losses, 0.0), has_neighbour)
