"""Prepared data, needs and a cursor: what each worker iterates.

One item of the Ray Data stream is one step. A task looks up which samples its worker consumes at that step, reads, decodes,
augments and tokenizes them, and hands over the finished batch: uint8 pictures and int64 tokens, normalised on the device.
Epochs follow one another without a stall; a run that starts at step t asks for step t, and nothing before it is read. No
step's content depends on the number of workers or on scheduling.

Features of locked towers are not streamed: every worker maps the bank into memory and looks its rows up by id. Where both
towers are locked there is nothing to decode, and no stream at all.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from pipelines.batch import Batch
from pipelines.cluster import configure_data
from pipelines.images import Augment, decode, eval_view, train_view
from pipelines.order import Order
from pipelines.prepared import Prepared
from pipelines.randomness import generator
from pipelines.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch

_SEGMENT = 2000  # steps of one Ray Data execution: planning stays small however long the run is
_PREFETCH = 3  # batches that wait on the worker


@dataclass(frozen=True)
class Worker:
    """Whose part of a global batch to make, and where to put it."""

    rank: int
    world_size: int
    device: "torch.device"
    data_cpus: float  # CPUs that this worker's tasks may use


@dataclass(frozen=True)
class Stream:
    """How samples of a prepared dataset become the columns of a batch. Picklable; the same on every worker."""

    prepared: Prepared
    columns: frozenset[str]
    seed: int = 0
    image_size: int = 0
    augment: Augment | None = None  # None: the centre view and the first caption
    tokenizer: TextTokenizer | None = None
    image_bank: Path | None = None
    text_bank: Path | None = None

    @property
    def uses_tasks(self) -> bool:
        """Whether anything has to be computed in the cluster."""
        return bool(self.columns & {"image", "text", "text_mask"})

    def training(self, order: Order, first: int, last: int, worker: Worker) -> Iterator[Batch]:
        """A worker's batches of steps [first, last)."""

        def pick(step: int) -> tuple[np.ndarray, int]:
            return order.batch(step, worker.rank, worker.world_size), order.epoch_of(step)

        return self._batches(pick, first, last, order.global_batch_size // worker.world_size, worker)

    def evaluation(self, sample_ids: np.ndarray, batch_size: int, worker: Worker) -> Iterator[Batch]:
        """The given samples in the given order, once; the last batch may be shorter."""

        def pick(index: int) -> tuple[np.ndarray, int]:
            return sample_ids[index * batch_size : (index + 1) * batch_size], 0

        return self._batches(pick, 0, -(-len(sample_ids) // batch_size), batch_size, worker)

    def compute(self, sample_ids: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """The columns that tasks compute, for these samples in this epoch."""
        wanted = ["image"] if "image" in self.columns else []
        wanted += ["captions"] if "text" in self.columns else []
        table = self.prepared.rows(sample_ids, tuple(wanted))
        result: dict[str, np.ndarray] = {"sample_id": sample_ids}
        if "image" in self.columns:
            pictures = zip((decode(data.as_py()) for data in table["image"]), sample_ids, strict=True)
            result["image"] = np.stack([self._view(picture, epoch, int(i)) for picture, i in pictures])
        if "text" in self.columns:
            assert self.tokenizer is not None
            captions = zip(table["captions"].to_pylist(), sample_ids, strict=True)
            result["text"], result["text_mask"] = self.tokenizer([c[self._choice(len(c), epoch, int(i))] for c, i in captions])
        return result

    def look_up(self, sample_ids: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """The columns that a worker looks up: ids, and rows of banks."""
        result: dict[str, np.ndarray] = {}
        if "image_features" in self.columns:
            result["image_features"] = bank_rows(self.image_bank)[sample_ids].astype(np.float32)
        if "sample_id" in self.columns:
            result["sample_id"] = sample_ids
        if self.columns & {"text_features", "text_id"}:
            image_ids, text_ids = _id_columns(str(self.prepared.path), self.prepared.fingerprint)
            texts = [text_ids[i][self._choice(len(text_ids[i]), epoch, int(i))] for i in sample_ids]
            result |= {"image_id": image_ids[sample_ids], "text_id": np.asarray(texts)}
        if "text_features" in self.columns:
            result["text_features"] = bank_rows(self.text_bank)[result["text_id"]].astype(np.float32)
        return {name: column for name, column in result.items() if name in self.columns}

    def _view(self, picture: Any, epoch: int, sample_id: int) -> np.ndarray:
        if self.augment is None:
            return eval_view(picture, self.image_size)
        return train_view(picture, self.image_size, self.augment, generator("view", self.seed, epoch, sample_id, 0))

    def _choice(self, count: int, epoch: int, sample_id: int) -> int:
        """Which of a sample's captions this epoch shows."""
        if count == 1 or self.augment is None:
            return 0
        return int(generator("caption", self.seed, epoch, sample_id).integers(count))

    def _batches(
        self, pick: Callable[[int], tuple[np.ndarray, int]], first: int, last: int, size: int, worker: Worker
    ) -> Iterator[Batch]:
        """Batches of items [first, last); `pick` gives an item's sample ids and epoch."""
        import torch

        if not self.uses_tasks:
            for item in range(first, last):
                found = self.look_up(*pick(item))
                yield cast(Batch, {name: torch.from_numpy(c).to(worker.device) for name, c in found.items()})
            return
        for start in range(first, last, _SEGMENT):
            end = min(start + _SEGMENT, last)
            for item, computed in zip(range(start, end), self._computed(pick, start, end, size, worker), strict=True):
                ids, epoch = pick(item)
                if not np.array_equal(computed.pop("sample_id").cpu().numpy(), ids):
                    raise RuntimeError(f"stream: the batch of item {item} holds other samples than the order says")
                rest = {name: torch.from_numpy(c).to(worker.device) for name, c in self.look_up(ids, epoch).items()}
                yield cast(Batch, computed | rest)

    def _computed(
        self, pick: Callable[[int], tuple[np.ndarray, int]], start: int, end: int, size: int, worker: Worker
    ) -> Iterator[dict[str, Any]]:
        """Ray Data's part of the batches of items [start, end)."""
        import ray.data

        configure_data()
        context = ray.data.DataContext.get_current()
        # Every worker runs an execution of its own; each keeps to its share of the CPUs that are left for data.
        context.execution_options.resource_limits = ray.data.ExecutionResources(cpu=max(1.0, worker.data_cpus))

        def make(items: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self.compute(*pick(start + int(items["id"][0])))

        dataset = ray.data.range(end - start, override_num_blocks=end - start).map_batches(make, batch_size=1)
        yield from dataset.iter_torch_batches(batch_size=size, prefetch_batches=_PREFETCH, device=worker.device)


@functools.lru_cache(maxsize=2)
def _id_columns(path: str, fingerprint: str) -> tuple[np.ndarray, list[list[int]]]:
    table = Prepared.open(path).table("image_id", "text_id")
    return table["image_id"].to_numpy(), table["text_id"].to_pylist()


@functools.lru_cache(maxsize=8)
def bank_rows(path: Path | None) -> np.ndarray:
    """A bank's rows, float16 [rows, F], mapped into memory."""
    assert path is not None
    return np.load(path / "rows.npy", mmap_mode="r")
