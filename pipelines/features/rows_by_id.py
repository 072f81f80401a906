"""Rows of stored features by id, and digests of their files."""

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np

from pipelines.io import node_cache, storage
from pipelines.io.patient import outlast
from pipelines.io.retry import shown_place
from pipelines.program.errors import UserError

ABOUT = "features.json"
ROWS = "rows.npy"


def feature_rows(place: Path | str | None) -> np.ndarray:
    """Rows of stored features, float16 [rows, F], mapped into memory. Raises `UserError` for damaged ones in a store."""
    assert place is not None
    return np.load((place if isinstance(place, Path) else feature_copy(place)) / ROWS, mmap_mode="r")


def feature_folder(uri: str) -> Path:
    """Where this node has a copy of features in a store, if it has one."""
    return node_cache.copy_of("features", uri) / storage.name_of(uri)


def feature_copy(uri: str) -> Path:
    """This node's copy of features in a store, made if it is missing. Raises `Missing` if the store has none."""
    folder = feature_folder(uri)
    about = outlast(lambda: storage.read(f"{uri}/{ABOUT}"))
    with node_cache.alone(folder.parent):
        if not (folder / ABOUT).exists() or (folder / ABOUT).read_bytes() != about:
            aside = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            outlast(lambda: storage.receive(f"{uri}/{ROWS}", aside / ROWS))
            (aside / ABOUT).write_bytes(about)
            if digest_of_rows(aside) != json.loads(about).get("digest"):
                problem = f"{ROWS} does not hold what was computed"
                raise UserError(shown_place(uri), problem, "delete the folder; the same command computes it again")
            shutil.rmtree(folder, ignore_errors=True)
            aside.rename(folder)
        os.utime(folder.parent)
    return folder


def send_features(folder: Path, uri: str) -> None:
    """Put features of this node into a store."""
    for name in (ROWS, ABOUT):  # the second says that the first is complete
        outlast(lambda name=name: storage.send(folder / name, f"{uri}/{name}"))  # type: ignore[misc]


def digest_of_rows(path: Path) -> str:
    """Hex digest of the rows.npy of stored features."""
    return digest_of_file(path / "rows.npy")


def digest_of_file(path: Path) -> str:
    """Hex digest of a file, read once while the file is unchanged: the trials of a sweep share stored features."""
    stat = path.stat()
    return _digest(path, stat.st_ino, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest(path: Path, number: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
