"""Features of two frozen encoders: each sample's, and those of its nearest neighbours.

The encoders' features are stored (`pipelines.features.feature_store`). Neighbours are searched in a support set: samples of the
training split, drawn again every epoch, the same on every worker without communication. The search is exact, one product of a
batch's features with those of the support set on the worker's device, unless the config asks for an approximate index. If the
support set is the whole split, neighbours may be computed once for all epochs (`pipelines.features.knn_cache`).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.dataset.order import Order
from pipelines.dataset.row_ids import RowIds
from pipelines.features.knn import Approximate, nearest
from pipelines.program.randomness import generator

Search = Literal["exact", "approximate"]


@dataclass(frozen=True)
class _Support:
    ids: np.ndarray  # [Q] sample ids, ascending
    # For images and for captions: from unit rows [n, F], image ids [n] and a device to positions [n] in `ids`.
    finders: tuple[Callable[[np.ndarray, np.ndarray, str], np.ndarray], ...]


@dataclass(frozen=True)
class FrozenFeatures:
    """The features of two frozen encoders, and the split whose samples may be neighbours.

    Pickled without its caches; the same on every worker.
    """

    order: Order
    image_features: Path | str  # rows by sample_id
    text_features: Path | str  # rows by text_id; a sample is represented by its first caption
    support: int  # samples in the support set, at most those of the split
    search: Search = "exact"
    neighbours: Path | str | None = None  # rows by sample_id: the result of a search in the whole split
    views: tuple[Path | str, ...] = ()  # as image_features, of each repeated view: what `own` reads
    others: tuple["FrozenFeatures", ...] = ()  # of more dual encoders, for `own`

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def widths(self) -> tuple[int, int]:
        """Widths of the features of images and captions, of all encoders together."""
        images, texts = zip(*((of.image_features, of.text_features) for of in (self, *self.others)), strict=True)
        return sum(self._rows(of).shape[1] for of in images), sum(self._rows(of).shape[1] for of in texts)

    def columns(self, sample_ids: np.ndarray, epoch: int, device: str) -> dict[str, np.ndarray]:
        """`neighbour_ids` int64 [b, 3]: each sample, and those nearest to its image and to its caption (-1 for none); and the
        unit features of all three, `frozen_image_features` [b, 3, F] and `frozen_text_features` [b, 3, G].
        """
        near = self.near(sample_ids, epoch, device) if self.neighbours is None else self._rows(self.neighbours)[sample_ids]
        ids = np.concatenate([sample_ids[:, None], near], axis=1)
        filled = np.where(ids < 0, sample_ids[:, None], ids).ravel()
        shape = (len(sample_ids), 3, -1)
        images, texts = self._image_rows(filled).reshape(shape), self._text_rows(filled).reshape(shape)
        return {"neighbour_ids": ids, "frozen_image_features": images, "frozen_text_features": texts}

    def near(self, sample_ids: np.ndarray, epoch: int, device: str) -> np.ndarray:
        """int64 [b, 2]: the samples of the epoch's support set nearest to each image and to each caption, -1 for none."""
        # If it is the whole split, all epochs share one support set.
        support = self._support(epoch if self.support < self._count else 0)
        groups = self._ids.image(sample_ids)
        own = self._image_rows(sample_ids), self._text_rows(sample_ids)
        places = [find(queries, groups, device) for find, queries in zip(support.finders, own, strict=True)]
        return np.stack([np.where(place < 0, -1, support.ids[place]) for place in places], axis=1)

    def own(self, sample_ids: np.ndarray, text_ids: np.ndarray, epoch: int) -> dict[str, np.ndarray]:
        """Unit features of each sample's image, or of its view in this epoch, and of one of its captions. Those of several dual
        encoders stand side by side, divided by the root of their number: a cosine of such rows is the mean of the encoders'.

        `frozen_image_features` [b, 1, F] and `frozen_text_features` [b, 1, G].
        """
        images, texts = [], []
        for of in (self, *self.others):
            place = of.views[epoch % len(of.views)] if of.views else of.image_features
            images.append(unit(self._rows(place)[sample_ids]))
            texts.append(unit(self._rows(of.text_features)[text_ids]))
        sides = {"frozen_image_features": images, "frozen_text_features": texts}
        return {name: np.concatenate(rows, axis=1)[:, None] / len(rows) ** 0.5 for name, rows in sides.items()}

    @property
    def _rows(self) -> Callable[[Path | str], np.ndarray]:
        return self.order.prepared.features

    @property
    def _ids(self) -> RowIds:
        return self.order.prepared.row_ids

    @cached_property
    def _count(self) -> int:
        """Number of samples in the split."""
        return len(self.order.ids)

    @cached_property
    def _support(self) -> Callable[[int], _Support]:
        """A function from an epoch to its support set; recent ones are cached."""
        return lru_cache(maxsize=2)(self._drawn)

    def _drawn(self, epoch: int) -> _Support:
        ids = self.order.ids
        if self.support < len(ids):
            ids = np.sort(generator("support", self.order.seed, epoch).choice(ids, self.support, replace=False))
        groups = self._ids.image(ids)

        def finder(rows: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray, np.ndarray, str], np.ndarray]:
            if self.search == "approximate":
                return Approximate(lambda places: rows(ids[places]), groups).nearest
            keys = rows(ids)
            return lambda queries, own, device: nearest(queries, keys, own, groups, device)

        return _Support(ids, (finder(self._image_rows), finder(self._text_rows)))

    def _image_rows(self, sample_ids: np.ndarray) -> np.ndarray:
        """Unit rows of images, float32 [n, F]."""
        return unit(self._rows(self.image_features)[sample_ids])

    def _text_rows(self, sample_ids: np.ndarray) -> np.ndarray:
        """Unit rows of first captions, float32 [n, G]."""
        return unit(self._rows(self.text_features)[self._ids.text(sample_ids)])


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 [n, F]; a row of zeros is unchanged."""
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
