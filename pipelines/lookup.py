"""What workers look up by id: rows of banks, and the ids of pictures and captions."""

import functools
from pathlib import Path

import numpy as np

from pipelines.prepared import Prepared


@functools.lru_cache(maxsize=8)
def bank_rows(path: Path | None) -> np.ndarray:
    """A bank's rows, float16 [rows, F], mapped into memory."""
    assert path is not None
    return np.load(path / "rows.npy", mmap_mode="r")


@functools.lru_cache(maxsize=2)
def id_columns(path: str, fingerprint: str) -> tuple[np.ndarray, list[list[int]]]:
    """image_id [N] and text_ids of every sample of a dataset."""
    table = Prepared.open(path).table("image_id", "text_id")
    return table["image_id"].to_numpy(), table["text_id"].to_pylist()
