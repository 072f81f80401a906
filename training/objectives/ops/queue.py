"""Queues of past rows in buffers of fixed size, the same on every worker: the newest replace the oldest."""

import torch
from torch import Tensor

from training.objectives.ops.blocks import same

_ROUNDING = 1e-5  # of products of unit rows in float32, with what training adds to it


def push(pushed: Tensor, new: int, size: int) -> tuple[slice, Tensor]:
    """Which of `new` rows are kept, and their places in a queue of `size`, after `pushed` earlier rows; adds them to `pushed`.

    Of a batch longer than the queue the last rows are kept.
    """
    kept = slice(max(0, new - size), new)
    places = (pushed + torch.arange(new, device=pushed.device)[kept]) % max(size, 1)
    pushed += new
    return kept, places


def nearest(rows: Tensor, queue: Tensor, ids: Tensor, queue_ids: Tensor, order: Tensor | None = None) -> Tensor:
    """int64 [n]: the entry of the queue with the largest product that is not the row's own, -1 if there is none.

    Of entries whose products are equal to rounding, which differs with the number of workers, it is the first in `order`.

    Args:
        rows, queue: unit rows [n, F] and [Q, F].
        ids, queue_ids: int64 [n, k] and [Q, k]; an entry that agrees with a row in any of the k is the row's own.
        order: int64 [Q, m], compared by its columns; `queue_ids` by default.
    """
    if not len(queue):
        return rows.new_full((len(rows),), -1, dtype=torch.int64)
    places, entries, order = [], queue.to(rows.dtype), queue_ids if order is None else order
    for start in range(0, len(rows), 1024):
        block = slice(start, start + 1024)
        products = (rows[block] @ entries.T).masked_fill_(same(ids[block], queue_ids), -torch.inf)
        best = products.amax(1, keepdim=True)
        tied = products >= best - _ROUNDING
        for column in order.T:
            ranks = column.expand_as(tied).masked_fill(~tied, torch.iinfo(torch.int64).max)
            tied &= ranks == ranks.amin(1, keepdim=True)
        places.append(torch.where(best[:, 0].isinf(), -1, tied.int().argmax(1)))
    return torch.cat(places)


def at(rows: Tensor, places: Tensor) -> Tensor:
    """Rows at places; arbitrary ones where the place is -1, zeros if there are no rows."""
    return rows[places.clamp(min=0)] if len(rows) else rows.new_zeros(len(places), *rows.shape[1:])
