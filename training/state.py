"""`TrainState`: everything that changes during training, and what a checkpoint saves.

The data cursor is `step`: the order of samples is a function of (seed, epoch), so the step determines where the stream resumes.
The state of random number generators is not saved: every step seeds them from (seed, step, rank).
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
    """`state_dict` iterates over the fields, so no separate list has to be maintained."""

    encoder: nn.Module
    objective: Objective
    teacher: Teacher
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Any = None  # of the encoder's weights: another encoder, or None
    step: int = 0  # steps done, including skipped ones; also the number of the next step, from 0
    samples: int = 0  # pairs seen, over all workers
    skipped: int = 0  # steps that did not count, because their loss or gradient was not finite
    failing: int = 0  # skipped steps minus those that have counted since, at least 0
    unusable: int = 0  # rows that could not be read and were replaced, over all workers
    seconds: float = 0.0  # seconds of training so far, including evaluation, in all sessions
    ended: bool = False  # at the last step, or out of time
    stopping: bool = field(default=False, metadata=_TRANSIENT)  # asked to stop; after a step: equal on all workers

    def state_dict(self) -> dict[str, Any]:
        """All fields that are not None: the state dicts of those that have one, and plain numbers."""
        values = {name: unwrap(getattr(self, name)) for name in _kept() if getattr(self, name) is not None}
        return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}

    @property
    def evaluated(self) -> Any:
        """The plain encoder that is evaluated: the average if there is one."""
        return unwrap(self.encoder) if self.average is None else self.average

    def finite(self) -> bool:
        """Whether everything that was learned is finite. Among buffers, only statistics are checked: masks may hold -inf."""
        tensors = [p for module in (self.encoder, self.objective) for p in module.parameters()]
        buffers = [b for b in self.encoder.buffers() if b.is_floating_point()]
        return all(bool(t.isfinite().all()) for t in tensors) and not any(bool((b.isnan() | b.isposinf()).any()) for b in buffers)

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises `KeyError` if a field is missing."""
        for name in _kept():
            value = unwrap(getattr(self, name))
            if value is None:  # no average is kept
                continue
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(saved[name])
            else:
                setattr(self, name, saved[name])


def _kept() -> list[str]:
    return [item.name for item in fields(TrainState) if not item.metadata]


def unwrap(value: Any) -> Any:
    """A module without DDP's and torch.compile's wrappers, so that any number of workers can load it; others unchanged."""
    while isinstance(value, nn.Module):
        inner = getattr(value, "_orig_mod", None) or (value.module if isinstance(value, DistributedDataParallel) else None)
        if inner is None:
            break
        value = inner
    return value
