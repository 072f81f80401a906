"""Queues of past rows in buffers of fixed size, the same on every worker: the newest push out the oldest."""

import torch
from torch import Tensor


def push(pushed: Tensor, new: int, size: int) -> tuple[slice, Tensor]:
    """Which of `new` rows stay, and where in a queue of `size` they go, after `pushed` rows in all; counts them.

    A batch longer than the queue leaves its end there.
    """
    kept = slice(max(0, new - size), new)
    places = (pushed + torch.arange(new, device=pushed.device)[kept]) % max(size, 1)
    pushed += new
    return kept, places
