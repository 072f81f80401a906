"""The batches that each worker iterates: from a prepared dataset, the requested columns and a first step.

One item of the Ray Data stream is one step. A task looks up which samples its worker consumes at that step, reads, decodes,
augments and tokenizes them, and returns the finished batch: uint8 images, which are normalised on the device, and int64 tokens.
Epochs follow one another without a stall; a run that starts at step t requests step t, and nothing before it is read. No
step's content depends on the number of workers or on scheduling.

An image that was only indexed may turn out to be unusable here. A substitute, chosen by the sample order, takes its row, so the
batch keeps its size; the failed row is reported with its reason, to be counted and listed.

Features of locked towers are not streamed: every worker maps them into memory and looks up rows by id. If both towers are
locked there is nothing to decode, and no stream; otherwise the ids of images and captions are streamed, so that no worker holds
those of all samples.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset.batch import Batch
from pipelines.dataset.caption_augmentation import one_sentence, other_words
from pipelines.dataset.images import REASONS, BadImage
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.row_ids import COLUMNS
from pipelines.dataset.sample_images import deadly_image, opened, unusable
from pipelines.dataset.stream_tasks import in_tasks
from pipelines.dataset.strong_views import StrongViews
from pipelines.dataset.tokenizer import TextTokenizer
from pipelines.dataset.views import UNCHANGED, Augment, apply, draw_views, eval_view
from pipelines.features.frozen_encoders import FrozenFeatures
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.program.randomness import generator

if TYPE_CHECKING:
    import torch

_SEGMENT = 2000  # steps of one Ray Data execution, so that planning stays small in a long run
_SPARES = 32  # substitutes that are tried
_ROW_COLUMNS = ("sample_id", "failed", "reason")  # columns about rows, in addition to those of a batch
_READ: tuple[str, ...] = ("text_id", "more_id", "numbers")  # what a worker looks up itself where no task has read it
_REASONS = ("", "missing_image", *REASONS)  # in a batch, the reason of a failed row is an index into this


@dataclass(frozen=True)
class Unusable:
    """A row of the dataset that had to be replaced in a batch."""

    sample_id: int
    reason: str


@dataclass(frozen=True)
class Item:
    """The samples of one batch, and a function from a row to its possible substitutes (None when scoring).

    `strong`: whether the batch has the strong views that a run may begin without.
    """

    sample_ids: np.ndarray
    epoch: int
    spares: Callable[[int], Iterator[int]] | None = None
    strong: bool = True


@dataclass(frozen=True)
class Worker:
    """Which worker's part of a global batch to compute, and its device."""

    rank: int
    world_size: int
    device: "torch.device"
    data_cpus: float  # CPUs that this worker's tasks may use


