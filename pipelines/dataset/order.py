"""The order of samples as a function of (seed, epoch), and the samples of each step and worker.

Shards are permuted, then rows inside windows of consecutive shards, so that reading stays local however large the dataset
is; a dataset smaller than one window is permuted as a whole. Global batch g of an epoch is rows [gB, (g+1)B) of the order,
whatever the number of workers; worker r of K takes the r-th of K shares of it, equal ones if K divides B (shares.py). The only
state is one number: the step.

Only the requested windows are computed: starting at any step reads nothing before it, and memory does not grow with the dataset.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any

import numpy as np

from pipelines.dataset.prepared import Prepared, once_per_process
from pipelines.dataset.shares import shares
from pipelines.program.errors import UserError
from pipelines.program.randomness import generator, uniform_of


@dataclass(frozen=True)
class Order:
    """Which samples each step consumes. It is pickled as its fields: every process computes ids as it needs them, and caches a
    few windows of them for its next tasks.
    """

    prepared: Prepared
    split: str
    split_seed: int | None
    seed: int
    global_batch_size: int
    validation: float | None = None  # share of the training groups that is held out for validation
    fraction: float = 1.0  # share of the split's groups that is used; a function of the seed and the group's name

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = Order, *(getattr(self, field.name) for field in fields(self))
        # Counted once, by the driver: counting a split that is drawn again requires reading the groups of all rows.
        return once_per_process, arguments, {name: self.__dict__[name] for name in ("_counts",) if name in self.__dict__}

    def check(self) -> None:
        """Raises `UserError` if the split is empty, or does not fill one global batch."""
        if self.rows >= self.global_batch_size:
            return
        if self.rows == 0 and self.fraction == 1:
            raise UserError(
                "data.split",
                f"'{self.split}' of {self.prepared.path} is empty, its pairs are all in other splits",
                "to train on it, prepare again with smaller shares, such as 'splits={test: 0.1}', and another output",
            )
        if self.fraction == 1:
            raise UserError(
                "global_batch_size",
                f"{self.global_batch_size} is more than the {self.rows} samples of split '{self.split}'",
                f"pass global_batch_size={max(1, self.rows)} or less, or prepare more data",
            )
        raise UserError(
            "data.fraction",
            f"{self.fraction:g} leaves {self.rows} samples of split '{self.split}' with seed={self.seed}, fewer than "
            f"global_batch_size={self.global_batch_size}",
            "pass a larger data.fraction=, or a smaller global_batch_size=",
        )

    @property
    def ids(self) -> np.ndarray:
        """Sample ids of the split, or of the fraction of it that is used, sorted, each once."""
        shards = range(len(self.prepared.manifest["shards"]))
        return np.concatenate([self._shard_ids(shard) for shard in shards])

    @property
    def rows(self) -> int:
        """Rows in an epoch: those of the split, times their weights."""
        return int(self._counts.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole global batches; which samples are left over differs from epoch to epoch."""
        return self.rows // self.global_batch_size

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Sample ids of a worker's share of a step's global batch, int64."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return self.take(epoch, index * self.global_batch_size + np.asarray(self.share(rank, world_size)))

    def share(self, rank: int, world_size: int) -> range:
        """The rows of every global batch that a worker takes."""
        return shares(self.global_batch_size, world_size)[rank]

    def spares(self, step: int, rank: int, world_size: int, row: int) -> Iterator[int]:
        """Sample ids that may replace an unusable row of a worker's batch, best first.

        They are at the same position in other batches, so no two rows of one batch get the same substitute.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        place = index * self.global_batch_size + self.share(rank, world_size)[row]
        whole = self.steps_per_epoch * self.global_batch_size
        other_batches = range(self.global_batch_size, whole, self.global_batch_size)
        for hop in chain(other_batches, range(1, self.global_batch_size)):
            yield int(self.take(epoch, np.asarray([(place + hop) % whole]))[0])

    def take(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Sample ids at positions of an epoch's order."""
        starts = self._windows(epoch)[1]
        windows = np.searchsorted(starts, positions, side="right") - 1
        result = np.empty(len(positions), dtype=np.int64)
        for window in np.unique(windows):
            where = windows == window
            result[where] = self._window(epoch, int(window))[positions[where] - starts[window]]
        return result

    def epoch_of(self, step: int) -> int:
        """The epoch a step belongs to, from 0."""
        return step // self.steps_per_epoch

    def _shard_ids(self, shard: int) -> np.ndarray:
        prepared = self.prepared
        mine = np.flatnonzero(prepared.split_names(shard, self.split_seed, self.validation) == self.split)
        if self.fraction < 1:
            groups = prepared.groups(shard)
            # One number per group, whatever the fraction: a smaller fraction is a subset of a larger one.
            kept = [row for row in mine if uniform_of(f"{groups[row]}\0share", self.seed) < self.fraction]
            mine = np.asarray(kept, dtype=np.int64)
        return prepared.shard_starts[shard] + mine

    @cached_property
    def _counts(self) -> np.ndarray:
        """Rows of each shard in an epoch, int64 [shards]."""
        shards = self.prepared.manifest["shards"]
        if self.split_seed is None and self.validation is None and self.fraction == 1:
            rows = [shard["splits"].get(self.split, 0) for shard in shards]
        else:
            rows = [len(self._shard_ids(shard)) for shard in range(len(shards))]
        return np.asarray([round(n * shard.get("weight", 1)) for n, shard in zip(rows, shards, strict=True)], dtype=np.int64)

    @cached_property
    def _windows(self) -> Callable[[int], tuple[list[list[int]], np.ndarray]]:
        """A function from an epoch to the shards of each window, and the position in the order where each window starts."""
        return lru_cache(maxsize=8)(self._cut)

    @cached_property
    def _window(self) -> Callable[[int, int], np.ndarray]:
        """A function from an epoch and a window to the window's permuted rows."""
        return lru_cache(maxsize=3)(self._permuted)

    def _cut(self, epoch: int) -> tuple[list[list[int]], np.ndarray]:
        windows: list[list[int]] = [[]]
        rows = [0]
        for shard in generator("shards", self.seed, epoch).permutation(len(self._counts)).tolist():
            if rows[-1] >= self.prepared.window:
                windows.append([])
                rows.append(0)
            windows[-1].append(shard)
            rows[-1] += int(self._counts[shard])
        return windows, np.cumsum([0, *rows[:-1]])

    def _permuted(self, epoch: int, window: int) -> np.ndarray:
        shards = self._windows(epoch)[0][window]
        # Sorted first, so that the division of a small dataset into shards has no influence.
        rows = np.sort(np.concatenate([self._weighted(epoch, shard) for shard in shards]))
        return generator("rows", self.seed, epoch, window).permutation(rows)

    def _weighted(self, epoch: int, shard: int) -> np.ndarray:
        """A shard's rows in this epoch: a weight of 2.3 gives all of them twice, and a random 0.3 of them once more."""
        ids = self._shard_ids(shard)
        count = int(self._counts[shard])
        if count == len(ids):
            return ids
        repeats, rest = divmod(count, max(1, len(ids)))
        extra = generator("weight", self.seed, epoch, shard).permutation(ids)[:rest]
        return np.concatenate([np.tile(ids, repeats), extra])
