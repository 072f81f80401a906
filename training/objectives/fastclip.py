"""FastCLIP-v3: the global contrast of SogCLR with one temperature that is learned by its own exact gradient.

Wei et al., "FastCLIP: A Suite of Optimization Techniques to Accelerate CLIP Training with Limited Resources", arXiv
2407.01445. It follows

    F = t mean_i [ log(eps + g_i^image) + log(eps + g_i^text) ] + 2 rho t

in the features and in t, with gamma falling from 1 to its minimum over the first half of the run, epoch by epoch. The
released code halves two of the three terms of dF/dt on one device; this is the gradient of F itself. The temperature has
Adam of its own (ours), so that it is learned alike under every optimizer of the encoder.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipelines.batch import Batch
from training.cosine import half_cosine
from training.distributed import mean
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.functional import following
from training.objectives.memory import Memory
from training.objectives.sogclr import GlobalSettings, estimate

_SLOW = 0.03  # at and below this temperature its learning rate is a third
_BETAS, _TINY = (0.9, 0.999), 1e-8


class FastClipSettings(GlobalSettings):
    """FastCLIP-v3: SogCLR with one learned temperature and a schedule of gamma."""

    name: Literal["fastclip"] = "fastclip"
    rho: float = Field(6.5, ge=0, description="pulls the temperature down")
    min_gamma: float = Field(0.2, gt=0, le=1, description="share of the new batch in running estimates, from mid-run on")
    temperature_lr: float = Field(2e-4, ge=0, description="step size of the temperature")
    min_temperature: float = Field(0.01, gt=0, description="lower end")

    @model_validator(mode="after")
    def _start_within(self) -> "FastClipSettings":
        if self.temperature < self.min_temperature:
            raise ValueError(f"temperature: {self.temperature} is below min_temperature {self.min_temperature}; move one")
        return self

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return 1 / float(saved["temperature"])

    def build(self, task: Task) -> "FastClip":
        return FastClip(self, task)


class FastClip(Objective):
    """State: log u of every picture and caption; the temperature, its moments and how many steps made them; steps done."""

    temperature: Tensor
    moments: Tensor
    step: Tensor
    updates: Tensor

    def __init__(self, settings: FastClipSettings, task: Task):
        super().__init__()
        self._settings, self._task = settings, task
        self.log_u = Memory(task, -math.inf)
        self.register_buffer("temperature", torch.tensor(settings.temperature))
        self.register_buffer("moments", torch.zeros(2))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def gamma(self, step: int) -> float:
        """1 in the first epoch, then on a half cosine to `min_gamma`, reached at half of the epochs."""
        epochs = math.ceil(self._task.total_steps / self._task.steps_per_epoch)
        return half_cosine(1.0, self._settings.min_gamma, step // self._task.steps_per_epoch / max(1, epochs // 2))

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings = self._settings
        learned = self.temperature.to(embeddings.image.dtype, copy=True).requires_grad_()
        gamma = self.gamma(int(self.step))
        found = estimate(embeddings, batch, self.log_u, (learned, learned), gamma, settings.epsilon)
        path = found.mean(found.weight * found.log_g)
        (slope,) = torch.autograd.grad(path, learned, retain_graph=True)
        temperature, level = learned.detach(), found.mean(found.log_u) + 2 * settings.rho
        state = {"log_u": found.log_u, "counted": found.counted, "gradient": level + temperature * slope}
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
        lr = self._settings.temperature_lr * (1 / 3 if float(self.temperature) <= _SLOW else 1)
        self.temperature.sub_(lr * first / (second.sqrt() + _TINY)).clamp_(min=self._settings.min_temperature)
