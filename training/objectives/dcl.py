"""DCL: contrast without the own pair in the denominator, which small batches gain most from.

Yeh, Hong, Hsu, Liu, Chen and LeCun, "Decoupled Contrastive Learning", ECCV 2022, arXiv 2110.06848. In InfoNCE a pair that is easy
shrinks the gradient of its own negatives (the paper's "negative-positive coupling"); the fewer negatives, the more. For x_i, y_i
the unit rows of a pair, between images and texts (ours; the paper contrasts views of images):

    L = 1/2B sum_i [ -w_i x_i.y_i / t + log sum_{j != i} exp(x_i.y_j / t) - w_i x_i.y_i / t + log sum_{j != i} exp(x_j.y_i / t) ]
    w_i = 1, or with `sigma` (DCLW):  w_i = 2 - exp(x_i.y_i / sigma) / mean_k exp(x_k.y_k / sigma)

w has no gradient (ours), and its mean over the batch is 1: pairs that are far apart pull more. The loss has no lower bound as t
goes to 0, so the temperature is fixed by default. Rows with the same image or caption are no negatives of one another (ours), and
a row without any negative is left out.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.distributed import all_gather, all_rows, mean_over_workers
from training.objectives.base import Embeddings, Loss, Task
from training.objectives.clip import Clip, ContrastiveSettings
from training.objectives.ops.contrast import contrast, find_candidates


class DclSettings(ContrastiveSettings):
    """DCL: CLIP without the own pair in the denominator."""

    name: Literal["dcl"] = "dcl"
    learn_temperature: bool = Field(False, description="learn it; false: keep it fixed, as the loss falls without end with it")
    sigma: float | None = Field(
        None, gt=0, description="DCLW: pairs that are far apart weigh more, at this temperature; the paper's is 0.5; null: DCL"
    )

    def build(self, task: Task) -> "Dcl":
        return Dcl(self)


class Dcl(Clip):
    """No state except the temperature."""

    def __init__(self, settings: DclSettings):
        super().__init__(settings)
        self._sigma = settings.sigma

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        scale, candidates = self.scale(), find_candidates(embeddings, batch, self._mask)
        sums = contrast(embeddings, candidates, scale, scale, own=False)
        pull = scale * sums.own
        if self._sigma is not None:
            pull = far_weights(sums.own, self._sigma) * pull
        has_negatives = candidates.negatives(all_rows(len(pull))) > 0
        rows = (sums.image + sums.text) / 2 - pull
        total = mean_over_workers(torch.where(has_negatives, rows, 0.0), has_negatives)
        return Loss(total, {"temperature": 1 / scale.detach()})


@torch.no_grad()
def far_weights(cosines: Tensor, sigma: float) -> Tensor:
    """w [b] of DCLW, from the cosines [b] of this worker's own pairs; its mean over all workers is 1."""
    near = (cosines / sigma).exp()
    return 2 - near / all_gather(near).mean()
