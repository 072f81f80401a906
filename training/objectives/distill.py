"""Distillation from a stronger dual encoder: a small one learns from the large one's embeddings of the same pairs.

Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation", CVPR 2024, arXiv 2307.12732, has these losses and more. For
the teacher's unit rows u, v of image and caption, its own temperature t', and two linear heads that map the student's projections
into the teacher's space, p^I and p^T:

    L = contrastive L_CLIP + relation L_CRD + feature L_FD + interactive L_ICL
    L_CRD = [ H(softmax(u V^T / t'), softmax(x Y^T / t)) + H(softmax(v U^T / t'), softmax(y X^T / t)) ] / 2
    L_FD  = |p^I - u|^2 + |p^T - v|^2
    L_ICL = [ CE(p^I V^T / t) + CE(p^T U^T / t) ] / 2

L_CRD is the paper's Kullback-Leibler divergence without the teacher's entropy, which does not depend on the student. The public
scripts use a weight of 2,000 for L_FD as a mean over entries, which is about 4 times the sum at a width of 512. Paper and scripts
have heads only if the widths differ; here there are heads (ours) unless `heads` is false: then p is the student's embedding.

The teacher is `frozen_encoders`: both halves of an open_clip or Hugging Face model, or of an earlier run; of a run that starts
from a dual encoder, that start, unless they name another. Its embeddings of images and captions are computed once and looked up;
with `live`, it runs in the step on the student's views.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from pipelines.program.errors import UserError
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.losses import log_sums, soft_cross_entropy
from training.precision import exact, unit


class DistillSettings(ContrastiveSettings):
    """Distillation from a stronger dual encoder, named in `frozen_encoders`, or from the one that the run starts from."""

    renamed: ClassVar[dict[str, str]] = {"plain": "contrastive"}
    name: Literal["distill"] = "distill"
    contrastive: float = Field(1.0, ge=0, description="weight of CLIP's own loss")
    relation: float = Field(1.0, ge=0, description="weight of the teacher's similarities within the batch, as soft targets")
    feature: float = Field(4.0, ge=0, description="weight of the squared distance to the teacher's embeddings")
    interactive: float = Field(
        1.0, ge=0, description="weight of the contrast with the teacher's embeddings of the other modality"
    )
    teacher_temperature: float = Field(
        0.01, gt=0, description="temperature of the teacher's similarities; 0.01 is that of released CLIP models"
    )
    heads: bool = Field(
        True,
        description="learn a map into the teacher's space; false: embeddings are in it, as when the start teaches",
    )
    live: bool = Field(
        False, description="run the teacher in the step on the student's views; false: look up its stored embeddings"
    )

    @property
    def needs(self) -> Needs:
        return replace(super().needs, frozen_encoders="live" if self.live else "own", one_space=True)

    def build(self, task: Task) -> "Distill":
        return Distill(self, task)


class Distill(Clip):
    """No state except the temperature and the heads."""

    def __init__(self, settings: DistillSettings, task: Task):
        super().__init__(settings)
        self._settings, (width, text_width) = settings, task.frozen_widths
        if width != text_width:
            problem = f"distill needs the halves of one dual encoder, and these have widths {width} and {text_width}"
            raise UserError("frozen_encoders", problem, "name both halves of one model, such as name: run with the same path")
        if not settings.heads and width != task.embed_dim:
            problem = f"false, but the teacher's embeddings have width {width} and the student's {task.embed_dim}"
            raise UserError("objective.heads", problem, f"pass objective.heads=true, or embed_dim={width}")
        self.image_head, self.text_head = (
            nn.Linear(task.embed_dim, width) if settings.heads else nn.Identity() for _ in range(2)
        )

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings, scale = self._settings, self.scale()
        u, v = exact(batch["frozen_image_features"][:, 0]), exact(batch["frozen_text_features"][:, 0])
        everywhere = all_gather(u), all_gather(v)
        candidates = find_candidates(embeddings, batch, self._mask)
        clip, losses = super().forward(embeddings, batch), {}
        losses["contrastive"] = clip.total
        if settings.relation:
            sharp, all_soft = scale.new_tensor(1 / settings.teacher_temperature), torch.ones_like(u[:, 0])
            texts, images = all_gather(embeddings.text), all_gather(embeddings.image)
            image = soft_cross_entropy((embeddings.image, texts, scale), (u, everywhere[1], sharp), all_soft, candidates)
            text = soft_cross_entropy((embeddings.text, images, scale), (v, everywhere[0], sharp), all_soft, candidates)
            losses["relation"] = (image + text).mean() / 2
        p = unit(self.image_head(embeddings.image_projection)), unit(self.text_head(embeddings.text_projection))
        if settings.feature:
            losses["feature"] = ((exact(p[0]) - u).square().sum(1) + (exact(p[1]) - v).square().sum(1)).mean()

        def interactive(rows: Tensor, keys: Tensor, own: Tensor) -> Tensor:
            sums, _ = log_sums(rows, keys, scale, None, candidates)
            return (sums - scale * (exact(rows) * own).sum(1)).mean()

        if settings.interactive:
            losses["interactive"] = (interactive(p[0], everywhere[1], v) + interactive(p[1], everywhere[0], u)) / 2
        total = torch.stack([getattr(settings, name) * value for name, value in losses.items()]).sum()
        return Loss(total, clip.metrics | {name: value.detach() for name, value in losses.items()})
