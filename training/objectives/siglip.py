"""SigLIP: every pair of an image and a text is a separate binary classification.

Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, arXiv 2303.15343:

    L = 1/B [ sum_ij softplus(z_ij) - sum_i z_ii ],   z = s X Y^T + bias

Nothing is normalised over the batch, so texts can be passed around the workers (`exchange: ring`) and no worker ever holds more
than two blocks of them. Pairs with the same image or caption are left out (ours; a no-op without duplicates).
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pipelines.dataset.batch import Batch, Needs
from training.distributed import around, first_row
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.contrast import pair_ids
from training.objectives.ops.losses import sigmoid_sums
from training.objectives.ops.temperature import LearnedTemperatureSettings, LogitScale
from training.precision import exact


class PairwiseSettings(LearnedTemperatureSettings):
    """Settings of all objectives with the pairwise sigmoid loss."""

    temperature: float = Field(0.1, gt=0, description="1/temperature scales the cosines; the initial value, if it is learned")
    bias: float = Field(-10.0, description="initial value of the learned bias, about -log of the negatives per positive")
    exchange: Literal["ring", "gather"] = Field("ring", description="pass texts around the workers, or gather all at once")
    mask_false_negatives: bool = Field(True, description="pairs with the same image or caption are left out")

    @property
    def needs(self) -> Needs:
        return Needs(ids=self.mask_false_negatives)

    def logit_bias(self, saved: Mapping[str, Tensor]) -> float | None:
        return float(saved["bias"])


class SigLipSettings(PairwiseSettings):
    """SigLIP, the pairwise sigmoid loss."""

    name: Literal["siglip"] = "siglip"

    def build(self, task: Task) -> "SigLip":
        return SigLip(self)


class SigLip(Objective):
    """No state except scale and bias."""

    def __init__(self, settings: PairwiseSettings):
        super().__init__()
        self._pairwise = settings
        self.scale = LogitScale(settings)
        self.bias = nn.Parameter(torch.tensor(settings.bias))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        image, text = exact(embeddings.image), exact(embeddings.text)
        ring, scale = self._pairwise.exchange == "ring", self.scale()
        own = torch.arange(len(image), device=image.device)
        # Without the data's ids, a pair is only like itself.
        ids = pair_ids(batch) if self._pairwise.mask_false_negatives else (own + first_row(len(own)))[:, None].expand(-1, 2)
        sums = F.softplus(-scale * (image * text).sum(1) - self.bias)
        for texts, text_ids in zip(around(text, ring), around(ids, ring), strict=True):
            sums = sums + sigmoid_sums(image, texts, scale, self.bias, Candidates(own, ids, text_ids))
        return Loss(sums.mean(), {"temperature": 1 / scale.detach(), "bias": self.bias.detach()})

    def update(self, batch: Batch, loss: Loss) -> None:
        self.scale.clamp()
