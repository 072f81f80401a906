"""Rows of banks by id, and digests of their files."""

import functools
import hashlib
from pathlib import Path

import numpy as np


def bank_rows(path: Path | None) -> np.ndarray:
    """A bank's rows, float16 [rows, F], mapped into memory."""
    assert path is not None
    return np.load(path / "rows.npy", mmap_mode="r")


def digest_of_rows(path: Path) -> str:
    """Hex digest of a bank's rows.npy."""
    return digest_of_file(path / "rows.npy")


def digest_of_file(path: Path) -> str:
    """Hex digest of a file, read once while the file is unchanged: the trials of a sweep share banks."""
    stat = path.stat()
    return _digest(path, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, number: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
