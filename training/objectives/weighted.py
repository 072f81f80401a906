"""CLIP in which every pair has a weight, from a column of the dataset: a quality score, a trust in its source, an importance.

With w_i the weights, at least 0, and L_i the loss of pair i in `clip`, both directions:

    L = sum_i w_i L_i / sum_i w_i

The sums are over the global batch, so only ratios of weights count, and a batch in which all weights are 0 has no loss. A pair is
a negative of the others whatever its weight: one of weight 0 is learned from only as such.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from pipelines.dataset.batch import Batch, Needs
from training.distributed import mean_over_workers
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import contrast, find_candidates


class WeightedSettings(ContrastiveSettings):
    """CLIP with a weight for every pair."""

    name: Literal["weighted"] = "weighted"
    weight: str = Field("weight", description="label column of the dataset with the weights, numbers of at least 0")

    @property
    def needs(self) -> Needs:
        return replace(super().needs, numbers=(self.weight,))

    def build(self, task: Task) -> "Weighted":
        return Weighted(self)


class Weighted(Clip):
    """No state except the temperature."""

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale = self.scale()
        sums = contrast(embeddings, find_candidates(embeddings, batch, self._mask), scale, scale)
        weights = batch["numbers"][:, 0].to(sums.own.dtype)
        losses = (sums.image + sums.text) / 2 - scale * sums.own
        total = mean_over_workers(weights * losses, weights)
        return Loss(total, {"temperature": 1 / scale.detach(), "weight": weights.mean()})
