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


def nearest(rows: Tensor, queue: Tensor, groups: Tensor | None = None, queue_groups: Tensor | None = None) -> Tensor:
    """int64 [n]: the entry of the queue with the largest product, of another group where groups are given; -1 for none.

    Args:
        rows, queue: unit rows [n, F] and [Q, F].
        groups, queue_groups: int64 [n] and [Q].
    """
    if not len(queue):
        return rows.new_full((len(rows),), -1, dtype=torch.int64)
    found, entries = [], queue.to(rows.dtype)
    for start in range(0, len(rows), 1024):
        products = rows[start : start + 1024] @ entries.T
        if groups is not None and queue_groups is not None:
            products = products.masked_fill(groups[start : start + 1024, None] == queue_groups, -torch.inf)
        best, place = products.max(1)
        found.append(torch.where(best.isinf(), -1, place))
    return torch.cat(found)
