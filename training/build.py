"""Builds a plan's networks on one worker, and the train state around them."""

from pathlib import Path
from typing import Any

import ray.train.torch
import torch
from torch import nn

from pipelines.dataset.stream import Worker
from training.moving_average import follower
from training.plan import Plan
from training.state import TrainState
from training.teacher import FrozenEncoders
from training.towers.base import synchronised
from training.towers.padding import may_cut


def build_state(plan: Plan, worker: Worker, checkpoint: Path | None = None) -> tuple[Any, TrainState]:
    """The plain encoder, and the state with its distributed form. `checkpoint`: what the caller will load into the state."""
    settings = plan.settings
    encoder: Any
    encoder, objective, teacher = plan.build(checkpoint)
    encoder.to(worker.device)
    if worker.world_size > 1 and worker.device.type == "cuda":
        encoder = synchronised(encoder)
    average = None if settings.ema is None else follower(encoder)
    distributed: nn.Module = encoder
    if worker.world_size > 1 and any(p.requires_grad for p in encoder.parameters()):
        # Our objectives keep their state equal by gathering, so broadcasting buffers in every forward pass would be waste.
        distributed = ray.train.torch.prepare_model(encoder, parallel_strategy_kwargs={"broadcast_buffers": False})
    if settings.compile:
        distributed = torch.compile(distributed)  # type: ignore[assignment]
    objective.to(worker.device)
    teacher.to(worker.device)
    optimizer = settings.optimizer.build([encoder, objective])
    scaler = torch.amp.GradScaler(worker.device.type, enabled=settings.precision == "fp16")
    return encoder, TrainState(distributed, objective, teacher, optimizer, scaler, average)


def masks_to_cut(plan: Plan, encoder: Any, state: TrainState) -> set[str]:
    """Names of the token masks whose padding may be cut to a batch's longest text. A compiled encoder keeps its fixed length."""
    masks: set[str] = set()
    if encoder.text_tower is not None and not plan.settings.compile and may_cut(encoder.text_tower, plan.tokenizer):
        masks |= {"text_mask", "other_mask", "more_mask", "label_mask"}
    if isinstance(state.teacher, FrozenEncoders):
        assert plan.stream.frozen_tokenizer is not None
        if may_cut(state.teacher.text, plan.stream.frozen_tokenizer):
            masks |= {"frozen_mask"}
    return masks
