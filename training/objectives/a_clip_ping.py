"""A-CLIP-PING: CLIP-PING whose frozen encoders run in the step, on the same views as the student.

Thwal et al., arXiv 2412.03871, which also describes `clip_ping`. No features are stored beforehand: they are computed in the
step, and neighbours are searched among those of past pairs, in a queue that all workers share:

    A^I, A^T of the batch  ->  n, m: nearest entries of another image  ->  the losses of CLIP-PING  ->  A^I, A^T into the queue

"Active" is read as run, not as trained: the frozen encoders' weights never change (ours; the paper prints no code). Two more
forward passes per step, without gradient.
"""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip_ping import ClipPing, ClipPingSettings
from training.objectives.ops.queue import at, nearest, push


class AClipPingSettings(ClipPingSettings):
    """A-CLIP-PING: CLIP-PING with frozen encoders that run in the step, and a queue instead of stored features."""

    name: Literal["a-clip-ping"] = "a-clip-ping"  # type: ignore[assignment]
    queue: int = Field(
        65536, ge=1, description="past pairs among which neighbours are searched; at most as many as there are images"
    )

    @property
    def needs(self) -> Needs:
        return replace(super().needs, ids=True, sample_id=True, frozen_encoders="live")

    def build(self, task: Task) -> "AClipPing":
        return AClipPing(self, task)


class AClipPing(ClipPing):
    """State: the queue (unit rows in float16 with sample and image ids), and the number of rows ever pushed."""

    images: Tensor
    texts: Tensor
    ids: Tensor
    pushed: Tensor

    def __init__(self, settings: AClipPingSettings, task: Task):
        super().__init__(settings, task)
        size = min(settings.queue, task.num_images)
        for name, width in zip(("images", "texts"), task.frozen_widths, strict=True):
            self.register_buffer(name, torch.zeros(size, width, dtype=torch.float16))
        self.register_buffer("ids", torch.zeros(size, 2, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        filled = min(int(self.pushed), len(self.ids))
        ids, queues = self.ids[:filled], (self.images[:filled], self.texts[:filled])
        own = batch["frozen_image_features"][:, 0], batch["frozen_text_features"][:, 0]
        images, queue_images = batch["image_id"][:, None], ids[:, 1:]
        places = [nearest(rows, queue, images, queue_images, ids) for rows, queue in zip(own, queues, strict=True)]
        extended = batch.copy()
        for name, rows, queue in zip(("frozen_image_features", "frozen_text_features"), own, queues, strict=True):
            neighbours = [at(queue, place).to(rows.dtype) for place in places]
            extended[name] = torch.stack([rows, *neighbours], dim=1)  # type: ignore[literal-required]
        neighbour_ids = [torch.where(place < 0, -1, at(ids[:, 0], place)) for place in places]
        extended["neighbour_ids"] = torch.stack([batch["sample_id"], *neighbour_ids], dim=1)
        loss = super().forward(embeddings, extended)
        new = all_gather(torch.stack([batch["sample_id"], batch["image_id"]], dim=1)), *map(all_gather, own)
        state = dict(zip(("ids", "images", "texts"), new, strict=True))
        return Loss(loss.total, loss.metrics | {"queue": loss.total.new_tensor(filled)}, state)

    def update(self, batch: Batch, loss: Loss) -> None:
        super().update(batch, loss)
        kept, places = push(self.pushed, len(loss.state["ids"]), len(self.ids))
        for name, queue in (("ids", self.ids), ("images", self.images), ("texts", self.texts)):
            queue[places] = loss.state[name][kept].to(queue.dtype)
