"""Moving averages of a network's weights: what teachers are, and what a run may evaluate and export in place of its weights."""

import copy
from typing import Any

import torch
from pydantic import Field
from torch import nn

from pipelines.program.settings_base import Settings


class AverageSettings(Settings):
    """A moving average of the encoder's weights, which is evaluated, exported and opened in place of the last weights."""

    half_life: int = Field(ge=1, description="samples after which a weight counts half as much in the average")

    def momentum(self, samples: int) -> float:
        """Weight of the average in an update after a step of so many samples, over all workers."""
        return 0.5 ** (samples / self.half_life)


def follower(network: nn.Module) -> Any:
    """A copy that `follow` moves. Parameters that never change are shared with the network, not copied."""
    shared = {id(p): p for p in network.parameters() if not p.requires_grad}
    return copy.deepcopy(network, shared).requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """theta' <- m theta' + (1 - m) theta over parameters (Tarvainen and Valpola, arXiv 1703.01780); buffers are copied.

    It is equal on every worker without communication, since the network's parameters are equal everywhere.
    """
    for own, new in zip(average.parameters(), network.parameters(), strict=True):
        if own is not new:
            own.lerp_(new, 1 - momentum)
    for copied, buffer in zip(average.buffers(), network.buffers(), strict=True):
        copied.copy_(buffer)
