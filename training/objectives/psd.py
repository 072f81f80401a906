"""PSD, progressive self-distillation: a growing share of the pairs is matched to a teacher's alignment.

Andonian, Chen and Hamid, "Robust Cross-Modal Representation Learning with Progressive Self-Distillation", CVPR 2022, arXiv
2204.04588. Captions of the web fit many images, and some fit none: a random part of every batch, which grows during training,
gets soft targets in place of one-hot ones.

    L = 1/2B sum_i [ H(R_i^image, softmax(s X Y^T)_i) + H(R_i^text, softmax(s Y X^T)_i) ]
    R_i = softmax(teacher's row i / sharpening) for a soft pair, e_i for a hard one

We could not find the paper's schedule, targets and temperatures, so those here are ours. So is the default teacher, a moving
average, which costs one more forward pass; the paper's is the network itself, "without incurring extra computational cost":
`teacher.name=self`. With 40 % of the captions exchanged, `self` was below CLIP and the moving average above it
(docs/benchmarks/noise.md), and PSD is meant for wrong captions.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch
from pipelines.program.randomness import generator
from pipelines.program.settings_base import Settings
from training.distributed import all_gather, all_rows, first_row
from training.half_cosine import half_cosine
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.clip import ContrastiveSettings
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.losses import soft_cross_entropy
from training.objectives.ops.temperature import LogitScale
from training.teacher import EmaSettings, NoTeacher, Teacher


class SelfSettings(Settings):
    """The student's own prediction, without gradient: no further forward pass."""

    name: Literal["self"] = "self"

    def build(self, student: nn.Module, total_steps: int) -> Teacher:
        return NoTeacher()


class PsdSettings(ContrastiveSettings):
    """PSD, progressive self-distillation: soft targets for a growing share of noisy pairs."""

    renamed: ClassVar[dict[str, str]] = {"share": "soft_fraction", "swap": "swap_directions"}
    name: Literal["psd"] = "psd"
    teacher: Annotated[SelfSettings | EmaSettings, Field(discriminator="name")] = Field(
        EmaSettings(),
        description="who makes the soft targets; self: the network itself, as in the paper (what it costs: docs/objectives.md)",
    )
    soft_fraction: float = Field(0.9, ge=0, lt=1, description="share of soft pairs at the end of its growth")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="growth of the fraction: linear, complete half-way through the run; cosine, at its end; constant"
    )
    sharpening: float = Field(1.0, gt=0, description="the teacher's logits are divided by it")
    swap_directions: bool | None = Field(
        None, description="an image's target is the teacher's prediction for its text, and vice versa; null: for self only"
    )
    scope: Literal["batch", "block"] = Field("batch", description="block: soft pairs are contrasted with soft pairs only")

    @property
    def swapped(self) -> bool:
        """Without swapping, the network's own unsharpened prediction as target has no gradient."""
        return self.teacher.name == "self" if self.swap_directions is None else self.swap_directions

    def build_teacher(self, encoder: nn.Module, task: Task) -> Teacher:
        return self.teacher.build(encoder, task.total_steps)

    def build(self, task: Task) -> "Psd":
        return Psd(self, task)


class Psd(Objective):
    """State: the number of steps done, which determines the share and choice of soft pairs."""

    step: Tensor

    def __init__(self, settings: PsdSettings, task: Task):
        super().__init__()
        self._settings, self._task = settings, task
        self.scale = LogitScale(settings)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def share(self, step: int) -> float:
        """The share of soft pairs at a step."""
        done, settings = step / self._task.total_steps, self._settings
        if settings.schedule == "constant":
            return settings.soft_fraction
        return (
            settings.soft_fraction * min(1.0, 2 * done)
            if settings.schedule == "linear"
            else half_cosine(0.0, settings.soft_fraction, done)
        )

    def soft(self, size: int, step: int) -> Tensor:
        """bool [size]: which pairs of the global batch are soft; the same on every worker."""
        chosen = generator("psd", self._task.seed, step).permutation(size)[: round(self.share(step) * size)]
        soft = torch.zeros(size, dtype=torch.bool)
        soft[torch.from_numpy(chosen)] = True
        return soft

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings, scale, rows = self._settings, self.scale(), len(embeddings.image)
        images, texts = all_gather(embeddings.image), all_gather(embeddings.text)
        if settings.teacher.name == "self":
            taught_image, taught_text, taught_images, taught_texts = embeddings.image, embeddings.text, images, texts
        else:
            taught_image, taught_text = batch["teacher_image"], batch["teacher_text"]
            taught_images, taught_texts = all_gather(taught_image), all_gather(taught_text)
        from_image, from_text = (taught_image, taught_texts), (taught_text, taught_images)
        if settings.swapped:
            from_image, from_text = from_text, from_image
        all_soft = self.soft(all_rows(rows), int(self.step)).to(images.device)
        soft = all_soft[first_row(rows) :][:rows]
        candidates = find_candidates(embeddings, batch, settings.mask_false_negatives)
        if settings.scope == "block":
            candidates = candidates._replace(group=soft, all_groups=all_soft)
        sharpness, share = scale / settings.sharpening, soft.to(images.dtype)
        image = soft_cross_entropy((embeddings.image, texts, scale), (*from_image, sharpness), share, candidates)
        text = soft_cross_entropy((embeddings.text, images, scale), (*from_text, sharpness), share, candidates)
        return Loss((image + text).mean() / 2, {"temperature": 1 / scale.detach(), "soft_share": all_soft.float().mean()})

    def skip(self) -> None:
        self.step += 1

    def update(self, batch: Batch, loss: Loss) -> None:
        self.scale.clamp()
        self.step += 1
