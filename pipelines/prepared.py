"""A prepared dataset on disk: `manifest.json`, Parquet shards with dense sample ids, `rejected.parquet`, banks of features.

sample_id  int64, dense in [0, num_samples), in the order of the source
image_id   int64, equal for equal pictures; text_id list<int64>, one a caption, equal for equal captions
key, group string; image binary (encoded); captions list<string>; split string; label_NAME string
shuffled   bool, where the config shuffles captions: this row has another row's
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.randomness import uniform_of
from pipelines.settings import UserError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_CACHED_SHARDS = 32  # per process; a shard of 2,048 small pictures is some 20 MB


def split_of(group: str, splits: dict[str, float], seed: int) -> str:
    """The split a group belongs to: a function of the group's name and the seed, so growing data moves no sample."""
    position = uniform_of(group, seed)
    for name, share in sorted(splits.items()):
        if position < share:
            return name
        position -= share
    return "train"


@dataclass(frozen=True)
class Prepared:
    """An opened prepared dataset. Cheap to send to workers: a path and the manifest."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Prepared":
        """Raises `UserError` where there is no finished dataset."""
        path = Path(path).absolute()
        if not (path / MANIFEST).exists():
            raise UserError(
                f"data.path: {path} is no prepared dataset; make it with: python -m pipelines CONFIG.yaml output={path}"
            )
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"data.path: {path} has format {manifest['format_version']}, this version reads {FORMAT_VERSION}; "
                "prepare it again with overwrite=true"
            )
        return cls(path, manifest)

    @property
    def name(self) -> str:
        """The dataset's name in metrics."""
        return self.manifest["name"]

    @property
    def num_samples(self) -> int:
        """N: sample ids lie in [0, N)."""
        return self.manifest["num_samples"]

    @property
    def num_texts(self) -> int:
        """Number of different captions: text ids lie in [0, num_texts)."""
        return self.manifest["num_texts"]

    @property
    def fingerprint(self) -> str:
        """Digest of the content: keys, pictures, captions, labels, in order."""
        return self.manifest["fingerprint"]

    @property
    def shuffled(self) -> int:
        """Number of training rows that have another row's captions."""
        return self.manifest.get("captions", {}).get("shuffled", 0)  # not in manifests of earlier versions

    def table(self, *columns: str) -> pa.Table:
        """Light columns of all samples, in the order of sample ids. Not for `image`: see `rows`."""
        return pa.concat_tables(pq.read_table(self.path / s["file"], columns=list(columns)) for s in self.manifest["shards"])

    def split_ids(self, seed: int | None = None, validation: float | None = None) -> dict[str, np.ndarray]:
        """Sample ids of each split, sorted; `seed` splits anew with the same shares.

        `validation`: this share of the training groups becomes a split of that name, and the others stay as they are.
        Raises `UserError` where either could hold out shuffled captions, or there is a validation split already.
        """
        if seed is not None and self.shuffled and seed != self.manifest["config"]["split_seed"]:
            raise UserError(
                f"data.split_seed: {seed} could hold out some of the {self.shuffled} rows of {self.path} that have other rows' "
                f"captions; prepare it again with split_seed={seed} and another output, and leave data.split_seed null"
            )
        splits = ["train", *sorted(self.manifest["split_shares"])]
        if seed is None:
            names = np.asarray(self.table("split")["split"].to_pylist(), dtype=object)
        else:
            groups = self.table("group")["group"].to_pylist()
            names = np.asarray([split_of(g, self.manifest["split_shares"], seed) for g in groups], dtype=object)
        if validation is not None:
            self._check_validation(splits)
            groups = self.table("group")["group"].to_pylist()
            salt = self.manifest["config"]["split_seed"] if seed is None else seed
            apart = np.asarray([uniform_of(f"{group}\0validation", salt) < validation for group in groups])
            names[(names == "train") & apart] = "validation"
            splits.append("validation")
        return {name: np.flatnonzero(names == name) for name in splits}

    def _check_validation(self, splits: list[str]) -> None:
        if "validation" in splits:
            raise UserError(f"data.validation: {self.path} was prepared with a split of that name; leave data.validation null")
        if self.shuffled:
            raise UserError(
                f"data.validation: may hold out some of the {self.shuffled} rows of {self.path} that have other rows' captions; "
                "prepare it again with splits.validation and another output, and leave data.validation null"
            )

    def shard_starts(self) -> np.ndarray:
        """First sample id of each shard, and N at the end."""
        return np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]])

    def rows(self, sample_ids: np.ndarray, columns: tuple[str, ...]) -> pa.Table:
        """The named columns of the given samples, in the given order; shards are read whole and a few are kept."""
        starts = self.shard_starts()
        shards = np.searchsorted(starts, sample_ids, side="right") - 1
        pieces, positions = [], []
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            table = _shard(str(self.path / self.manifest["shards"][shard]["file"]), columns)
            pieces.append(table.take(pa.array(sample_ids[where] - starts[shard])))
            positions.append(where)
        order = np.argsort(np.concatenate(positions))
        return pa.concat_tables(pieces).take(pa.array(order))

    def texts(self) -> list[str]:
        """All different captions, in the order of text ids."""
        table = self.table("captions", "text_id")
        texts: dict[int, str] = {}
        for captions, ids in zip(table["captions"].to_pylist(), table["text_id"].to_pylist(), strict=True):
            texts.update(zip(ids, captions, strict=True))
        return [texts[i] for i in range(self.num_texts)]


@functools.lru_cache(maxsize=_CACHED_SHARDS)
def _shard(path: str, columns: tuple[str, ...]) -> pa.Table:
    return pq.read_table(path, columns=list(columns))
