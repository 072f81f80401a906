"""MCD: misalign images by strong views, contrast everything, and distil the degree of misalignment.

Kim, Jo, Kim and Kim, "Misalign, Contrast then Distill: Rethinking Misalignments in Language-Image Pretraining", ICCV 2023, arXiv
2312.12661. A strong view x' of image x may no longer fit caption y. A moving average of the image tower estimates by how much,
and the student learns that through log-ratios of distances, D(u, v) = |u - v| (equations 5 to 13):

    L = L_con(l) + l [L_pos + L_neg + L_noisy] + mlm L_MLM,   l from 0 to 1 on a half cosine
    LR_i(u, v) = h( log D(y_i, u) / D(y_i, v) - the teacher's )
    L_pos = mean_i LR_i(x_i, x'_i),  L_neg = mean_{i != j} LR_i(x_j, x'_j),  L_noisy = mean_{i != j} LR_i(x_i, x_j)

L_con is MP-NCE over x, y and x', in which a positive pair with a strong view has weight 1 - l; the other three terms are in
`training.objectives.ops.log_ratio`. Inference uses the student. h, the weight of L_MLM and the teacher's momentum are ours where
the paper's text that we have gives none.

The rows of the paper's ablation (table 5) are weights of the three terms and l: MP-NCE alone is `progress` 0.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from pipelines.dataset.strong_views import StrongAugment, StrongViews
from training.half_cosine import half_cosine
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.log_ratio import Distance, misalignments
from training.objectives.ops.mlm import masked_loss
from training.objectives.ops.mp_nce import mp_nce
from training.precision import unit
from training.teacher import EmaSettings, NoTeacher, Teacher


class McdSettings(ContrastiveSettings):
    """MCD: contrast over images, captions and strong views, and distillation of their misalignment."""

    name: Literal["mcd"] = "mcd"
    distance: Distance = Field("square", description="h, applied to differences of log-ratios")
    positive: float = Field(1.0, ge=0, description="weight of L_pos, the misalignment of an image's own strong view")
    negative: float = Field(1.0, ge=0, description="weight of L_neg, the misalignment of other images' strong views")
    noisy: float = Field(1.0, ge=0, description="weight of L_noisy, other images compared with the caption's own")
    progress: float | None = Field(
        None,
        ge=0,
        le=1,
        description="a fixed l, from contrast (0) to distillation (1); null: from 0 to 1 on a half cosine over the run",
    )
    mlm: float = Field(0.2, ge=0, description="weight of masked words; 0: none, which saves a forward pass of the text tower")
    teacher: EmaSettings = Field(EmaSettings(), description="moving average of the encoder, of which the image half is used")
    strong: StrongAugment = Field(StrongAugment(), description="the strong view")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, strong=StrongViews(self.strong, 1), masked="apart" if self.mlm else "no")

    @property
    def distils(self) -> bool:
        """Whether anything is learned from the teacher."""
        return self.progress != 0 and self.positive + self.negative + self.noisy > 0

    def build_teacher(self, encoder: nn.Module, task: Task) -> Teacher:
        return self.teacher.build(encoder, task.total_steps, images_only=True) if self.distils else NoTeacher()

    def build(self, task: Task) -> "Mcd":
        return Mcd(self, task)


class Mcd(Clip):
    """State: the number of steps done."""

    step: Tensor

    def __init__(self, settings: McdSettings, task: Task):
        super().__init__(settings)
        self._settings, self._total_steps = settings, task.total_steps
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        if settings.mlm:
            self.words = nn.Linear(task.states_width, task.vocabulary_size)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale, candidates = self.scale(), find_candidates(embeddings, batch, self._mask)
        grown = self.progress(int(self.step))
        strong = unit(embeddings.strong_projection[:, 0])
        rows = [embeddings.image, embeddings.text, strong]
        tables = scale.expand(3, 3), scale.new_zeros(3, 3), scale.new_ones(3, 3)
        tables[2][2, :] = tables[2][:, 2] = 1 - grown
        contrast = mp_nce(rows, *tables, candidates).mean()
        total, settings = contrast, self._settings
        metrics = {"temperature": 1 / scale.detach(), "contrast": contrast.detach()}
        if settings.distils:
            images = embeddings.image, strong, batch["teacher_image"], batch["teacher_strong"][:, 0]
            positive, negative, noisy = misalignments(embeddings.text, images, candidates, settings.distance)
            distil = settings.positive * positive + settings.negative * negative + settings.noisy * noisy
            total, metrics["distil"] = total + grown * distil, distil.detach()
        if settings.mlm:
            words = masked_loss(self.words, embeddings.text_states, batch["masked_labels"])
            total, metrics["mlm"] = total + settings.mlm * words, words.detach()
        return Loss(total, metrics)

    def progress(self, step: int) -> float:
        """l at a step."""
        fixed = self._settings.progress
        return half_cosine(0.0, 1.0, step / self._total_steps) if fixed is None else fixed

    def skip(self) -> None:
        self.step += 1

    def update(self, batch: Batch, loss: Loss) -> None:
        super().update(batch, loss)
        self.step += 1