@dataclass(frozen=True)
class Stream:
    """Turns samples of a prepared dataset into the columns of a batch. Picklable; the same on every worker."""

    prepared: Prepared
    columns: frozenset[str]
    seed: int = 0
    image_size: int = 0
    augment: Augment | None = None  # None: the centre crop and the first caption
    tokenizer: TextTokenizer | None = None
    image_features: Path | str | None = None  # stored, for the column of that name
    text_features: Path | str | None = None  # the same
    strong: StrongViews | None = None  # of the columns strong, whole
    strong_from: int = 0  # the first step whose batch has them
    frozen_features: FrozenFeatures | None = None  # of the columns neighbour_ids, frozen_image_features, frozen_text_features
    frozen_tokenizer: TextTokenizer | None = None  # of the columns frozen_text, frozen_mask
    repeated: int | None = None  # views of a sample in all, the same for every seed; None: others in each epoch
    sentences: float = 0.0  # chance that a caption is cut to one of its sentences
    captions: int = 1  # of a sample; all but the first are in the columns more_*
    texts: tuple[str, ...] = ()  # labels, of the columns label_*
    numbers: tuple[str, ...] = ()  # labels, of the column of that name

    @property
    def uses_tasks(self) -> bool:
        """Whether any column has to be computed in the cluster."""
        return bool(self.columns & {"image", "text", "text_mask"})

    def training(
        self, order: Order, first: int, last: int, worker: Worker, failed: Callable[[Unusable], None] | None = None
    ) -> Iterator[Batch]:
        """A worker's batches of steps [first, last). `failed` is called with every row that had to be replaced."""
        rank, world_size = worker.rank, worker.world_size  # `worker` itself would import torch in every task

        def pick(step: int) -> Item:
            def spares(row: int) -> Iterator[int]:
                return order.spares(step, rank, world_size, row)

            return Item(order.batch(step, rank, world_size), order.epoch_of(step), spares, step >= self.strong_from)

        return self._batches(pick, first, last, len(order.share(rank, world_size)), worker, failed)

    def evaluation(self, sample_ids: np.ndarray, batch_size: int, worker: Worker) -> Iterator[Batch]:
        """The given samples in the given order, once; the last batch may be shorter. Raises `UserError` for unusable images."""

        def pick(index: int) -> Item:
            return Item(sample_ids[index * batch_size : (index + 1) * batch_size], 0)

        return self._batches(pick, 0, -(-len(sample_ids) // batch_size), batch_size, worker)

    def compute(self, item: Item) -> dict[str, np.ndarray]:
        """The columns that tasks compute. Raises `UserError` for an unusable image without a usable substitute."""
        result = self._attempt(item)
        self._check(item, *(result[name] for name in _ROW_COLUMNS))
        return result

    def here(self, item: Item) -> Batch:
        """One batch, computed in this process. Raises `UserError` as `compute` does."""
        import torch

        computed = self.compute(item) if self.uses_tasks else {"sample_id": item.sample_ids}
        rows = self.look_up(computed["sample_id"], item.epoch, computed=computed)
        batch = rows | {name: column for name, column in computed.items() if name in self.columns}
        return cast(Batch, {name: torch.from_numpy(np.require(column, requirements="W")) for name, column in batch.items()})

    def _attempt(self, item: Item) -> dict[str, np.ndarray]:
        """The columns, and for each row: its sample_id, the id that failed there (or -1), and the reason.

        If the row has no substitute, the two ids are equal.
        """
        ids = item.sample_ids.copy()
        failed, reasons = np.full(len(ids), -1), np.zeros(len(ids), dtype=np.int64)
        result: dict[str, np.ndarray] = {"sample_id": ids, "failed": failed, "reason": reasons}
        if "image" in self.columns:
            shape, number = (3, self.image_size, self.image_size), 1 + (self._strong_count if item.strong else 0)
            views = np.zeros((len(ids), number, *shape), dtype=np.uint8)
            codes = np.zeros((len(ids), number, len(UNCHANGED)), dtype=np.float32)
            for row, data in enumerate(self.prepared.images(ids)):
                try:
                    self._write_views(views[row], codes[row], data, item.epoch, int(ids[row]))
                except BadImage as bad:
                    failed[row], reasons[row] = ids[row], _REASONS.index(bad.reason)
                    ids[row] = self._stand_in(views[row], codes[row], item, row)
            result["image"] = views[:, 0]
            if self.strong is not None and item.strong:
                result["strong"] = views[:, 1 : 1 + self.strong.count]
                if self.strong.whole is not None:
                    result["whole"] = views[:, -1]
            if "codes" in self.columns:
                result["codes"] = codes
        captions = self._captions(ids, item.epoch)
        if self._wants_ids:
            result |= {name: captions[name] for name in COLUMNS}
            if self.captions > 1:
                result["more_id"] = captions["more_id"]
        if "numbers" in self.columns:
            result["numbers"] = self._numbers(ids)
        if "text" in self.columns:
            assert self.tokenizer is not None
            texts = captions["captions"]
            result["text"], result["text_mask"] = self.tokenizer(texts)
            if "more_text" in self.columns:
                result |= self._tokens("more", captions["more"])
            if "label_text" in self.columns:
                labels = self._label_texts(ids)
                result["label_there"] = np.asarray([[text is not None for text in row] for row in labels])
                filled = [[own if text is None else text for text in row] for own, row in zip(texts, labels, strict=True)]
                result |= self._tokens("label", filled)
            if "masked_labels" in self.columns:
                randoms = [generator("mask", self.seed, item.epoch, int(i)) for i in ids]
                hidden = "masked_text" if "masked_text" in self.columns else "text"
                result[hidden], result["masked_labels"] = self.tokenizer.mask(result["text"], randoms)
            if "other_text" in self.columns:
                others = [
                    other_words(t, generator("eda", self.seed, item.epoch, int(i))) for t, i in zip(texts, ids, strict=True)
                ]
                result["other_text"], result["other_mask"] = self.tokenizer(others)
            if self.frozen_tokenizer is not None:
                result["frozen_text"], result["frozen_mask"] = self.frozen_tokenizer(texts)
        return result

    def _tokens(self, kind: str, texts: list[list[str]]) -> dict[str, np.ndarray]:
        """The columns KIND_text and KIND_mask, int64 [b, K, L], of K texts of each row."""
        assert self.tokenizer is not None
        flat = self.tokenizer([text for row in texts for text in row])
        return {
            f"{kind}_{name}": part.reshape(len(texts), -1, part.shape[1])
            for name, part in zip(("text", "mask"), flat, strict=True)
        }

    def _captions(self, sample_ids: np.ndarray, epoch: int) -> dict[str, Any]:
        """The samples' captions in this epoch, and the ids of images and of those captions; only columns that are needed.

        Other captions of the samples are in `more` and `more_id`.
        """
        lists = [*(["captions"] if "text" in self.columns else []), *(["text_id"] if self._wants_ids else [])]
        if not lists:
            return {}
        rows = self.prepared.rows(sample_ids, (*lists, *(["image_id"] if self._wants_ids else [])))
        counts = pc.list_value_length(rows[lists[0]]).to_numpy().astype(np.int64)
        places = (np.cumsum(counts) - counts)[:, None] + self._choices(counts, sample_ids, epoch)  # [b, captions]
        result: dict[str, Any] = {}
        if "captions" in lists:
            texts = pc.list_flatten(rows["captions"]).take(pa.array(places.ravel())).to_pylist()
            if self.sentences:
                keys = [(self.seed, epoch, int(i), place) for i in sample_ids for place in range(self.captions)]
                texts = [one_sentence(t, self.sentences, generator("sentence", *k)) for t, k in zip(texts, keys, strict=True)]
            chosen = [texts[start : start + self.captions] for start in range(0, len(texts), self.captions)]
            result |= {"captions": [row[0] for row in chosen], "more": [row[1:] for row in chosen]}
        if "text_id" in lists:
            ids = pc.list_flatten(rows["text_id"]).to_numpy()[places]
            result |= {
                "text_id": ids[:, 0].copy(),
                "more_id": ids[:, 1:].copy(),
                "image_id": np.array(rows["image_id"].to_numpy()),
            }
        return result

    def _label_texts(self, sample_ids: np.ndarray) -> list[tuple[str | None, ...]]:
        """The samples' values of `texts`."""
        table = self.prepared.rows(sample_ids, tuple(f"label_{name}" for name in self.texts))
        return [*zip(*(column.to_pylist() for column in table.columns), strict=True)]

    def _numbers(self, sample_ids: np.ndarray) -> np.ndarray:
        """The samples' values of `numbers`, float32 [b, K]."""
        table = self.prepared.rows(sample_ids, tuple(f"label_{name}" for name in self.numbers))
        return np.stack([np.asarray(column.to_pylist(), dtype=np.float32) for column in table.columns], axis=1)

    def _stand_in(self, views: np.ndarray, codes: np.ndarray, item: Item, row: int) -> int:
        """Write the views of the first usable substitute, and return its id; the sample's own id if there is none."""
        for spare in islice(item.spares(row), _SPARES) if item.spares is not None else ():
            (data,) = self.prepared.images(np.asarray([spare]))
            try:
                self._write_views(views, codes, data, item.epoch, spare)
            except BadImage:
                continue
            return spare
        return int(item.sample_ids[row])

    def _check(self, item: Item, ids: np.ndarray, failed: np.ndarray, reasons: np.ndarray) -> None:
        """Raises `UserError` if a row failed and has no substitute."""
        for row in np.flatnonzero(failed == ids):
            if item.spares is None:
                raise unusable(self.prepared, int(ids[row]), _REASONS[reasons[row]])
            raise UserError(
                "data.path",
                f"{self.prepared.name_of_image(int(ids[row]))} cannot be used ({_REASONS[reasons[row]]}), and neither can "
                f"{_SPARES} possible substitutes",
                "check where the images are now, and prepare again",
            )

    def look_up(
        self, sample_ids: np.ndarray, epoch: int, device: str = "cpu", computed: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The columns that a worker looks up: rows of stored features, ids and numbers.

        Args:
            device: where neighbours are searched.
            computed: what tasks have read of the samples, if they have; the result has no ids and numbers then.
        """
        result: dict[str, np.ndarray] = {}
        text_ids, more_ids = (None if computed is None else computed.get(name) for name in ("text_id", "more_id"))
        if "numbers" in self.columns and (computed is None or "numbers" not in computed):
            result["numbers"] = self._numbers(sample_ids)
        if self.frozen_features is not None and "neighbour_ids" in self.columns:
            result |= self.frozen_features.columns(sample_ids, epoch, device)
        if "image_features" in self.columns:
            assert self.image_features is not None
            result["image_features"] = self.prepared.features(self.image_features)[sample_ids].astype(np.float32)
        if "sample_id" in self.columns:
            result["sample_id"] = sample_ids
        if "draw" in self.columns:
            numbers = [generator("draw", self.seed, epoch, int(i)).integers(2**63) for i in sample_ids]
            result["draw"] = np.asarray(numbers, dtype=np.int64)
        if self._wants_ids and text_ids is None:
            row_ids = self.prepared.row_ids
            chosen = self._choices(row_ids.counts(sample_ids), sample_ids, epoch)
            text_ids, *others = (row_ids.text(sample_ids, which) for which in chosen.T)
            more_ids = np.stack(others, axis=1) if others else None
            result |= {"image_id": row_ids.image(sample_ids), "text_id": text_ids}
            if more_ids is not None:
                result["more_id"] = more_ids
        if self.frozen_features is not None and "neighbour_ids" not in self.columns:
            assert text_ids is not None
            result |= self.frozen_features.own(sample_ids, text_ids, epoch)
        if "text_features" in self.columns:
            assert self.text_features is not None and text_ids is not None
            result["text_features"] = self.prepared.features(self.text_features)[text_ids].astype(np.float32)
        if "more_features" in self.columns:
            assert self.text_features is not None and more_ids is not None
            result["more_features"] = self.prepared.features(self.text_features)[more_ids].astype(np.float32)
        return {name: column for name, column in result.items() if name in self.columns}

    @property
    def _wants_ids(self) -> bool:
        """Whether ids of images and captions are columns, or needed to look up rows of stored features."""
        own = "frozen_image_features" in self.columns and "neighbour_ids" not in self.columns
        return own or bool(self.columns & {*COLUMNS, "text_features", "more_features", "more_id"})

    @property
    def _strong_count(self) -> int:
        return 0 if self.strong is None else self.strong.number

    def _write_views(self, views: np.ndarray, codes: np.ndarray, data: bytes | Missing, epoch: int, sample_id: int) -> None:
        """Write an image's views into `views`, uint8 [1 or 1 + strong views, 3, size, size], and their codes into `codes`."""
        image: Any = opened(self.prepared, data)
        strong = self.strong if len(views) > 1 else None
        key = (self.seed, epoch) if self.repeated is None else (0, epoch % self.repeated)
        drawn = draw_views(image.size, self.augment, strong, (*key, sample_id))
        if self.augment is None:
            image = image.rgb()
            views[0], codes[0] = eval_view(image, self.image_size), UNCHANGED
        if drawn:
            rest = slice(len(views) - len(drawn), None)
            views[rest], codes[rest] = apply(image, self.image_size, drawn), [view.code(image.size) for view in drawn]

    def _choices(self, counts: np.ndarray, sample_ids: np.ndarray, epoch: int) -> np.ndarray:
        """The indices of each sample's captions in this epoch, int64 [b, captions]. `counts`: how many captions each sample has.

        They are all different, unless a sample has too few: then it repeats them in the same order.
        """
        which = np.zeros((len(sample_ids), self.captions), dtype=np.int64)
        for row in np.flatnonzero(counts > 1):
            random = None if self.augment is None else generator("caption", self.seed, epoch, int(sample_ids[row]))
            first = 0 if random is None else random.integers(counts[row])
            if self.captions > 1:
                others = np.delete(np.arange(counts[row]), first)
                which[row] = np.resize([first, *(others if random is None else random.permutation(others))], self.captions)
            else:
                which[row] = first
        return which

    def _batches(
        self,
        pick: Callable[[int], Item],
        first: int,
        last: int,
        size: int,
        worker: Worker,
        failed: Callable[[Unusable], None] | None = None,
    ) -> Iterator[Batch]:
        """Batches of items [first, last)."""
        import torch

        if not self.uses_tasks:
            for index in range(first, last):
                item = pick(index)
                rows = self.look_up(item.sample_ids, item.epoch, str(worker.device))
                yield cast(Batch, {name: torch.from_numpy(column).to(worker.device) for name, column in rows.items()})
            return
        changes = (
            {self.strong_from} if first < self.strong_from < last else set()
        )  # one execution has the same columns throughout
        for start, end in pairwise(sorted({*range(first, last, _SEGMENT), last} | changes)):
            for index, computed in zip(range(start, end), self._computed(pick, start, end, size, worker), strict=True):
                item = pick(index)
                ids, missed, reasons = (computed.pop(name).cpu().numpy() for name in _ROW_COLUMNS)
                if not np.array_equal(np.where(missed < 0, ids, missed), item.sample_ids):
                    raise RuntimeError(f"stream: the batch of item {index} has other samples than the order")
                self._check(item, ids, missed, reasons)  # here, not in the task, where Ray would wrap the error
                for row in np.flatnonzero(missed >= 0):
                    if failed is not None:
                        failed(Unusable(int(missed[row]), _REASONS[reasons[row]]))
                read = {name: computed[name].cpu().numpy() for name in _READ if name in computed}
                rows = self.look_up(ids, item.epoch, str(worker.device), read)
                rest = {name: torch.from_numpy(column).to(worker.device) for name, column in rows.items()}
                yield cast(Batch, {name: column for name, column in computed.items() if name in self.columns} | rest)

    def _computed(self, pick: Callable[[int], Item], start: int, end: int, size: int, worker: Worker) -> Iterator[dict[str, Any]]:
        """The columns of items [start, end) that Ray Data computes."""

        def culprit(first: int) -> UserError | None:
            ids = [pick(index).sample_ids for index in range(first, end)]
            return deadly_image(self.prepared, np.concatenate(ids) if "image" in self.columns and ids else np.empty(0, np.int64))

        row_bytes = (1 + self._strong_count) * 3 * self.image_size**2 + 1024
        return in_tasks(lambda index: self._attempt(pick(index)), start, end, size, row_bytes, worker, culprit)
