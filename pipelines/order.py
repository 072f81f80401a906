"""The order of samples as a function of (seed, epoch), and the cursor's arithmetic.

Shards are permuted, then rows inside windows of consecutive shards, so that reading stays local however large the dataset
is; a dataset smaller than one window is permuted as a whole. Global batch g of an epoch is rows [gB, (g+1)B) of the order,
whatever the number of workers; worker r of K takes the r-th of K equal parts of it. The cursor is one number: the step.
"""

import functools
from dataclasses import dataclass

import numpy as np

from pipelines.prepared import Prepared
from pipelines.randomness import generator
from pipelines.settings import UserError

WINDOW = 65536  # rows that are permuted among one another


def epoch_order(ids: np.ndarray, starts: np.ndarray, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """A permutation of sorted sample ids.

    Args:
        ids: int64 [n], sorted.
        starts: int64 [shards + 1], the first sample id of each shard, and N.
        seed, epoch: what the order is a function of.
        window: consecutive shards are joined until they hold this many rows, and then permuted together.
    """
    shards = np.split(ids, np.searchsorted(ids, starts[1:-1]))
    windows: list[list[np.ndarray]] = [[]]
    for index in generator("shards", seed, epoch).permutation(len(shards)):
        if sum(map(len, windows[-1])) >= window:
            windows.append([])
        windows[-1].append(shards[index])
    parts = [generator("rows", seed, epoch, i).permutation(np.concatenate(w)) for i, w in enumerate(windows)]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Order:
    """Which samples each step consumes. Small: it names a split, and every process finds its ids once."""

    path: str
    fingerprint: str
    split: str
    split_seed: int | None
    seed: int
    global_batch_size: int
    validation: float | None = None  # share of the training groups that is held out for choosing

    def check(self) -> None:
        """Raises `UserError` where the split does not fill one global batch."""
        samples = len(self.ids)
        if samples < self.global_batch_size:
            raise UserError(
                f"global_batch_size: {self.global_batch_size} is more than the {samples} samples of split '{self.split}'; "
                f"pass global_batch_size={max(1, samples)} or less, or prepare more data"
            )

    @property
    def ids(self) -> np.ndarray:
        """Sample ids of the split, sorted."""
        return _ids(self.path, self.fingerprint, self.split, self.split_seed, self.validation)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches; the samples left over take their turn in another epoch's order."""
        return len(self.ids) // self.global_batch_size

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Sample ids of a worker's part of a step's global batch, int64 [global_batch_size / world_size]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        size = self.global_batch_size // world_size
        start = index * self.global_batch_size + rank * size
        return _epoch(self, epoch)[start : start + size]

    def epoch_of(self, step: int) -> int:
        """The epoch a step belongs to, from 0."""
        return step // self.steps_per_epoch


@functools.lru_cache(maxsize=4)
def _ids(path: str, fingerprint: str, split: str, split_seed: int | None, validation: float | None) -> np.ndarray:
    return Prepared.open(path).split_ids(split_seed, validation)[split]


@functools.lru_cache(maxsize=4)
def _epoch(order: Order, epoch: int) -> np.ndarray:
    return epoch_order(order.ids, Prepared.open(order.path).shard_starts(), order.seed, epoch)
