"""SogCLR: every sample keeps a running estimate of its normaliser over the whole data, so small batches follow the global
contrast.

Yuan et al., "Provable Stochastic Optimization for Global Contrastive Learning: Small Batch Does Not Harm Performance", ICML
2022, arXiv 2202.12387; for two modalities as in Qiu et al., ICML 2023, arXiv 2305.11965. It descends

    F = t mean_i [ log(eps + g_i^image) + log(eps + g_i^text) ],   g_i^image = mean_{j != i} exp((s_ij - s_ii) / t)

with a moving average u_i in place of g_i's denominator: u_i <- (1 - gamma) u_i + gamma g_i, at the first visit u_i = g_i. All in
logarithms, so nothing overflows at any temperature. `total` is the estimate of F; its gradient is the method's.

Here eps is one number for all anchors, as in F. Public code for two modalities stores u_i exp(-b_i) and keeps that above eps: b_i
is the largest (s_ij - s_ii) / t that the anchor has had, at least 0, so its effective eps is eps exp(b_i), and never falls again.
An anchor whose negatives were once ahead by a cosine of 0.5, as at random weights, then counts as solved at temperature 0.01 and
eps 1e-14 as soon as they are ahead by less than 0.18: its past decides whether it has a gradient, even without memory (gamma =
1). That code avoids overflow this way, which logarithms do not need (docs/objectives.md has measurements of both).

With `hinge` the gap x = s_ij - s_ii enters as the square hinge max(0, x + hinge)^2, in g_i and in its gradient: a surrogate that
the same public code offers, off by default there too.
"""

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from pipelines.dataset.batch import Batch, Needs
from training.distributed import all_rows
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.contrast import contrast, find_candidates, hinged_sums
from training.objectives.ops.losses import following, log_blend
from training.objectives.ops.sample_memory import Memory
from training.objectives.ops.temperature import TemperatureSettings


class GlobalSettings(TemperatureSettings):
    """Settings of all objectives that estimate the global contrast."""

    epsilon: float = Field(1e-14, gt=0, description="anchors whose mean falls below it count as solved, and lose their weight")

    @property
    def needs(self) -> Needs:
        return Needs(ids=True)


class SogClrSettings(GlobalSettings):
    """SogCLR: global contrast from per-sample running estimates, at a fixed temperature."""

    name: Literal["sogclr"] = "sogclr"
    temperature: float = Field(0.01, gt=0, description="fixed")
    gamma: float = Field(0.8, gt=0, le=1, description="weight of the new batch in a sample's running estimate")
    grad_scale: Literal["source", "unit"] = Field(
        "source", description="source: the gradient is 2 x temperature times CLIP's; unit: the size of CLIP's, for SGD"
    )

    hinge: float | None = Field(
        None, ge=0, description="c: gaps x to the own pair's cosine enter as max(0, x + c)^2 (public code: 1); null: unchanged"
    )

    def build(self, task: Task) -> "SogClr":
        return SogClr(self, task)


class Estimates(NamedTuple):
    """Results for this worker's b pairs, each as image and as text: [2, b] except `counted`."""

    log_g: Tensor  # log of the batch's mean over negatives, with gradient
    log_u: Tensor  # updated running estimate
    level: Tensor  # log(eps + u), of which F is the mean
    weight: Tensor  # g / (eps + u), the anchor's weight in the gradient
    counted: Tensor  # bool [b]: it has negatives; elsewhere log_g and weight are 0 and log_u is unchanged

    def mean(self, values: Tensor) -> Tensor:
        """Mean over pairs of the sum over both modalities of [2, b]; anchors without negatives count as 0."""
        return torch.where(self.counted, values, 0.0).sum(0).mean()


def estimate(
    embeddings: Embeddings,
    batch: Batch,
    memory: Memory,
    temperatures: tuple[Tensor, Tensor],
    gamma: float,
    epsilon: float,
    hinge: float | None = None,
) -> Estimates:
    """At temperatures of images and of texts: the same scalar twice, or [b] each; with `hinge` the former."""
    candidates = find_candidates(embeddings, batch, ids=True)
    image_scale = 1 / temperatures[0]
    text_scale = image_scale if temperatures[1] is temperatures[0] else 1 / temperatures[1]
    negatives = candidates.negatives(all_rows(len(embeddings.image)))
    counted = negatives > 0
    if hinge is None:
        result = contrast(embeddings, candidates, image_scale, text_scale, own=False)
        sums = torch.stack([result.image - result.own * image_scale, result.text - result.own * text_scale])
    else:
        sums = torch.stack(hinged_sums(embeddings, candidates, image_scale, hinge))
    log_g = torch.where(counted, sums - negatives.clamp(min=1).to(sums.dtype).log(), 0.0)
    old = memory.read(batch).to(log_g.dtype)
    log_u = torch.where(counted, log_blend(old, log_g.detach(), gamma), old)
    level = torch.logaddexp(log_u, log_u.new_tensor(math.log(epsilon)))
    weight = torch.where(counted, (log_g.detach() - level).exp(), 0.0)
    return Estimates(log_g, log_u, level, weight, counted)


class SogClr(Objective):
    """State: log u of every image and every caption."""

    def __init__(self, settings: SogClrSettings, task: Task):
        super().__init__()
        self._settings = settings
        self.log_u = Memory(task, -math.inf)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings = self._settings
        temperature = embeddings.image.new_tensor(settings.temperature)
        temperatures = temperature, temperature
        estimates = estimate(embeddings, batch, self.log_u, temperatures, settings.gamma, settings.epsilon, settings.hinge)
        factor = temperature if settings.grad_scale == "source" else 0.5
        total = following(factor * estimates.mean(estimates.level), factor * estimates.mean(estimates.weight * estimates.log_g))
        return Loss(total, {"temperature": temperature}, {"log_u": estimates.log_u, "counted": estimates.counted})

    def update(self, batch: Batch, loss: Loss) -> None:
        self.log_u.write(batch, loss.state["log_u"], loss.state["counted"], log=True)
