"""A folder of Hugging Face's: what `save_to_disk` wrote, a snapshot of a dataset from the hub, or an imagefolder with metadata.

Saved with `save_to_disk`: Arrow files in the order of state.json, below a folder for each split where there are several.
A snapshot: Parquet files whose name, or a folder's, begins with the split: `data/train-00000-of-00004.parquet`.
An imagefolder: metadata.csv or metadata.jsonl, with a column `file_name`. Where no folder is named like the split, the one at
the top is taken, with all its rows.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from pipelines.io import storage
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.sources import arrow, configurations, parquet, rows
from pipelines.sources.base import Pair, Rejected, Source, Unit
from pipelines.sources.columns import ColumnsSource
from pipelines.sources.json_lists import JsonSource
from pipelines.sources.rows import Unreadable
from pipelines.sources.table import TableSource

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_METADATA = ("metadata.csv", "metadata.jsonl")
_KINDS = (*_METADATA, ".parquet")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_ALL = "all"


class HuggingFaceSource(ColumnsSource):
    """Rows of a folder that the package `datasets` wrote or reads."""

    name: Literal["huggingface"]
    path: Place = Field(description="the folder: of save_to_disk, a snapshot with Parquet files, or an imagefolder with metadata")
    config: str | None = Field(
        None, description="which configuration of a snapshot to take, where it has several; by README.md, or folders above splits"
    )
    split: str = Field("train", min_length=1, description="which split to take, or all; a saved dataset without splits is one")

    def title(self) -> str:
        return self.dataset or rows.title_of(str(self.path))

    def units(self) -> list[Unit]:
        files = [(file, str(PurePosixPath(name).with_suffix(""))) for name, file in self._files().items()]
        units = rows.units_of_files(files, self._units_of, "path")
        if not units:
            raise UserError(f"source.path: there are no rows of split '{self.split}' in {self.path}; check source.split")
        return units

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        file = unit["file"]
        if "damage" in unit:
            yield Rejected(unit["prefix"], file, "unreadable_file", unit["damage"])
        elif file.endswith(".parquet"):
            yield from parquet.read_unit(self, "path", unit, images)
        elif storage.name_of(file) in _METADATA:
            yield from self._metadata(file).read(unit, images)
        else:
            yield from arrow.read_unit(self, "path", unit, images)

    def _units_of(self, file: File, prefix: str) -> list[Unit]:
        if file.path.endswith(".parquet"):
            return parquet.units_of(self, file, prefix)
        if storage.name_of(file.path) not in _METADATA:
            return arrow.units_of(self, file, prefix)
        try:
            found = self._metadata(file.path).units()
        except UserError as error:
            # It names a setting of the source that reads the file.
            key, _, problem = str(error).partition(": ")
            raise Unreadable(problem.removeprefix(f"{file.path} "), key.removeprefix("source.")) from None
        return [replace(unit, data={**unit.data, "prefix": prefix}) for unit in found]

    def _metadata(self, file: str) -> Source:
        """What reads an imagefolder's metadata."""
        keys = {key: getattr(self, key) for key in ("caption", "label", "group", "key", "root", "outside")}
        image = self.image or "file_name"
        if file.endswith(".csv"):
            return TableSource(name="table", paths=(file,), image=image, **keys)
        return JsonSource(name="json", paths=(file,), image=image, layout="lines", **keys)

    def _files(self) -> dict[str, File]:
        """The files that hold the rows, in order, by their path in the folder. Raises `UserError`."""
        below = storage.data_below(self.path)
        if not below:
            raise UserError(f"source.path: {self.path} is not a folder with files; pass source.path=FOLDER")
        if self.config is not None and (_SPLITS in below or _STATE in below):
            raise UserError(f"source.config: {self.path} was saved by save_to_disk and has no configurations; leave it null")
        if _SPLITS in below:
            return self._saved(below, [f"{split}/" for split in self._chosen(_document(below[_SPLITS], "splits"))])
        if _STATE in below:
            return self._saved(below, [""])
        below = self._configured(below)
        for kinds, at_top in ((_METADATA, _METADATA), ((".parquet",), ())):
            found = {name: file for name, file in below.items() if _is_one_of(name, kinds)}
            if found:
                taken = {name: file for name, file in found.items() if self.split == _ALL or _is_of(name, self.split)}
                taken = taken or {name: file for name, file in found.items() if name in at_top}
                if not taken:
                    names = ", ".join(list(found)[:5])
                    raise UserError(
                        f"source.split: no file of {self.path} is named like '{self.split}'; there are: {names}; pass"
                        " source.split=all for all of them"
                    )
                self._check_one({configurations.by_folder(name, self.split) for name in taken} - {self.config})
                return taken
        raise UserError(
            f"source.path: {self.path} is no folder of Hugging Face's: there is no {_STATE}, no {_SPLITS}, no .parquet file, and"
            f" no {' or '.join(_METADATA)}; check the path, or choose another source.name"
        )

    def _configured(self, files: dict[str, File]) -> dict[str, File]:
        """Files of the configuration that is asked for; all, where nobody knows of configurations. Raises `UserError`."""
        readme = files.get("README.md")
        named = configurations.by_readme(storage.read(readme.path).decode("utf-8", "replace")) if readme else {}
        named = {
            name: patterns for name, patterns in named.items() if any(configurations.matches(file, patterns) for file in files)
        }
        if self.config is None:
            self._check_one(set(named))
            return files
        patterns = named.get(self.config, [f"{self.config}/**"] if not named else [])
        found = {name: file for name, file in files.items() if configurations.matches(name, patterns)}
        if not found:
            folders = {configurations.by_folder(name, self.split) for name in files if _is_one_of(name, _KINDS)}
            names = ", ".join(sorted(named or folders - {""})) or "none"
            raise UserError(f"source.config: {self.path} has no configuration '{self.config}'; it has: {names}")
        return found

    def _check_one(self, configs: set[str]) -> None:
        if len(configs) > 1:
            names = sorted(name or "(top)" for name in configs)
            one = f"pass one of them, such as source.config={names[-1]}"
            raise UserError(f"source.config: {self.path} has several configurations: {', '.join(names)}; {one}")

    def _chosen(self, splits: list[str]) -> list[str]:
        if self.split == _ALL:
            return splits
        if self.split not in splits:
            raise UserError(f"source.split: {self.path} has no split '{self.split}'; it has: {', '.join(splits)}")
        return [self.split]

    def _saved(self, below: dict[str, File], folders: list[str]) -> dict[str, File]:
        found: dict[str, File] = {}
        for folder in folders:
            if f"{folder}{_STATE}" not in below:
                raise UserError(f"source.path: there is no {folder}{_STATE} in {self.path}; save the dataset again")
            for entry in _document(below[f"{folder}{_STATE}"], "_data_files"):
                name = f"{folder}{entry['filename']}"
                if name not in below:
                    raise UserError(
                        f"source.path: {folder}{_STATE} lists {name}, which is not in {self.path}; copy the folder whole"
                    )
                found[name] = below[name]
        return found


def _document(file: File, key: str) -> list[Any]:
    """The list of this name in a JSON file. Raises `UserError`."""
    try:
        found = json.loads(storage.read(file.path))[key]
        if isinstance(found, list):
            return found
    except (Missing, ValueError, LookupError, TypeError):
        pass
    raise UserError(f"source.path: {file.path} is not as save_to_disk writes it: it has no list '{key}'; save the dataset again")


def _is_one_of(name: str, kinds: tuple[str, ...]) -> bool:
    return storage.name_of(name) in kinds or PurePosixPath(name).suffix in kinds


def _is_of(name: str, split: str) -> bool:
    """Whether a file belongs to a split, by its name or a folder's."""
    *folders, stem = PurePosixPath(name).with_suffix("").parts
    shard = _SHARD.match(stem)
    if shard:
        return shard[1] == split
    return any(re.match(rf"{re.escape(split)}(?![a-zA-Z0-9])", part) for part in (*folders, stem))
