"""FastCLIP-v3: the global contrast of SogCLR with one temperature that is learned by its exact gradient.

Wei et al., "FastCLIP: A Suite of Optimization Techniques to Accelerate CLIP Training with Limited Resources", arXiv
2407.01445. It descends

    F = t mean_i [ log(eps + g_i^image) + log(eps + g_i^text) ] + 2 rho t

in the features and in t, while gamma decays epoch by epoch from 1 to its minimum over the first half of the run. The learned
parameter is ln(1/t), as in the released code, so a step of 2e-4 changes t by two parts in ten thousand, whatever t is. That code
halves two of the three terms of dF/dt; this is the gradient of F itself. The temperature has its own Adam (ours; with the betas
of the released ResNet-50 runs), so it is learned the same way whatever the encoder's optimizer.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.distributed import mean, weight
from training.half_cosine import half_cosine
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.losses import following
from training.objectives.ops.sample_memory import Memory
from training.objectives.sogclr import GlobalSettings, estimate

_SLOW = 0.03  # at and below this temperature its learning rate is divided by three
_BETAS, _TINY = (0.9, 0.999), 1e-8


class FastClipSettings(GlobalSettings):
    """FastCLIP-v3: SogCLR with one learned temperature and a schedule of gamma."""

    name: Literal["fastclip"] = "fastclip"
    rho: float = Field(6.5, ge=0, description="pulls the temperature down")
    min_gamma: float = Field(
        0.2, gt=0, le=1, description="weight of the new batch in running estimates, from half of the epochs on"
    )
    temperature_lr: float = Field(2e-4, ge=0, description="step size of ln(1/temperature)")
    min_temperature: float = Field(0.01, gt=0, lt=1, description="lower bound; the upper bound is 1")

    @model_validator(mode="after")
    def _start_within(self) -> "FastClipSettings":
        if not self.min_temperature <= self.temperature <= 1:
            raise ValueError(
                f"temperature: {self.temperature} is outside min_temperature {self.min_temperature} to 1, where it is kept; "
                "change it or min_temperature"
            )
        return self

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return float(saved["log_scale"].exp())

    def build(self, task: Task) -> "FastClip":
        return FastClip(self, task)


class FastClip(Objective):
    """State: log u of every image and caption; ln(1/temperature), its moments and their number of updates; steps done."""

    log_scale: Tensor
    moments: Tensor
    step: Tensor
    updates: Tensor

    def __init__(self, settings: FastClipSettings, task: Task):
        super().__init__()
        self._settings, self._task = settings, task
        self.log_u = Memory(task, -math.inf)
        self.register_buffer("log_scale", torch.tensor(-math.log(settings.temperature)))
        self.register_buffer("moments", torch.zeros(2))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def temperature(self) -> Tensor:
        """A scalar."""
        return (-self.log_scale).exp()

    def gamma(self, step: int) -> float:
        """1 in the first epoch, then on a half cosine to `min_gamma`, reached at half of the epochs."""
        epochs = math.ceil(self._task.total_steps / self._task.steps_per_epoch)
        return half_cosine(1.0, self._settings.min_gamma, step // self._task.steps_per_epoch / max(1, epochs // 2))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings = self._settings
        learned = self.temperature().to(embeddings.image.dtype).requires_grad_()
        gamma = self.gamma(int(self.step))
        estimates = estimate(embeddings, batch, self.log_u, (learned, learned), gamma, settings.epsilon)
        path = estimates.mean(estimates.weight * estimates.log_g)
        # This worker's part of the slope of all workers' paths, each weighted as in the step; `mean` will weight the part again.
        (slope,) = torch.autograd.grad(weight() * path, learned, retain_graph=True)
        slope = slope / weight()
        temperature, level = learned.detach(), estimates.mean(estimates.level) + 2 * settings.rho
        gradient = -temperature * (level + temperature * slope)  # dF/d ln(1/t) = -t dF/dt
        state = {"log_u": estimates.log_u, "counted": estimates.counted, "gradient": gradient}
        metrics = {"temperature": temperature, "gamma": temperature.new_tensor(gamma)}
        return Loss(following(temperature * level, temperature * path), metrics, state)

    def skip(self) -> None:
        self.step += 1

    def update(self, batch: Batch, loss: Loss) -> None:
        self.log_u.write(batch, loss.state["log_u"], loss.state["counted"], log=True)
        self.step += 1
        self.updates += 1
        gradient, count = mean(loss.state["gradient"]), int(self.updates)
        powers = torch.stack([gradient, gradient.square()]).to(self.moments.dtype)
        keep = self.moments.new_tensor(_BETAS)
        self.moments.copy_(keep * self.moments + (1 - keep) * powers)
        first, second = self.moments / (1 - keep**count)
        lr = self._settings.temperature_lr * (1 / 3 if float(self.temperature()) <= _SLOW else 1)
        self.log_scale.sub_(lr * first / (second.sqrt() + _TINY)).clamp_(0.0, -math.log(self._settings.min_temperature))
