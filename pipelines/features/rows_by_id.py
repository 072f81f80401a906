"""What workers look up by id: rows of banks, and the ids of images and captions."""

import functools
import hashlib
from pathlib import Path

import numpy as np

from pipelines.dataset.prepared import Prepared


@functools.lru_cache(maxsize=8)
def bank_rows(path: Path | None) -> np.ndarray:
    """A bank's rows, float16 [rows, F], mapped into memory."""
    assert path is not None
    return np.load(path / "rows.npy", mmap_mode="r")


def digest_of_rows(path: Path) -> str:
    """Hex digest of a bank's rows.npy."""
    return digest_of_file(path / "rows.npy")


def digest_of_file(path: Path) -> str:
    """Hex digest of a file, which is read once as long as it is the same file: the trials of a sweep share banks."""
    stat = path.stat()
    return _digest(path, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, number: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@functools.lru_cache(maxsize=2)
def id_columns(path: str, fingerprint: str) -> tuple[np.ndarray, list[list[int]]]:
    """image_id [N] and text_ids of every sample of a dataset."""
    table = Prepared.open(path).table("image_id", "text_id")
    return table["image_id"].to_numpy(), table["text_id"].to_pylist()
