"""What a task has embedded (`Inputs`), and one model's rows for it (`Rows`), in memory or in a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.data.subsets import Subset
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest


@dataclass(frozen=True)
class Inputs:
    """Images or texts to embed, or images whose features before the joint space a task reads."""

    kind: Literal["images", "features", "texts"]
    items: Any  # Images, or a tuple of strings
    name: str  # for people, such as openmoji/test; also names the files of precomputed embeddings

    @cached_property
    def fingerprint(self) -> str:
        """Of what is embedded, whatever the model."""
        return digest([self.kind, list(self.items)] if self.kind == "texts" else [self.kind, self.items.fingerprint])

    @property
    def fallback(self) -> "Inputs":
        """What replaces features where a model has none: embeddings of the same images."""
        return Inputs("images", self.items, self.name) if self.kind == "features" else self

    @property
    def superset(self) -> "Inputs | None":
        """All the images from which these were selected; None where these are no subset."""
        return Inputs(self.kind, self.items.images, self.name) if isinstance(self.items, Subset) else None

    def describe(self, index: int) -> str:
        """The name of an image, or a text on one line."""
        return " ".join(self.items[index].split()) if self.kind == "texts" else self.items.name(index)

    def descriptions(self) -> Iterator[str]:
        """Of all items, in order."""
        return (self.describe(index) for index in range(len(self.items)))


class Rows:
    """One model's rows by `Inputs`: embeddings with unit length, features as they are."""

    def __init__(self, fingerprint: str, scale: float | None):
        self.fingerprint, self.scale = fingerprint, scale
        self._rows: dict[str, Path | np.ndarray] = {}
        self._fallbacks: set[str] = set()

    def add(self, inputs: Inputs, rows: Path | np.ndarray, fallback: bool = False) -> None:
        """An array [n, D] or its file. `fallback`: the rows are embeddings although `inputs` asks for features."""
        self._rows[inputs.fingerprint] = rows
        if fallback:
            self._fallbacks.add(inputs.fingerprint)

    def has_features(self, inputs: Inputs) -> bool:
        """Whether the rows are features, not embeddings in their place."""
        stored = inputs.superset if inputs.fingerprint not in self._rows and inputs.superset is not None else inputs
        return stored.fingerprint not in self._fallbacks

    def __getitem__(self, inputs: Inputs) -> np.ndarray:
        """float32 [n, D]."""
        rows = self._stored(inputs).astype(np.float32)
        if inputs.kind == "features":
            return rows
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def check_widths(self, every: Sequence[Inputs], key: str) -> None:
        """Raises `UserError` where embeddings differ in width, so that they cannot be in one space."""
        widths = {self._stored(inputs).shape[1]: inputs for inputs in every if inputs.kind != "features"}
        if len(widths) > 1:
            (first, a), (second, b) = list(widths.items())[:2]
            raise UserError(
                key,
                f"rows of {a.name} ({a.kind}) are {first} wide and those of {b.name} ({b.kind}) {second}",
                "embed images and texts into one space",
            )

    def _stored(self, inputs: Inputs) -> np.ndarray:
        if inputs.fingerprint not in self._rows and inputs.superset is not None:
            return self._stored(inputs.superset)[inputs.items.indices]
        rows = self._rows[inputs.fingerprint]
        return np.load(rows, mmap_mode="r") if isinstance(rows, Path) else rows


def check_finite(key: str, inputs: Inputs, rows: np.ndarray, ids: np.ndarray) -> None:
    """Raises `UserError` where rows [n, D], those of items `ids` [n], are not finite."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            key,
            f"{len(bad)} of {len(rows)} rows of {inputs.name} ({inputs.kind}) are NaN or infinite, the first that of "
            f"{inputs.describe(int(ids[bad[0]]))}",
            "correct the embedder, or remove from the data what it cannot embed",
        )
