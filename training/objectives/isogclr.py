"""iSogCLR: SogCLR with a temperature of its own for every image and every caption.

Qiu et al., "Not All Semantics are Created Equal: Contrastive Self-supervised Learning with Automatic Temperature
Individualization", ICML 2023, arXiv 2305.11965. It descends

    F = mean_i [ t_i log(eps + g_i(t_i)) + t_i rho ]  for images, and the same for texts

Samples with frequent content get a high temperature, which pushes their many near neighbours away less; rare ones a low one. The
temperatures are state: gradient descent with momentum on dF_i/dt_i, once per step, for the samples of the batch.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.objectives.base import Embeddings, Loss, Objective, Task
from training.objectives.ops.losses import following
from training.objectives.ops.sample_memory import Memory
from training.objectives.sogclr import GlobalSettings, estimate

_LARGEST = 5.0  # gradient of a temperature


class ISogClrSettings(GlobalSettings):
    """iSogCLR: SogCLR with individual temperatures."""

    name: Literal["isogclr"] = "isogclr"
    temperature: float = Field(0.01, gt=0, description="initial temperature of every sample")
    gamma: float = Field(0.8, gt=0, le=1, description="weight of the new batch in a sample's running estimate")
    rho: float = Field(8.0, ge=0, description="pulls temperatures down")
    temperature_lr: float = Field(0.03, ge=0, description="step size of temperatures")
    momentum: float = Field(0.5, gt=0, le=1, description="weight of the new gradient in a temperature's velocity")
    min_temperature: float = Field(0.005, gt=0, description="lower end")
    max_temperature: float = Field(0.05, gt=0, description="upper end")

    @model_validator(mode="after")
    def _start_within(self) -> "ISogClrSettings":
        if not self.min_temperature <= self.temperature <= self.max_temperature:
            raise ValueError(
                f"temperature: {self.temperature} is outside min_temperature {self.min_temperature} to max_temperature "
                f"{self.max_temperature}; move one of them"
            )
        return self

    def logit_scale(self, saved: Mapping[str, Tensor]) -> float | None:
        return None  # every sample has its own

    def build(self, task: Task) -> "ISogClr":
        return ISogClr(self, task)


class ISogClr(Objective):
    """State: log u, temperature and its velocity, for every image and every caption."""

    def __init__(self, settings: ISogClrSettings, task: Task):
        super().__init__()
        self._settings = settings
        self.log_u = Memory(task, -math.inf)
        self.temperature = Memory(task, settings.temperature)
        self.velocity = Memory(task, 0.0)

    def forward(self, embeddings: Embeddings, batch: Batch) -> Loss:
        settings, dtype = self._settings, embeddings.image.dtype
        image, text = (part.to(dtype).requires_grad_() for part in self.temperature.read(batch).unbind())
        estimates = estimate(embeddings, batch, self.log_u, (image, text), settings.gamma, settings.epsilon)
        slopes = torch.autograd.grad(estimates.log_g.sum(), (image, text), retain_graph=True)
        temperature = torch.stack([image, text]).detach()
        gradient = estimates.level + settings.rho + estimates.weight * temperature * torch.stack(slopes)
        total = following(
            estimates.mean(temperature * (estimates.level + settings.rho)),
            estimates.mean(temperature * estimates.weight * estimates.log_g),
        )
        state = {"log_u": estimates.log_u, "gradient": gradient, "counted": estimates.counted}
        return Loss(total, {"temperature": temperature.mean(), "temperature_sd": temperature.std()}, state)

    def update(self, batch: Batch, loss: Loss) -> None:
        settings, valid = self._settings, loss.state["counted"]
        self.log_u.write(batch, loss.state["log_u"], valid, log=True)
        gradient: Tensor = loss.state["gradient"].clamp(-_LARGEST, _LARGEST)
        velocity = self.velocity.read(batch) * (1 - settings.momentum) + gradient * settings.momentum
        temperature = self.temperature.read(batch) - settings.temperature_lr * velocity
        self.velocity.write(batch, velocity, valid)
        self.temperature.write(batch, temperature.clamp(settings.min_temperature, settings.max_temperature), valid)
