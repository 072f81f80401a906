"""Rows of one model: what tasks want, and where it lies."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.data.subsets import Chosen
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest


@dataclass(frozen=True)
class Wanted:
    """Rows that a task needs: embeddings of images or texts, or features of images before the joint space."""

    kind: Literal["images", "features", "texts"]
    of: Any  # Images, or a tuple of strings
    name: str  # for people, such as openmoji/test; names the files of precomputed embeddings

    @cached_property
    def fingerprint(self) -> str:
        """Of what is embedded, not of how."""
        return digest([self.kind, list(self.of)] if self.kind == "texts" else [self.kind, self.of.fingerprint])

    @property
    def embeddings(self) -> "Wanted":
        """What stands in for features where a model has none to offer."""
        return Wanted("images", self.of, self.name) if self.kind == "features" else self

    @property
    def whole(self) -> "Wanted | None":
        """Rows among which these are: of all the images that these were chosen from."""
        return Wanted(self.kind, self.of.images, self.name) if isinstance(self.of, Chosen) else None

    def item(self, index: int) -> str:
        """What people call one of the items, in one line."""
        return " ".join(self.of[index].split()) if self.kind == "texts" else self.of.name(index)

    def items(self) -> Iterator[str]:
        """All of them, in order."""
        return (self.item(index) for index in range(len(self.of)))


class Rows:
    """By what was wanted. Embeddings come as unit rows, features as they are."""

    def __init__(self, fingerprint: str, scale: float | None):
        self.fingerprint, self.scale = fingerprint, scale
        self._rows: dict[str, Path | np.ndarray] = {}
        self._stand_ins: set[str] = set()

    def add(self, wanted: Wanted, rows: Path | np.ndarray, stand_in: bool = False) -> None:
        """An array [n, D], or the file where it lies. `stand_in`: they are embeddings, where features were wanted."""
        self._rows[wanted.fingerprint] = rows
        if stand_in:
            self._stand_ins.add(wanted.fingerprint)

    def has_features(self, wanted: Wanted) -> bool:
        """Whether they are features indeed."""
        found = wanted.whole if wanted.fingerprint not in self._rows and wanted.whole is not None else wanted
        return found.fingerprint not in self._stand_ins

    def __getitem__(self, wanted: Wanted) -> np.ndarray:
        """float32 [n, D]."""
        rows = self._mapped(wanted).astype(np.float32)
        if wanted.kind == "features":
            return rows
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def check_widths(self, wanted: Sequence[Wanted], key: str) -> None:
        """Raises `UserError` where embeddings are not of one width: then they are not in one space."""
        widths = {self._mapped(one).shape[1]: one for one in wanted if one.kind != "features"}
        if len(widths) > 1:
            (first, a), (second, b) = list(widths.items())[:2]
            raise UserError(
                f"{key}: rows of {a.name} ({a.kind}) are {first} wide and those of {b.name} ({b.kind}) {second}; all must be "
                "embedded into one space"
            )

    def _mapped(self, wanted: Wanted) -> np.ndarray:
        if wanted.fingerprint not in self._rows and wanted.whole is not None:
            return self._mapped(wanted.whole)[wanted.of.indices]
        found = self._rows[wanted.fingerprint]
        return np.load(found, mmap_mode="r") if isinstance(found, Path) else found


def refuse_nan(key: str, wanted: Wanted, rows: np.ndarray, ids: np.ndarray) -> None:
    """Raises `UserError` where rows [n, D], those of items `ids` [n], are not finite."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"{key}: {len(bad)} of {len(rows)} rows of {wanted.name} ({wanted.kind}) are NaN or infinite, the first that of "
            f"{wanted.item(int(ids[bad[0]]))}; mend the embedder, or leave out of the data what it cannot embed"
        )
