"""VICReg on image-text pairs: pull pairs together, keep every dimension's spread, decorrelate dimensions. No negatives.

Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization", ICLR 2022, arXiv 2105.04906, on projections
u, v [B, D] before normalisation:

    L = invariance mean (u - v)^2 + variance [hinge(u) + hinge(v)] / 2 + covariance [offdiagonal(u) + offdiagonal(v)]
    hinge(u) = mean_k max(0, 1 - sqrt(Var_k(u) + 1e-4)),   offdiagonal(u) = 1/D sum_{k != l} Cov(u)_kl^2

There is no expander network before the loss here; the paper's has three layers of 8192.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Objective, ObjectiveSettings, Task
from training.precision import exact


class VicRegSettings(ObjectiveSettings):
    """VICReg: invariance, variance and covariance of projections, without negatives."""

    name: Literal["vicreg"] = "vicreg"
    invariance: float = Field(25.0, ge=0, description="weight of the distance between the two embeddings of a pair")
    variance: float = Field(25.0, ge=0, description="weight of the missing standard deviation of a dimension")
    covariance: float = Field(1.0, ge=0, description="weight of the correlations between dimensions")

    def build(self, task: Task) -> "VicReg":
        return VicReg(self)


class VicReg(Objective):
    """No parameters and no state."""

    def __init__(self, settings: VicRegSettings):
        super().__init__()
        self._settings = settings

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        image, text = exact(embeddings.image_projection), exact(embeddings.text_projection)
        with torch.autocast(image.device.type, enabled=False):
            images, texts = all_gather(image), all_gather(text)
            invariance = (image - text).square().mean()
            variance = (_hinge(images) + _hinge(texts)) / 2
            covariance = _off_diagonal(images) + _off_diagonal(texts)
        weights = self._settings
        total = weights.invariance * invariance + weights.variance * variance + weights.covariance * covariance
        terms = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return Loss(total, {name: value.detach() for name, value in terms.items()})


def _hinge(rows: Tensor) -> Tensor:
    """Mean over dimensions of the amount by which the standard deviation is below 1."""
    return torch.relu(1 - (rows.var(0) + 1e-4).sqrt()).mean()


def _off_diagonal(rows: Tensor) -> Tensor:
    """Sum of squared covariances of different dimensions, divided by D."""
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / (len(rows) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]
