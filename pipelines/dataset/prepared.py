"""A prepared dataset: `manifest.json`, shards of metadata columns, image locations, `rejected.parquet`, stored features.

sample_id  int64, dense in [0, num_samples), in the order of the source
image_id   int64, equal for equal images; text_id list<int64>, one for each caption, equal for equal captions
key, group string; captions list<string>; split string; label_NAME string
file, start, length, column: where the encoded image is (`image_bytes.Location`); a relative file is in the dataset's folder
shuffled   bool, only if the config shuffles captions: whether this row has another row's captions

Readers do not need to know whether images were copied or only indexed.

An opened dataset caches what it has read: shards, ids, mapped features. It is pickled as its path and fingerprint, and a process
that unpickles it many times, as tasks of a stream do, opens it only once (`once_per_process`).
"""

import json
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.dataset import row_ids
from pipelines.dataset.row_ids import RowIds
from pipelines.features.rows_by_id import feature_rows
from pipelines.io import storage
from pipelines.io.image_bytes import Location, read_locations
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.randomness import uniform_of

_AGAIN = "prepare it again with overwrite=true"
FORMAT_VERSION = 3  # incremented when the same source would be prepared differently: ids, pixels, rejected rows
MANIFEST = "manifest.json"
_CACHED_SHARDS = 40  # shards whose columns are kept in memory; 2,048 rows are some 400 kB
_CACHED_FEATURES = 8
_CACHED_OBJECTS = 8  # datasets and orders that a process keeps
_PLACE = ("file", "start", "length", "column")
_WINDOW = 65536  # minimum rows that are permuted together
_WINDOW_OF_TABLES = 2048  # the same for tables, which are read by row group: those of a window should fit into memory

T = TypeVar("T")


def once_per_process(make: Callable[..., T], *arguments: Hashable) -> T:
    """`make(*arguments)`, cached in this process. Datasets and orders are unpickled by it, with all that they have cached."""
    return _made(make, *arguments)


@lru_cache(maxsize=_CACHED_OBJECTS)
def _made(make: Callable[..., Any], *arguments: Hashable) -> Any:
    return make(*arguments)


def split_of(group: str, splits: dict[str, float], seed: int) -> str:
    """The split a group belongs to: a function of the group's name and the seed, so growing data moves no sample."""
    position, left = uniform_of(group, seed), 1.0
    for name, share in sorted(splits.items()):
        left -= share
        if position < share or left < 1e-9:  # three times a third may be less than one
            return name
        position -= share
    return "train"


