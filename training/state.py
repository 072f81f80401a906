"""`TrainState`: everything that changes while training. What is not in it is not saved.

The data cursor is `step`: the order of samples is a function of (seed, epoch), so the step says where the stream goes on.
Random numbers need no state either: every step seeds them from (seed, step, rank).
"""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from training.objectives.base import Objective
from training.teacher import Teacher

_TRANSIENT = {"transient": True}


@dataclass
class TrainState:
    """`state_dict` walks the fields, so there is no list to forget."""

    encoder: nn.Module
    objective: Objective
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0  # steps done, skipped ones too; the next one is this one
    samples: int = 0  # pairs seen, over all workers
    skipped: int = 0  # steps that did not count, for their loss or gradient was not finite
    failing: int = 0  # skipped steps less those that have counted since, not below 0
    unusable: int = 0  # rows that could not be used when their turn came, over all workers; others stood in for them
    seconds: float = 0.0  # of training so far, evaluation included, in all sessions
    ended: bool = False  # at the last step, or out of time
    stopping: bool = field(default=False, metadata=_TRANSIENT)  # before a step: asked here; after it: on any worker, as all know

    def state_dict(self) -> dict[str, Any]:
        """All fields: those with a state dict by it, numbers as they are."""
        values = {name: unwrap(getattr(self, name)) for name in _kept()}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    def finite(self) -> bool:
        """Whether all that was learned is numbers. Of buffers, masks hold -inf, and statistics nothing like it."""
        tensors = [p for module in (self.encoder, self.objective) for p in module.parameters()]
        buffers = [b for b in self.encoder.buffers() if b.is_floating_point()]
        return all(bool(t.isfinite().all()) for t in tensors) and not any(bool((b.isnan() | b.isposinf()).any()) for b in buffers)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises `KeyError` where a field is missing."""
        for name in _kept():
            value = unwrap(getattr(self, name))
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(saved[name])
            else:
                setattr(self, name, saved[name])


def _kept() -> list[str]:
    return [one.name for one in fields(TrainState) if not one.metadata]


def unwrap(value: Any) -> Any:
    """A module without DDP's and torch.compile's wrappers, so that any number of workers can load it; others as they are."""
    while isinstance(value, nn.Module):
        inner = getattr(value, "_orig_mod", None) or (value.module if isinstance(value, DistributedDataParallel) else None)
        if inner is None:
            break
        value = inner
    return value
