"""ALBEF's image-text alignment: momentum distillation with queues of past features.

Li et al., "Align before Fuse: Vision and Language Representation Learning with Momentum Distillation", NeurIPS 2021, arXiv
2107.07651. The moving average of both towers embeds the batch; its embeddings and those of past batches are the candidates:

    C_text = [teacher texts of the batch; queue],   target_i = a softmax(teacher x_i . C_text / t) + (1 - a) own_i
    L = [ H(target^image, softmax(x C_text^T / t)) + H(target^text, softmax(y C_image^T / t)) ] / 2

a rises from 0 to `teacher_weight` over the first epoch. `own` is spread evenly over candidates with the same image or caption, so
the queue may still hold a sample of the batch from the previous epoch. ALBEF's other two losses, masked words and matching, need
its fusion encoder and are left out.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.contrast import find_candidates, pair_ids
from training.objectives.ops.losses import soft_cross_entropy
from training.objectives.ops.queue import push
from training.objectives.ops.temperature import LearnedTemperatureSettings, LogitScale
from training.teacher import EmaSettings, Teacher


class AlbefSettings(LearnedTemperatureSettings):
    """ALBEF's alignment: an EMA teacher's soft targets over queues of past features."""

    renamed: ClassVar[dict[str, str]] = {"share": "teacher_weight"}
    name: Literal["albef"] = "albef"
    max_scale: float = Field(1000.0, gt=0, description="cap of the logit scale 1/temperature")
    teacher_weight: float = Field(0.4, ge=0, le=1, description="weight of the teacher in the targets, from the second epoch on")
    queue: int = Field(65536, ge=0, description="past pairs among the candidates; at most the number of images in the data")
    teacher: EmaSettings = Field(EmaSettings(momentum=0.995, final_momentum=0.995), description="moving average of the encoder")

    @property
    def needs(self) -> Needs:
        return Needs(ids=True)

    def build_teacher(self, encoder: nn.Module, task: Task) -> Teacher:
        return self.teacher.build(encoder, task.total_steps)

    def build(self, task: Task) -> "Albef":
        return Albef(self, task)


class Albef(Objective):
    """State: queues of teacher embeddings with their ids, the number of rows ever pushed, and the number of steps done."""

    images: Tensor
    texts: Tensor
    ids: Tensor
    pushed: Tensor
    step: Tensor

    def __init__(self, settings: AlbefSettings, task: Task):
        super().__init__()
        self._share, self._steps_per_epoch = settings.teacher_weight, task.steps_per_epoch
        self.scale = LogitScale(settings)
        size = min(settings.queue, task.num_images)
        self.register_buffer("images", torch.zeros(size, task.embed_dim))
        self.register_buffer("texts", torch.zeros(size, task.embed_dim))
        self.register_buffer("ids", torch.zeros(size, 2, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        filled, own_ids = min(int(self.pushed), len(self.ids)), pair_ids(batch)
        new = {name: all_gather(batch[name]) for name in ("teacher_image", "teacher_text")}
        ids = all_gather(own_ids)
        images = torch.cat([new["teacher_image"], self.images[:filled]])
        texts = torch.cat([new["teacher_text"], self.texts[:filled]])
        targets = find_candidates(embeddings, batch, ids=False).targets
        candidates = Candidates(targets, own_ids, torch.cat([ids, self.ids[:filled]]))
        scale, rows = self.scale(), len(targets)
        share = embeddings.image.new_full((rows,), self._share * min(1.0, int(self.step) / self._steps_per_epoch))

        def one_way(student: Tensor, teacher: Tensor, keys: Tensor) -> Tensor:
            return soft_cross_entropy((student, keys, scale), (teacher, keys, scale), share, candidates, alike_is_own=True)

        image = one_way(embeddings.image, batch["teacher_image"], texts)
        text = one_way(embeddings.text, batch["teacher_text"], images)
        metrics = {"temperature": 1 / scale.detach(), "soft_share": share.mean(), "queue": share.new_tensor(filled)}
        return Loss((image + text).mean() / 2, metrics, {**new, "ids": ids})

    def skip(self) -> None:
        self.step += 1

    def update(self, batch: Batch, loss: Loss) -> None:
        self.scale.clamp()
        self.step += 1
        if len(self.ids):
            kept, places = push(self.pushed, len(loss.state["ids"]), len(self.ids))
            self.images[places] = loss.state["teacher_image"][kept].to(self.images.dtype)
            self.texts[places] = loss.state["teacher_text"][kept].to(self.texts.dtype)
            self.ids[places] = loss.state["ids"][kept]