@dataclass(frozen=True, eq=False)
class Prepared:
    """An opened prepared dataset."""

    path: Place
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Place) -> "Prepared":
        """Open a folder or URI. Raises `UserError` if there is no finished dataset, or it is damaged."""
        path = storage.absolute(path)
        if not storage.exists(storage.join(path, MANIFEST)):
            problem = f"{path} is not a prepared dataset"
            remedy = f"prepare it first: python -m pipelines CONFIG.yaml output={path}"
            if isinstance(path, Path) and path.is_file():
                problem, remedy = f"{path} is a file", "give a folder that python -m pipelines has made, the output of its config"
            elif isinstance(path, Path) and path.is_dir() and any(path.iterdir()):
                command = f"python -m pipelines CONFIG.yaml source.path={path} output=FOLDER"
                remedy = f"if it contains your images, prepare them first: {command}, and give that FOLDER here"
            raise UserError("data.path", problem, remedy)
        try:
            manifest = json.loads(storage.read(storage.join(path, MANIFEST)))
            version = manifest["format_version"]
            shards = [str(shard["file"]) for shard in manifest["shards"]] if version == FORMAT_VERSION else []
        except (ValueError, LookupError, TypeError, Missing) as error:
            problem = f"the {MANIFEST} of {path} is not one of a prepared dataset ({type(error).__name__})"
            raise UserError("data.path", problem, _AGAIN) from None
        if version != FORMAT_VERSION:
            raise UserError("data.path", f"{path} has format {version}, and this version reads {FORMAT_VERSION}", _AGAIN)
        for file in shards:
            if _absolute(file) or ".." in file.split("/"):
                raise UserError("data.path", f"{path} names the shard {file}, which is not in its folder", _AGAIN)
            if isinstance(path, Path) and not (path / file).is_file():
                raise UserError("data.path", f"{path} has no {file}, which its {MANIFEST} names", f"copy that too, or {_AGAIN}")
        return cls(path, manifest)

    def __reduce__(self) -> tuple[Any, ...]:
        # The recipe distinguishes datasets with equal content in different files.
        return once_per_process, (_reopened, self.path, self.fingerprint, self.manifest.get("recipe"))

    @property
    def name(self) -> str:
        """The dataset's name in metrics."""
        return self.manifest["name"]

    @property
    def num_samples(self) -> int:
        """N: sample ids are in [0, N)."""
        return self.manifest["num_samples"]

    @property
    def num_texts(self) -> int:
        """Number of distinct captions: text ids are in [0, num_texts)."""
        return self.manifest["num_texts"]

    @property
    def fingerprint(self) -> str:
        """Digest of the content: keys, images, captions and labels in order, and the shard boundaries."""
        return self.manifest["fingerprint"]

    @property
    def shuffled(self) -> int:
        """Number of training rows that have another row's captions."""
        return self.manifest["captions"]["shuffled"]

    @property
    def window(self) -> int:
        """Minimum number of rows that the sample order permutes together: as many as can be read in random order."""
        return _WINDOW_OF_TABLES if self.manifest["tables"] else _WINDOW

    def table(self, *columns: str) -> pa.Table:
        """Metadata columns of all samples, in the order of sample ids; they must fit into memory."""
        return pa.concat_tables(self._tables(columns))

    def split_ids(self, seed: int | None = None, validation: float | None = None) -> dict[str, np.ndarray]:
        """Sample ids of each split, sorted.

        Args:
            seed: draw the splits again with this seed and the same shares.
            validation: this share of the training groups becomes the split `validation`; the other splits are unchanged.

        Raises `UserError` if either could hold out shuffled captions, if there is a validation split already, or if a seed is
        given but the splits are the source's own.
        """
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.split_list(validation)}
        for shard, first in enumerate(self.shard_starts[:-1]):
            names = self.split_names(shard, seed, validation)
            for name, ids in parts.items():
                ids.append(first + np.flatnonzero(names == name))
        return {name: np.concatenate(ids) for name, ids in parts.items()}

    def split_list(self, validation: float | None = None) -> list[str]:
        """Names of the splits."""
        return ["train", *sorted(self.manifest["split_shares"])] + ([] if validation is None else ["validation"])

    def split_names(self, shard: int, seed: int | None = None, validation: float | None = None) -> np.ndarray:
        """The split of each row of a shard, objects [rows]; for the arguments see `split_ids`."""
        self._check_splits(seed, validation)
        table = self._shard(shard, ("group", "split"))
        names = np.asarray(table["split"].to_pylist(), dtype=object)
        if seed is None and validation is None:
            return names
        groups = table["group"].to_pylist()
        if seed is not None:
            names = np.asarray([split_of(group, self.manifest["split_shares"], seed) for group in groups], dtype=object)
        if validation is not None:
            salt = self.manifest["config"]["split_seed"] if seed is None else seed
            apart = np.asarray([uniform_of(f"{group}\0validation", salt) < validation for group in groups])
            names[(names == "train") & apart] = "validation"
        return names

    def groups(self, shard: int) -> list[str]:
        """The group of each row of a shard: splits, and fractions of one, keep a group together."""
        return self._shard(shard, ("group", "split"))["group"].to_pylist()

    def _check_splits(self, seed: int | None, validation: float | None) -> None:
        if seed is not None and self.manifest["config"].get("splits") == "source":
            raise UserError(
                "data.split_seed",
                f"{self.path} has its source's own splits, which are not drawn with a seed",
                "leave split_seed null, or prepare again with 'splits={test: 0.1}' and another output",
            )
        if seed is not None and self.shuffled and seed != self.manifest["config"]["split_seed"]:
            raise UserError(
                "data.split_seed",
                f"{seed} could hold out some of the {self.shuffled} rows of {self.path} that have other rows' captions",
                f"prepare again with split_seed={seed} and another output, and leave split_seed null",
            )
        if validation is None:
            return
        if "validation" in self.manifest["split_shares"]:
            raise UserError("data.validation", f"{self.path} has a split of that name already", "leave data.validation null")
        if self.shuffled:
            raise UserError(
                "data.validation",
                f"{validation:g} could hold out some of the {self.shuffled} rows of {self.path} that have other rows' captions",
                "prepare again with splits.validation and another output, and leave data.validation null",
            )

    @cached_property
    def shard_starts(self) -> np.ndarray:
        """First sample id of each shard, and N at the end."""
        return np.cumsum([0] + [shard["rows"] for shard in self.manifest["shards"]])

    def rows(self, sample_ids: np.ndarray, columns: tuple[str, ...]) -> pa.Table:
        """The named metadata columns of the given samples, in the given order; recent shards are cached."""
        starts = self.shard_starts
        shards = np.searchsorted(starts, sample_ids, side="right") - 1
        pieces, positions = [], []
        for shard in np.unique(shards):
            where = np.flatnonzero(shards == shard)
            table = self._shard(int(shard), columns)
            pieces.append(table.take(pa.array(sample_ids[where] - starts[shard])))
            positions.append(where)
        order = np.argsort(np.concatenate(positions))
        return pa.concat_tables(pieces).take(pa.array(order))

    def places(self, sample_ids: np.ndarray) -> list[Location]:
        """Where the encoded images of the given samples are."""
        places = self.rows(sample_ids, _PLACE).to_pydict()
        files = [file if _absolute(file) else str(storage.join(self.path, file)) for file in places["file"]]
        return [Location(*place) for place in zip(files, *(places[name] for name in _PLACE[1:]), strict=True)]

    def name_of_image(self, sample_id: int) -> str:
        """A sample's image as errors name it, with its file."""
        (place,) = self.places(np.asarray([sample_id]))
        return f"the image of sample {sample_id} ({place.file}) of {self.path}"

    def images(self, sample_ids: np.ndarray) -> Iterator[bytes | Missing]:
        """Encoded images of the given samples, in the given order; `Missing` for one that can no longer be read."""
        return read_locations(self.places(sample_ids))

    @cached_property
    def row_ids(self) -> RowIds:
        """Image and caption ids of all samples, by sample id."""
        return RowIds.of(self._tables(row_ids.COLUMNS))

    def texts(self) -> pa.ChunkedArray:
        """All distinct captions, in the order of text ids, as Arrow's large strings."""
        seen = np.zeros(self.num_texts, dtype=bool)
        ids, captions = [], []
        for table in self._tables(("captions", "text_id")):
            distinct, first = np.unique(pc.list_flatten(table["text_id"]).to_numpy(), return_index=True)
            new = ~seen[distinct]
            seen[distinct] = True
            ids.append(distinct[new])
            captions.append(pc.list_flatten(table["captions"]).take(pa.array(first[new])).cast(pa.large_string()))
        order = np.concatenate(ids)
        whole = pa.chunked_array([chunk for part in captions for chunk in part.chunks], pa.large_string())
        if (np.diff(order) > 0).all():  # ids were assigned in the order of rows, unless captions were shuffled
            return whole
        return pa.chunked_array([whole.combine_chunks().take(pa.array(np.argsort(order)))])

    @cached_property
    def features(self) -> Callable[[Path | str], np.ndarray]:
        """A function from the folder of stored features to their rows, float16 [rows, F], mapped into memory."""
        return lru_cache(maxsize=_CACHED_FEATURES)(feature_rows)

    @cached_property
    def _shard(self) -> Callable[[int, tuple[str, ...]], pa.Table]:
        """A function from a shard's number and column names to its table; recent ones are cached."""
        return lru_cache(maxsize=_CACHED_SHARDS)(self._read)

    def _tables(self, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        """Columns of each shard in turn, not cached."""
        return (self._read(shard, columns) for shard in range(len(self.manifest["shards"])))

    def _read(self, shard: int, columns: tuple[str, ...]) -> pa.Table:
        return storage.read_table(str(storage.join(self.path, self.manifest["shards"][shard]["file"])), columns)


def _reopened(path: Place, fingerprint: str, _: str | None) -> Prepared:
    """Open a dataset that another process has pickled. Raises `UserError` if it was prepared again in the meantime."""
    prepared = Prepared.open(path)
    if prepared.fingerprint != fingerprint:
        change = f"its fingerprint was {fingerprint[:12]} and is {prepared.fingerprint[:12]}"
        raise UserError("data.path", f"{path} was prepared again while it was in use: {change}", "start again")
    return prepared


def _absolute(file: str) -> bool:
    return file.startswith("/") or storage.is_remote(file)
