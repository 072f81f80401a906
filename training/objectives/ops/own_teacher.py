"""A moving average of the encoder teaches its image half: parts of an image are to tell what the whole does.

Self-distillation as in SILC (Naeem et al., arXiv 2310.13355), which follows DINO (Caron et al., arXiv 2104.14294), and masked
prediction as in TIPS (Maninis et al., arXiv 2410.16512). A head makes K logits z of what the teacher and the student say, and

    CE = - sum_k softmax((z_teacher - centre) / teacher_temperature)_k log softmax(z_student / student_temperature)_k

The teacher's head is a moving average as well. The centre, a moving average of its logits, keeps one prototype from taking all.
The teacher sees a view of most of the image, `whole`; the student sees small parts of the image, and the same view without half
of its places. Ours: parts are as large as the tower's input, since many towers take one size only; places are hidden by the mean
colour in their pixels, which does for every kind of tower. A transformer's hidden patches all become one token, as in the paper:
the bias of its patch embedding.
"""

from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch
from pipelines.dataset.strong_views import StrongAugment
from pipelines.program.settings_base import Settings
from training.distributed import all_rows, stacked
from training.moving_average import follow, follower
from training.objectives.ops.draws import uniforms
from training.precision import exact, unit
from training.teacher import Teacher


class OwnTeacherSettings(Settings):
    """The teacher, what it and its student see, and the heads whose answers are compared."""

    begin: float = Field(
        0.8, ge=0, lt=1, description="share of the run after which it teaches; until then it is the encoder itself"
    )
    momentum: float = Field(0.966, ge=0, le=1, description="weight of the teacher in its update after each step")
    parts: int = Field(8, ge=1, description="views of parts of the image, for self-distillation")
    part: StrongAugment = Field(StrongAugment(crop_scale=(0.05, 0.4)), description="the view of a part")
    whole: StrongAugment = Field(StrongAugment(crop_scale=(0.4, 1.0)), description="the view of most of the image")
    prototypes: int = Field(4096, ge=2, description="K, the outputs of a head; SILC has 65,536")
    hidden: int = Field(2048, ge=1, description="width of a head's two hidden layers")
    bottleneck: int = Field(256, ge=1, description="width of the space in which a head compares with its prototypes")
    student_temperature: float = Field(0.1, gt=0, description="of the student's softmax")
    teacher_temperature: float = Field(0.04, gt=0, description="of the teacher's, which is to be sharper")
    centre_momentum: float = Field(0.9, ge=0, le=1, description="weight of the centre in its update after each step")


class OwnTeacher(Teacher):
    """Until step `start` the encoder itself, then its moving average. It speaks of batches that have a view `whole`.

    `teacher_whole` [b, D], the projection of that view, joins the batch. With `masks`, so do `teacher_states` [b, P, S] of its
    places, and `hidden` [b, P], half of the places, drawn for each sample.
    """

    def __init__(self, settings: OwnTeacherSettings, student: nn.Module, start: int, masks: bool):
        super().__init__()
        self.encoder = follower(student)
        self._momentum, self._start, self._masks = settings.momentum, start, masks
        self.train(False)

    def forward(self, batch: Batch) -> Batch:
        if "whole" not in batch:
            return batch
        columns = self.encoder.images({"image": batch["whole"]})
        taught, states = {**batch, "teacher_whole": columns["image_projection"]}, columns["image_states"] if self._masks else None
        if states is not None:
            taught |= {"teacher_states": states, "hidden": half(batch["draw"], states.shape[1])}
        return cast(Batch, taught)

    def update(self, student: nn.Module, step: int) -> None:
        follow(self.encoder, student, self._momentum if step >= self._start else 0.0)


def half(draw: Tensor, places: int) -> Tensor:
    """Bool [b, places]: half of the places, or one less than the others, at random."""
    chosen = uniforms(draw, places, purpose=1).argsort(dim=1, stable=True)[:, : places // 2]
    return torch.zeros(len(draw), places, dtype=torch.bool, device=draw.device).scatter_(1, chosen, True)


class PrototypeHead(nn.Module):
    """Rows [..., F] to their cosines [..., K] with prototypes, after an MLP."""

    def __init__(self, width: int, settings: OwnTeacherSettings):
        super().__init__()
        hidden = settings.hidden
        first, second, last = nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, settings.bottleneck)
        self.layers = nn.Sequential(first, nn.GELU(), second, nn.GELU(), last)
        self.prototypes = nn.Parameter(torch.randn(settings.prototypes, settings.bottleneck))

    def forward(self, rows: Tensor) -> Tensor:
        return unit(self.layers(exact(rows))) @ unit(self.prototypes).T


class Lesson(nn.Module):
    """Compares what the student says with what the teacher says. State: the teacher's head and the centre of its logits."""

    centre: Tensor

    def __init__(self, width: int, settings: OwnTeacherSettings):
        super().__init__()
        self._settings = settings
        self.student = PrototypeHead(width, settings)
        self.teacher = follower(self.student)
        self.register_buffer("centre", torch.zeros(settings.prototypes))

    def forward(self, said: Tensor, taught: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross entropy over rows and what is said of each; and the mean of the teacher's logits over all workers, [K].

        Args:
            said: of the student, [b, V, F]. taught: of the teacher, [b, V, F], or [b, 1, F] for all V.
        """
        settings = self._settings
        with torch.no_grad():
            logits = self.teacher(taught)
            target = ((logits - self.centre) / settings.teacher_temperature).softmax(-1)
            mean = stacked(logits.mean(1).sum(0)).sum(0) / all_rows(len(logits))
        found = (self.student(said) / settings.student_temperature).log_softmax(-1)
        return -(target * found).sum(-1).mean(), mean

    def nothing(self) -> Tensor:
        """0, with a gradient of 0, for a step without lessons: every worker has one for each parameter."""
        return 0.0 + 0.0 * torch.stack([parameter.sum() for parameter in self.student.parameters()]).sum()

    @torch.no_grad()
    def follow(self, mean: Tensor | None) -> None:
        """After a step. `mean`: of the teacher's logits; None if there was no lesson, and the teacher is the student."""
        follow(self.teacher, self.student, 0.0 if mean is None else self._settings.momentum)
        if mean is not None:
            self.centre.lerp_(mean.to(self.centre.dtype), 1 - self._settings.centre_momentum)
