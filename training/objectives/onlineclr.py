"""OnlineCLR: one weight distribution over all negatives and one over all positives, against running means of both.

From a course project, whose public starter code has a class of this name; no paper is known. It follows the gradient of

    F = tau_n log mean_{i != j} exp(s_ij / tau_n) + tau_p log mean_i exp(-s_ii / tau_p)

with two moving averages in place of the batch's own means, all in logarithms.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_gather
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.losses import following, log_blend, log_sums
from training.objectives.ops.temperature import TemperatureSettings
from training.precision import exact


class OnlineClrSettings(TemperatureSettings):
    """OnlineCLR: global weights of negatives and positives from two running means."""

    name: Literal["onlineclr"] = "onlineclr"
    temperature: float = Field(0.01, gt=0, description="fixed temperature of negatives")
    positive_ratio: float = Field(10.0, gt=0, description="temperature of positives divided by that of negatives")
    gamma: float = Field(0.8, gt=0, le=1, description="weight of the new batch in the running means")
    init: Literal["first_batch", "zero"] = Field("first_batch", description="initial running means; zero biases the first steps")
    mask_false_negatives: bool = Field(True, description="rows with the same image or caption are not negatives")

    @property
    def needs(self) -> Needs:
        return Needs(ids=self.mask_false_negatives)

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return None  # negatives and positives have different ones

    def build(self, task: Task) -> "OnlineClr":
        return OnlineClr(self)


class OnlineClr(Objective):
    """State: logarithms of two running means, of negatives and of positives."""

    log_means: Tensor

    def __init__(self, settings: OnlineClrSettings):
        super().__init__()
        self._settings = settings
        self.register_buffer("log_means", torch.full((2,), -math.inf))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings = self._settings
        image, text = exact(embeddings.image), exact(embeddings.text)
        negative, positive = settings.temperature, settings.temperature * settings.positive_ratio
        texts = all_gather(text)
        candidates = find_candidates(embeddings, batch, settings.mask_false_negatives)
        rows, _ = log_sums(image, texts, image.new_tensor(1 / negative), None, candidates, own=False)
        count = all_gather(candidates.negatives(len(texts))).sum()
        if not count:
            raise ValueError("onlineclr: all pairs of a batch have the same image or caption, so there are no negatives")
        own = all_gather((image * text).sum(1))
        means = all_gather(rows).logsumexp(0) - count.to(own.dtype).log(), (-own / positive).logsumexp(0) - math.log(len(own))
        log_means = torch.stack(means)
        temperatures = image.new_tensor([negative, positive])
        old = self.log_means.to(log_means.dtype)
        # The source starts both means at zero, which biases the first steps by 1 / gamma.
        new = log_blend(old, log_means.detach(), settings.gamma, adopt=settings.init == "first_batch")
        path = (temperatures * (log_means.detach() - new).exp() * log_means).sum()
        metrics = {"temperature": temperatures[0]}
        return Loss(following((temperatures * new).sum(), path), metrics, {"log_means": new})

    def update(self, batch: Batch, loss: Loss) -> None:
        self.log_means.copy_(loss.state["log_means"])
