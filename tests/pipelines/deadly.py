"""Work that ends its process, for tests; importable by a child at little cost."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.dataset.prepared import Prepared
from pipelines.io import child_process
from pipelines.io.storage import Missing
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.folder import FolderSource


def numbers(ends: dict[int, str], count: int, first: int) -> Iterator[tuple[int, int]]:
    """Numbers with the process's own, of which some end it."""
    for number in range(first, count):
        child_process.begin(f"item {number}")
        with child_process.limited():
            if ends.get(number) == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            while ends.get(number) == "loop":
                pass
            if ends.get(number) == "exit":
                os._exit(3)
        yield number, os.getpid()


def process() -> int:
    """The number of the process that this runs in."""
    return os.getpid()


def killed_once(marker: Path, first: int) -> Iterator[int]:
    """Three numbers; the first process that comes to the second is killed."""
    for number in range(first, 3):
        child_process.begin(number)
        if number == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield number


def raising(error: Exception, _: int) -> Iterator[int]:
    """A number, and then an error."""
    yield 1
    raise error


class DeadlyPrepared(Prepared):
    """A dataset of which the image of sample 7 ends whoever reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return DeadlyPrepared, (self.path, self.manifest)

    def images(self, sample_ids: np.ndarray) -> Iterator[bytes | Missing]:
        for sample_id, data in zip(sample_ids, super().images(sample_ids), strict=True):
            if sample_id == 7:
                os.kill(os.getpid(), signal.SIGSEGV)
            yield data


class Deadly(FolderSource):
    """A folder whose file b.png ends whoever reads it, before there is a row of it."""

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        for row in super().read(unit, images):
            if row.key == "b.png":
                os.kill(os.getpid(), signal.SIGSEGV)
            yield row


class Means:
    """The mean of each channel."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 3, -1).mean(axis=2).astype(np.float32)
