"""SigLIP 2: the sigmoid loss, a decoder that tells captions, and an image tower that teaches itself late in training.

Tschannen et al., "SigLIP 2: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and Dense
Features", arXiv 2502.14786:

    L = L_SigLIP + captioning L_cap + self_distillation L_dis + masked_prediction L_mask
    L_cap  = mean over tokens of CE(decoder(states of the image, tokens shown), token)
    L_dis  = mean over parts of the image of CE(teacher's projection of the whole, student's projection of the part)
    L_mask = mean over hidden places of CE(teacher's state of the place, student's state of it)

The decoder reads the image tower's states before pooling. Of a caption it tells each token from those before it, or, with
probability `parallel`, all tokens at once from none. CE of the last two, with centred and sharpened targets, and their views are
in `training.objectives.ops.own_teacher`. They begin at 80 % of the run, on views of their own: so their augmentation does not
reach the pairs. Each has a head of its own.

From the paper: the four terms and their weights, 80 %, 8 parts, half of the places. For the rest it refers to SILC and TIPS;
numbers are SILC's where we know them. The paper multiplies both last weights by 0.25, 0.5, 1 and 0.5 for its models B, L, So400m
and g. Ours: no boxes are in the data, so LocCa's other two tasks are left out; how places are hidden; 4,096 prototypes.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from pipelines.dataset.strong_views import StrongViews
from pipelines.program.errors import UserError
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.ops.caption_decoder import CaptionDecoder, DecoderSettings
from training.objectives.ops.draws import uniforms
from training.objectives.ops.mlm import masked_loss
from training.objectives.ops.own_teacher import Lesson, OwnTeacher, OwnTeacherSettings
from training.objectives.siglip import PairwiseSettings, SigLip
from training.teacher import NoTeacher, Teacher


class SigLip2Settings(PairwiseSettings):
    """SigLIP 2: the pairwise sigmoid loss, captioning, and late self-distillation and masked prediction."""

    name: Literal["siglip2"] = "siglip2"
    captioning: float = Field(1.0, ge=0, description="weight of telling captions from images; 0: no decoder")
    parallel: float = Field(0.5, ge=0, le=1, description="share of captions whose tokens are told all at once, from none")
    decoder: DecoderSettings = Field(DecoderSettings(), description="the decoder of captions")
    self_distillation: float = Field(1.0, ge=0, description="weight of telling the whole from its parts")
    masked_prediction: float = Field(0.25, ge=0, description="weight of telling places that are hidden")
    teacher: OwnTeacherSettings = Field(OwnTeacherSettings(), description="the teacher of both, and its views and heads")

    @property
    def needs(self) -> Needs:
        told, masked, taught = self.captioning > 0, self.masked_prediction > 0, self.teacher
        views = None
        if masked or self.self_distillation:
            parts = taught.parts if self.self_distillation else 0
            views = StrongViews(taught.part, parts, whole=taught.whole, begin=taught.begin)
        return replace(super().needs, image_states=told or masked, tokens=told, draw=told or masked, strong=views)

    def build_teacher(self, encoder: nn.Module, task: Task) -> Teacher:
        views = self.needs.strong
        if views is None:
            return NoTeacher()
        return OwnTeacher(self.teacher, encoder, views.first_step(task.total_steps), masks=self.masked_prediction > 0)

    def build(self, task: Task) -> "SigLip2":
        return SigLip2(self, task)


class SigLip2(SigLip):
    """State: of each head its moving average, which answers for the teacher, and the centre of what it answers."""

    def __init__(self, settings: SigLip2Settings, task: Task):
        super().__init__(settings)
        self._settings, sizes = settings, settings.decoder
        if sizes.width % sizes.heads:
            problem = f"{sizes.heads} does not divide objective.decoder.width={sizes.width}"
            raise UserError("objective.decoder.heads", problem, "change one of them")
        if settings.captioning:
            self.decoder = CaptionDecoder(sizes, task.image_states_width, task.vocabulary_size)
        widths = {"self_distillation": task.embed_dim, "masked_prediction": task.image_states_width}
        given = {name: Lesson(width, settings.teacher) for name, width in widths.items() if getattr(settings, name)}
        self.lessons = nn.ModuleDict(given)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        siglip, state = super().forward(embeddings, batch), dict[str, Tensor]()
        total, metrics = siglip.total, siglip.metrics | {"siglip": siglip.total.detach()}
        losses = {"captioning": self._captioning(embeddings, batch)} if self._settings.captioning else {}
        for name, lesson in self.lessons.items():
            assert isinstance(lesson, Lesson)
            if "teacher_whole" not in batch:  # not yet
                losses[name] = lesson.nothing()
            elif name == "self_distillation":
                losses[name], state[name] = lesson(embeddings.strong_projection, batch["teacher_whole"][:, None])
            else:
                states, hidden = batch["teacher_states"], batch["hidden"]  # equally many places of each sample
                said, taught = (rows[hidden].unflatten(0, (len(hidden), -1)) for rows in (embeddings.masked_states, states))
                losses[name], state[name] = lesson(said, taught)
        for name, loss in losses.items():
            total, metrics[name] = total + getattr(self._settings, name) * loss, loss.detach()
        return Loss(total, metrics, state)

    def _captioning(self, embeddings: Embeddings, batch: Batch) -> Tensor:
        text, mask = batch["text"], batch["text_mask"]
        parallel = uniforms(batch["draw"], 1, purpose=0)[:, 0] < self._settings.parallel
        states = self.decoder(embeddings.image_states, text, mask, parallel)
        return masked_loss(self.decoder.words, states, text.masked_fill(mask == 0, -100))

    @torch.no_grad()
    def update(self, batch: Batch, loss: Loss) -> None:
        super().update(batch, loss)
        for name, lesson in self.lessons.items():
            assert isinstance(lesson, Lesson)
            lesson.follow(loss.state.get(name))
