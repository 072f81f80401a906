"""Image and caption ids of many samples, as arrays: fifteen million rows take some 200 MB, and 2 GB as lists of lists."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

COLUMNS = ("image_id", "text_id")  # of a shard


@dataclass(frozen=True)
class RowIds:
    """Ids of rows 0 to n - 1. The caption ids of row i are `texts[starts[i] : starts[i + 1]]`."""

    images: np.ndarray  # [n]
    starts: np.ndarray  # [n + 1]
    texts: np.ndarray  # [starts[n]]

    @classmethod
    def of(cls, tables: Iterable[pa.Table]) -> "RowIds":
        """From tables with the columns `COLUMNS`, in order; each is released before the next is read."""
        images, counts, texts = [], [np.zeros(1, dtype=np.int32)], []
        for table in tables:
            images.append(_narrow(table["image_id"].to_numpy()))
            counts.append(pc.list_value_length(table["text_id"]).to_numpy().astype(np.int32))
            texts.append(_narrow(pc.list_flatten(table["text_id"]).to_numpy()))
        flat = np.concatenate(texts)
        return cls(np.concatenate(images), np.cumsum(np.concatenate(counts), dtype=_dtype(len(flat))), flat)

    def image(self, rows: np.ndarray) -> np.ndarray:
        """The image ids of rows, int64 [b]."""
        return self.images[rows].astype(np.int64)

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of captions of rows, int64 [b]."""
        return (self.starts[rows + 1] - self.starts[rows]).astype(np.int64)

    def text(self, rows: np.ndarray, which: np.ndarray | int = 0) -> np.ndarray:
        """The id of one caption of each row, int64 [b]. `which`: its index in the row, from 0."""
        return self.texts[self.starts[rows] + which].astype(np.int64)

    def lists(self, rows: np.ndarray) -> pa.ListArray:
        """The ids of all captions of rows, as in a shard's column."""
        counts = self.counts(rows)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(offsets[-1]) + np.repeat(self.starts[rows] - offsets[:-1], counts)
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(self.texts[places], pa.int64()))


def _narrow(ids: np.ndarray) -> np.ndarray:
    return ids.astype(_dtype(int(ids.max(initial=0))))


def _dtype(largest: int) -> type[np.signedinteger]:
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64
