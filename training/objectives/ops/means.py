"""Means over what workers have unequally many of."""

from torch import Tensor

from training.distributed import all_gather, world_size


def mean_over_workers(sums: Tensor, counts: Tensor) -> Tensor:
    """Each worker's share of a mean: averaged over workers it is all sums by all counts; 0 where nothing was counted.

    Args:
        sums, counts: [n] of this worker.
    """
    total = all_gather(counts.detach().sum()[None]).sum()
    return sums.sum() * world_size() / total.clamp(min=1)
