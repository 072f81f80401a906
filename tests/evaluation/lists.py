"""Images and rows that tests make up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.embeddings import Inputs, Rows


@dataclass(frozen=True)
class Plain:
    """Small images of one colour each; width and colour tell which is which."""

    count: int
    first: int = 0

    @property
    def fingerprint(self) -> str:
        return f"plain {self.count} from {self.first}"

    def __len__(self) -> int:
        return self.count

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        for index in indices:
            number = int(index) + self.first
            yield Image.new("RGB", (8 + number % 50, 8), (number % 256, number // 256, 100))

    def name(self, index: int) -> str:
        return f"image {index + self.first}"


def rows_of(folder: Path, given: Mapping[Inputs, np.ndarray], scale: float | None = None, fallback: bool = False) -> Rows:
    """Rows as if a model had made them."""
    rows = Rows("made up", scale)
    for inputs, array in given.items():
        path = folder / f"{inputs.fingerprint}.npy"
        np.save(path, np.asarray(array, dtype=np.float32))
        rows.add(inputs, path, fallback and inputs.kind == "features")
    return rows
