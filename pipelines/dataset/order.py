"""The order of samples as a function of (seed, epoch), and the cursor's arithmetic.

Shards are permuted, then rows inside windows of consecutive shards, so that reading stays local however large the dataset
is; a dataset smaller than one window is permuted as a whole. Global batch g of an epoch is rows [gB, (g+1)B) of the order,
whatever the number of workers; worker r of K takes the r-th of K equal parts of it. The cursor is one number: the step.

Only the requested windows are ever computed: starting at any step reads nothing before it, and memory does not grow with the
dataset.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pipelines.dataset.prepared import Prepared
from pipelines.program.path_keys import Place
from pipelines.program.randomness import generator, uniform_of
from pipelines.program.settings import UserError


@dataclass(frozen=True)
class Order:
    """Which samples each step consumes. Small: it names a split, and every process derives the ids that it needs."""

    path: Place
    fingerprint: str
    split: str
    split_seed: int | None
    seed: int
    global_batch_size: int
    validation: float | None = None  # share of the training groups that is held out for validation
    fraction: float = 1.0  # share of the split's groups that is used; a function of the seed and the group's name

    def check(self) -> None:
        """Raises `UserError` if the split is empty, or does not fill one global batch."""
        if self.rows >= self.global_batch_size:
            return
        if self.rows == 0 and self.fraction == 1:
            raise UserError(
                f"data.split: '{self.split}' of {self.path} is empty, its pairs are all in other splits; to train on it, prepare"
                " it again with smaller shares, such as 'splits={test: 0.1}', and another output"
            )
        if self.fraction == 1:
            raise UserError(
                f"global_batch_size: {self.global_batch_size} is more than the {self.rows} samples of split '{self.split}'; "
                f"pass global_batch_size={max(1, self.rows)} or less, or prepare more data"
            )
        raise UserError(
            f"data.fraction: {self.fraction:g} leaves {self.rows} samples of split '{self.split}' with seed={self.seed}, fewer "
            f"than global_batch_size={self.global_batch_size}; pass a larger data.fraction, or a smaller global_batch_size"
        )

    @property
    def ids(self) -> np.ndarray:
        """Sample ids of the split, or of the fraction of it that is used, sorted, each once."""
        shards = range(len(_prepared(self).manifest["shards"]))
        return np.concatenate([_shard_ids(self, shard) for shard in shards])

    @property
    def rows(self) -> int:
        """Rows in an epoch: those of the split, times their weights."""
        return int(_counts(self).sum())

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches; which samples are left over differs from epoch to epoch."""
        return self.rows // self.global_batch_size

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Sample ids of a worker's part of a step's global batch, int64 [global_batch_size / world_size]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        size = self.global_batch_size // world_size
        start = index * self.global_batch_size + rank * size
        return self.take(epoch, np.arange(start, start + size))

    def spares(self, step: int, rank: int, world_size: int, row: int) -> Iterator[int]:
        """Sample ids that may replace an unusable row of a worker's batch, best first.

        They are at the same position in other batches, so no two rows of one batch get the same substitute.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        place = index * self.global_batch_size + rank * (self.global_batch_size // world_size) + row
        whole = self.steps_per_epoch * self.global_batch_size
        other_batches = range(self.global_batch_size, whole, self.global_batch_size)
        for hop in chain(other_batches, range(1, self.global_batch_size)):
            yield int(self.take(epoch, np.asarray([(place + hop) % whole]))[0])

    def take(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Sample ids at positions of an epoch's order."""
        starts = _windows(self, epoch)[1]
        windows = np.searchsorted(starts, positions, side="right") - 1
        result = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(windows):
            where = windows == window
            result[where] = _window(self, epoch, int(window))[positions[where] - starts[window]]
        return result

    def epoch_of(self, step: int) -> int:
        """The epoch a step belongs to, from 0."""
        return step // self.steps_per_epoch


@functools.lru_cache(maxsize=4)
def _prepared(order: Order) -> Prepared:
    return Prepared.open(order.path)


def _shard_ids(order: Order, shard: int) -> np.ndarray:
    prepared = _prepared(order)
    mine = np.flatnonzero(prepared.split_names(shard, order.split_seed, order.validation) == order.split)
    if order.fraction < 1:
        groups = prepared.groups(shard)
        # One number per group, whatever the fraction: a smaller fraction is a subset of a larger one.
        mine = np.asarray(
            [row for row in mine if uniform_of(f"{groups[row]}\0share", order.seed) < order.fraction], dtype=np.int64
        )
    return prepared.shard_starts()[shard] + mine


@functools.lru_cache(maxsize=8)
def _counts(order: Order) -> np.ndarray:
    """Rows of each shard that an epoch shows, int64 [shards]."""
    shards = _prepared(order).manifest["shards"]
    if order.split_seed is None and order.validation is None and order.fraction == 1:
        rows = [shard["splits"].get(order.split, 0) for shard in shards]
    else:
        rows = [len(_shard_ids(order, shard)) for shard in range(len(shards))]
    return np.asarray([round(n * shard.get("weight", 1)) for n, shard in zip(rows, shards, strict=True)], dtype=np.int64)


@functools.lru_cache(maxsize=8)
def _windows(order: Order, epoch: int) -> tuple[list[list[int]], np.ndarray]:
    """The shards of each window, and the position in the epoch's order where each window starts."""
    counts = _counts(order)
    windows: list[list[int]] = [[]]
    rows = [0]
    for shard in generator("shards", order.seed, epoch).permutation(len(counts)).tolist():
        if rows[-1] >= _prepared(order).window:
            windows.append([])
            rows.append(0)
        windows[-1].append(shard)
        rows[-1] += int(counts[shard])
    return windows, np.cumsum([0, *rows[:-1]])


@functools.lru_cache(maxsize=3)
def _window(order: Order, epoch: int, window: int) -> np.ndarray:
    """The permuted rows of a window."""
    shards = _windows(order, epoch)[0][window]
    # Sorted first, so that the division of a small dataset into shards has no influence.
    rows = np.sort(np.concatenate([_weighted(order, epoch, shard) for shard in shards]))
    return generator("rows", order.seed, epoch, window).permutation(rows)


def _weighted(order: Order, epoch: int, shard: int) -> np.ndarray:
    """A shard's rows in this epoch: all of them once for each whole unit of weight, and a random share for its fraction."""
    ids = _shard_ids(order, shard)
    wanted = int(_counts(order)[shard])
    if wanted == len(ids):
        return ids
    whole, rest = divmod(wanted, max(1, len(ids)))
    some = generator("weight", order.seed, epoch, shard).permutation(ids)[:rest]
    return np.concatenate([np.tile(ids, whole), some])
