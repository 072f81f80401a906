"""Objectives as a user of the library writes them: one that obeys the laws, and one that breaks each of them."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_gather, first_row, rank
from training.objectives.base import Embeddings, Loss, Objective, ObjectiveSettings, Task


class Plain(ObjectiveSettings):
    """InfoNCE from images to texts at a fixed scale, with a moving average of the mean text as a negative of all."""

    scale: float = Field(10.0, gt=0, description="1/temperature")

    def build(self, task: Task) -> Objective:
        return PlainLoss(self, task)

    def logit_scale(self, saved: object) -> float:
        return self.scale


class PlainLoss(Objective):
    """State: the moving average."""

    mean: Tensor

    def __init__(self, settings: Plain, task: Task):
        super().__init__()
        self._scale = settings.scale
        self.register_buffer("mean", torch.zeros(task.embed_dim))

    def texts(self, embeddings: Embeddings) -> Tensor:
        return all_gather(embeddings.text)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        keys = torch.cat([self.texts(embeddings), self.mean[None]])
        logits = self._scale * embeddings.image @ keys.T
        own = torch.arange(len(logits), device=logits.device) + self.first(len(logits))
        return Loss(F.cross_entropy(logits, own), {}, {"text": embeddings.text.detach()})

    def first(self, rows: int) -> int:
        return first_row(rows)

    def update(self, batch: Batch, loss: Loss) -> None:
        self.mean.lerp_(all_gather(loss.state["text"]).mean(0), 0.5)


class Many(Plain):
    """With several captions of an image and three label columns, of which two are texts."""

    @property
    def needs(self) -> Needs:
        return Needs(captions=3, texts=("a", "b"), numbers=("c",))

    def build(self, task: Task) -> Objective:
        class Manifold(PlainLoss):
            def texts(self, embeddings: Embeddings) -> Tensor:
                return all_gather(embeddings.text + embeddings.more_projection.sum(1) / 9)

            def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
                loss = super().forward(embeddings, batch)
                wrong = embeddings.label_projection * batch["label_there"][..., None] * batch["numbers"][..., None]
                cosines = (embeddings.image[:, None] * wrong).sum(-1)
                assert cosines.shape == (len(embeddings.image), 2) and embeddings.more_projection.shape[1] == 2
                return loss._replace(total=loss.total + cosines.mean())

        return Manifold(self, task)


class OwnRowsOnly(Plain):
    """Compares with this worker's texts alone."""

    def build(self, task: Task) -> Objective:
        class Broken(PlainLoss):
            def texts(self, embeddings: Embeddings) -> Tensor:
                return embeddings.text

            def first(self, rows: int) -> int:
                return 0

        return Broken(self, task)


class OwnStateOnly(Plain):
    """Writes what this worker saw."""

    def build(self, task: Task) -> Objective:
        class Broken(PlainLoss):
            def update(self, batch: Batch, loss: Loss) -> None:
                self.mean.lerp_(loss.state["text"].mean(0), 0.5)

        return Broken(self, task)


class WritesInForward(Plain):
    """Changes state where it is only to be read."""

    def build(self, task: Task) -> Objective:
        class Broken(PlainLoss):
            def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
                loss = super().forward(embeddings, batch)
                self.mean += 0.1
                return loss

        return Broken(self, task)


class Forgets(Plain):
    """Keeps state that no checkpoint holds."""

    def build(self, task: Task) -> Objective:
        class Broken(PlainLoss):
            def __init__(self, settings: Plain, task: Task):
                super().__init__(settings, task)
                del self._buffers["mean"]
                self.mean = torch.zeros(task.embed_dim, dtype=torch.float64)

        return Broken(self, task)


class SumsOverRows(Plain):
    """A sum in the place of the mean: right for one worker and one part."""

    def build(self, task: Task) -> Objective:
        class Broken(PlainLoss):
            def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
                loss = super().forward(embeddings, batch)
                return loss._replace(total=loss.total * len(embeddings.image))

        return Broken(self, task)


class EqualShares(Plain):
    """Takes all workers to have as many rows as this one."""

    def build(self, task: Task) -> Objective:
        class Broken(PlainLoss):
            def first(self, rows: int) -> int:
                return rank() * rows

        return Broken(self, task)


class NoSettings(Objective):
    """What a config cannot name: not settings, but the objective itself."""
