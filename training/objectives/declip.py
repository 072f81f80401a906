"""DeCLIP: more supervision from each pair: a second view, a reworded caption, masked words, nearest neighbours.

Li et al., "Supervision Exists Everywhere: A Data Efficient Contrastive Language-Image Pre-training Paradigm", ICLR 2022, arXiv
2110.05208. For two strong views x, a of an image, its caption y with some words masked, and its reworded caption y~
(`pipelines.dataset.caption_augmentation`):

    L = contrastive L_CLIP(x, y) + views mean[L_CLIP of x, a with y, y~ otherwise] + image L_ISS + mlm L_MLM + neighbours L_NNS
    L_ISS = -1/2 mean[cos(p_x, sg z_a) + cos(p_a, sg z_x)],  z = projector(image), p = predictor(z)   (SimSiam, arXiv 2011.10566)
    L_NNS = mean over v in {x, a} and t in {y, y~} of CE(s v NN(t)^T),  NN(t): the nearest of a queue of past captions

Weights are those of the public code, 0.1 for each of the four contrasts; the paper's text says 0.4 for the first and 0.2 for
`views`. All workers share one queue, which is saved; entries that were never filled are not compared.

A caption's neighbour is a different caption of a different image (ours). The public code searches all entries: with 15 million
pairs the queue holds the last few hundred steps, in which a caption hardly ever meets itself; a queue longer than the data would
give every caption its own earlier embedding. Entries record their pair, so that with `mask_false_negatives` an image is not
pushed away from another row's neighbour that is its own caption, or that equals its own target.
"""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from pipelines.dataset.strong_views import StrongAugment, StrongViews
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import contrast, find_candidates, pair_ids
from training.objectives.ops.heads import BatchNorm, mlp
from training.objectives.ops.mlm import masked_loss
from training.objectives.ops.neighbour_contrast import neighbour_contrast
from training.objectives.ops.queue import push
from training.precision import unit


class DeclipSettings(ContrastiveSettings):
    """DeCLIP: CLIP over two views and two wordings, SimSiam, masked words, and neighbours from a queue."""

    renamed: ClassVar[dict[str, str]] = {"plain": "contrastive"}
    name: Literal["declip"] = "declip"
    contrastive: float = Field(0.1, ge=0, description="weight of the contrast of an image with its caption")
    views: float = Field(
        0.3, ge=0, description="weight of the mean of the three contrasts with the other view or the reworded caption"
    )
    image: float = Field(0.2, ge=0, description="weight of SimSiam between the views")
    mlm: float = Field(0.2, ge=0, description="weight of masked words; 0: none are masked")
    neighbours: float = Field(0.2, ge=0, description="weight of the contrast with the captions' nearest neighbours")
    queue: int = Field(65536, ge=1, description="past captions among which neighbours are searched")
    hidden: int = Field(1024, ge=1, description="width of SimSiam's projector; its predictor has half of it")
    strong: StrongAugment = Field(StrongAugment(crop_scale=(0.2, 1.0)), description="both views of an image")

    @property
    def needs(self) -> Needs:
        masked: Literal["no", "shared"] = "shared" if self.mlm else "no"
        return replace(
            super().needs, ids=True, strong=StrongViews(self.strong, 1, all_strong=True), masked=masked, other_words=True
        )

    @property
    def least_batch(self) -> int:
        return 8

    def build(self, task: Task) -> "Declip":
        return Declip(self, task)


class Declip(Clip):
    """State: the queue of caption embeddings with their image and text ids, and the number of rows ever pushed."""

    queue: Tensor
    ids: Tensor
    pushed: Tensor

    def __init__(self, settings: DeclipSettings, task: Task):
        super().__init__(settings)
        self._settings, width = settings, settings.hidden
        projector = mlp(task.embed_dim, width, width, width, last_bias=False)
        self.projector = nn.Sequential(*projector, BatchNorm(width, affine=False))
        self.predictor = mlp(width, max(1, width // 2), width)
        if settings.mlm:
            self.words = nn.Linear(task.states_width, task.vocabulary_size)
        self.register_buffer("queue", torch.zeros(settings.queue, task.embed_dim))
        self.register_buffer("ids", torch.zeros(settings.queue, 2, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings, scale = self._settings, self.scale()
        candidates = find_candidates(embeddings, batch, self._mask)
        views = [embeddings.image, unit(embeddings.strong_projection[:, 0])]
        texts = [embeddings.text, unit(embeddings.other_projection)]

        def clip(view: Tensor, text: Tensor) -> Tensor:
            sums = contrast(embeddings._replace(image=view, text=text), candidates, scale, scale)
            return ((sums.image + sums.text) / 2 - scale * sums.own).mean()

        plain, *others = (clip(view, text) for text in texts for view in views)
        z = [self.projector(rows) for rows in (embeddings.image_projection, embeddings.strong_projection[:, 0])]
        losses = {"contrastive": plain, "views": torch.stack(others).mean()}
        losses["image"] = simsiam(*(self.predictor(rows) for rows in z), *z)
        filled = min(int(self.pushed), len(self.queue))
        past = self.queue[:filled], self.ids[:filled]
        losses["neighbours"] = neighbour_contrast(views, texts, pair_ids(batch), past, candidates.targets, scale, self._mask)
        if settings.mlm:
            losses["mlm"] = masked_loss(self.words, embeddings.text_states, batch["masked_labels"])
        total = torch.stack([getattr(settings, name) * value for name, value in losses.items()]).sum()
        metrics = {"temperature": 1 / scale.detach()} | {name: value.detach() for name, value in losses.items()}
        metrics["spread"] = all_gather(unit(z[0].detach())).std(0).mean()
        new = (texts[0].detach(), texts[1].detach(), pair_ids(batch))
        return Loss(total, metrics, dict(zip(("texts", "others", "ids"), map(all_gather, new), strict=True)))

    def update(self, batch: Batch, loss: Loss) -> None:
        super().update(batch, loss)
        for name in ("others", "texts"):
            kept, places = push(self.pushed, len(loss.state[name]), len(self.queue))
            self.queue[places] = loss.state[name][kept].to(self.queue.dtype)
            self.ids[places] = loss.state["ids"][kept]


def simsiam(p: Tensor, other_p: Tensor, z: Tensor, other_z: Tensor) -> Tensor:
    """L_ISS of predictions and projections [b, F] of both views; projections get no gradient."""
    return -(F.cosine_similarity(p, other_z.detach()) + F.cosine_similarity(other_p, z.detach())).mean() / 2
