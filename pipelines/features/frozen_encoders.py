"""Guides: for every sample, the samples that two frozen encoders find nearest to it, and their features.

The encoders' features lie in banks (`pipelines.features.feature_store`). Neighbours are looked for in a support set: samples of
the training split, chosen anew in every epoch, the same on every worker without a word exchanged. The search is exact, one
product of a batch's features with those of the support set on the worker's device, unless an approximate index is asked for.
Where the support set is the whole split, neighbours may have been looked up once for all epochs
(`pipelines.features.knn_cache`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.dataset.order import Order
from pipelines.features.knn import Approximate, nearest
from pipelines.features.rows_by_id import bank_rows, id_columns
from pipelines.program.randomness import generator

Search = Literal["exact", "approximate"]


@dataclass(frozen=True)
class Guides:
    """Two banks and the split whose samples may be neighbours. Picklable; the same on every worker."""

    order: Order
    image_bank: Path  # rows by sample_id
    text_bank: Path  # rows by text_id; a sample's first caption stands for it
    support: int  # samples in the support set, at most the split's
    search: Search = "exact"
    neighbours: Path | None = None  # rows by sample_id of what a search in the whole split finds

    @property
    def widths(self) -> tuple[int, int]:
        """Of the features of images and captions."""
        return bank_rows(self.image_bank).shape[1], bank_rows(self.text_bank).shape[1]

    def columns(self, sample_ids: np.ndarray, epoch: int, device: str) -> dict[str, np.ndarray]:
        """`guide_ids` int64 [b, 3]: each sample, and those nearest to its image and to its caption (-1: there is none); and the
        unit features of all three, `guide_images` [b, 3, F] and `guide_texts` [b, 3, G].
        """
        found = self.near(sample_ids, epoch, device) if self.neighbours is None else bank_rows(self.neighbours)[sample_ids]
        ids = np.concatenate([sample_ids[:, None], found], axis=1)
        named = np.where(ids < 0, sample_ids[:, None], ids).ravel()
        shape = (len(sample_ids), 3, -1)
        images, texts = _image_rows(self, named).reshape(shape), _text_rows(self, named).reshape(shape)
        return {"guide_ids": ids, "guide_images": images, "guide_texts": texts}

    def near(self, sample_ids: np.ndarray, epoch: int, device: str) -> np.ndarray:
        """int64 [b, 2]: of the epoch's support set, the samples nearest to each one's image and to its caption, -1 for none."""
        support = _support(self, epoch)
        groups = id_columns(str(self.order.path), self.order.fingerprint)[0][sample_ids]
        own = _image_rows(self, sample_ids), _text_rows(self, sample_ids)
        places = [find(queries, groups, device) for find, queries in zip(support.finders, own, strict=True)]
        return np.stack([np.where(place < 0, -1, support.ids[place]) for place in places], axis=1)

    def own(self, sample_ids: np.ndarray, text_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Unit features of each sample's image and one of its captions: `guide_images` [b, 1, F], `guide_texts` [b, 1, G]."""
        images, texts = bank_rows(self.image_bank)[sample_ids], bank_rows(self.text_bank)[text_ids]
        return {"guide_images": unit(images)[:, None], "guide_texts": unit(texts)[:, None]}


@dataclass(frozen=True)
class _Support:
    ids: np.ndarray  # [Q] sample ids, ascending
    # By images and by captions: unit rows [n, F], image ids [n] and a device to places [n] among the ids.
    finders: tuple[Callable[[np.ndarray, np.ndarray, str], np.ndarray], ...]


@functools.lru_cache(maxsize=2)
def _support(guides: Guides, epoch: int) -> _Support:
    order = guides.order
    ids = order.ids
    if guides.support < len(ids):
        ids = np.sort(generator("support", order.seed, epoch).choice(ids, guides.support, replace=False))
    elif epoch:
        return _support(guides, 0)  # all of them, whatever the epoch
    groups = id_columns(str(order.path), order.fingerprint)[0][ids]

    def finder(rows: Callable[[Guides, np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray, str], np.ndarray]:
        if guides.search == "approximate":
            return Approximate(lambda places: rows(guides, ids[places]), groups).nearest
        keys = rows(guides, ids)
        return lambda queries, own, device: nearest(queries, keys, own, groups, device)

    return _Support(ids, (finder(_image_rows), finder(_text_rows)))


def _image_rows(guides: Guides, sample_ids: np.ndarray) -> np.ndarray:
    """Unit rows of images, float32 [n, F]."""
    return unit(bank_rows(guides.image_bank)[sample_ids])


def _text_rows(guides: Guides, sample_ids: np.ndarray) -> np.ndarray:
    """Unit rows of first captions, float32 [n, G]."""
    text_ids = id_columns(str(guides.order.path), guides.order.fingerprint)[1]
    return unit(bank_rows(guides.text_bank)[np.asarray([text_ids[i][0] for i in sample_ids])])


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 [n, F]; a row of zeros stays one."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
