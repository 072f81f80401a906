"""Means over values of which workers have different numbers."""

from torch import Tensor

from training.distributed import all_gather, world_size


def mean_over_workers(sums: Tensor, counts: Tensor) -> Tensor:
    """Each worker's share of a mean: its average over workers is the total sum over the total count; 0 if nothing was counted.

    Args:
        sums, counts: [n] of this worker.
    """
    total = all_gather(counts.detach().sum()[None]).sum()
    return sums.sum() * world_size() / total.clamp(min=1)
