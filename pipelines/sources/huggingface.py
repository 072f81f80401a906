"""Hugging Face folders: written by `save_to_disk`, a snapshot of a dataset from the hub, or an imagefolder with metadata.

`save_to_disk`: Arrow files in the order of state.json, in one folder per split if there are several.
Snapshot: Parquet files whose name, or that of a folder above, begins with the split: `data/train-00000-of-00004.parquet`.
Imagefolder: metadata.csv or metadata.jsonl, with a column `file_name`. If no folder is named like the split, the file at the top
is read, with all its rows.
"""

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from pipelines.io import storage
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.sources import arrow, configurations, parquet, rows
from pipelines.sources.base import Pair, Rejected, Unit
from pipelines.sources.columns import ColumnsSource
from pipelines.sources.json_lists import JsonSource
from pipelines.sources.table import TableSource

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_METADATA = ("metadata.csv", "metadata.jsonl")
_ENDINGS = (*_METADATA, ".parquet")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_ALL = "all"


class HuggingFaceSource(ColumnsSource):
    """Rows of a folder in a layout of the package `datasets`."""

    name: Literal["huggingface"]
    path: Place = Field(description="the folder: of save_to_disk, a snapshot with Parquet files, or an imagefolder with metadata")
    config: str | None = Field(
        None, description="which configuration of a snapshot to read, if it has several; by README.md, or folders above splits"
    )
    split: str = Field("train", min_length=1, description="which split to read, or all; without effect if a dataset has none")

    def title(self) -> str:
        return self.dataset or rows.title_of(str(self.path))

    def units(self) -> list[Unit]:
        files = [(file, str(PurePosixPath(name).with_suffix(""))) for name, file in self._files().items()]
        units = rows.units_of_files(files, self._units_of, "path")
        if not units:
            raise UserError("source.path", f"there are no rows of split '{self.split}' in {self.path}", "check source.split")
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
        return self._metadata(file.path).units_of(file, prefix)

    def _metadata(self, file: str) -> TableSource | JsonSource:
        """The source that reads an imagefolder's metadata."""
        keys = {key: getattr(self, key) for key in ("caption", "label", "group", "key", "root", "outside")}
        image = self.image or "file_name"
        if file.endswith(".csv"):
            return TableSource(name="table", paths=(file,), image=image, **keys)
        return JsonSource(name="json", paths=(file,), image=image, layout="lines", **keys)

    def _files(self) -> dict[str, File]:
        """The files that hold the rows, in order, by relative path. Raises `UserError`."""
        below = storage.data_below(self.path)
        if not below:
            raise UserError("source.path", f"{self.path} is not a folder with files", "pass source.path=FOLDER")
        if self.config is not None and (_SPLITS in below or _STATE in below):
            problem = f"{self.path} was saved by save_to_disk and has no configuration '{self.config}'"
            raise UserError("source.config", problem, "pass source.config=null")
        if _SPLITS in below:
            return self._saved(below, [f"{split}/" for split in self._chosen(_document(below[_SPLITS], "splits"))])
        if _STATE in below:
            return self._saved(below, [""])
        below = self._configured(below)
        for kinds, at_top in ((_METADATA, _METADATA), ((".parquet",), ())):
            candidates = {name: file for name, file in below.items() if _is_one_of(name, kinds)}
            if candidates:
                chosen = {name: file for name, file in candidates.items() if self.split == _ALL or _is_of(name, self.split)}
                chosen = chosen or {name: file for name, file in candidates.items() if name in at_top}
                if not chosen:
                    problem = f"no file of {self.path} is named like '{self.split}', only {', '.join(list(candidates)[:5])}"
                    raise UserError("source.split", problem, "pass source.split=all to read all files")
                self._check_one({configurations.by_folder(name, self.split) for name in chosen} - {self.config})
                return chosen
        problem = (
            f"{self.path} is not a Hugging Face folder: it has no {_STATE}, {_SPLITS}, .parquet file or {' or '.join(_METADATA)}"
        )
        raise UserError("source.path", problem, "check the path, or choose another source.name")

    def _configured(self, files: dict[str, File]) -> dict[str, File]:
        """The files of the chosen configuration; all files if the dataset has no configurations. Raises `UserError`."""
        readme = files.get("README.md")
        listed = configurations.by_readme(storage.read(readme.path).decode("utf-8", "replace")) if readme else {}
        listed = {
            name: patterns for name, patterns in listed.items() if any(configurations.matches(file, patterns) for file in files)
        }
        if self.config is None:
            self._check_one(set(listed))
            return files
        patterns = listed.get(self.config, [f"{self.config}/**"] if not listed else [])
        chosen = {name: file for name, file in files.items() if configurations.matches(name, patterns)}
        if not chosen:
            folders = {configurations.by_folder(name, self.split) for name in files if _is_one_of(name, _ENDINGS)}
            names = sorted(listed or folders - {""})
            remedy = f"choose one of: {', '.join(names)}" if names else "pass source.config=null"
            raise UserError("source.config", f"{self.path} has no configuration '{self.config}'", remedy)
        return chosen

    def _check_one(self, configs: set[str]) -> None:
        if len(configs) > 1:
            names = sorted(name or "(top)" for name in configs)
            problem = f"{self.path} has several configurations: {', '.join(names)}"
            raise UserError("source.config", problem, f"choose one, for example source.config={names[-1]}")

    def _chosen(self, splits: list[str]) -> list[str]:
        if self.split == _ALL:
            return splits
        if self.split not in splits:
            remedy = f"choose one of: {', '.join([*splits, _ALL])}"
            raise UserError("source.split", f"{self.path} has no split '{self.split}'", remedy)
        return [self.split]

    def _saved(self, below: dict[str, File], folders: list[str]) -> dict[str, File]:
        """The Arrow files that the state.json of each of these folders lists. Raises `UserError`."""
        files: dict[str, File] = {}
        for folder in folders:
            if f"{folder}{_STATE}" not in below:
                raise UserError("source.path", f"there is no {folder}{_STATE} in {self.path}", "save the dataset again")
            for entry in _document(below[f"{folder}{_STATE}"], "_data_files"):
                name = f"{folder}{entry['filename']}"
                if name not in below:
                    problem = f"{folder}{_STATE} lists {name}, which is not in {self.path}"
                    raise UserError("source.path", problem, "copy the whole folder")
                files[name] = below[name]
        return files


def _document(file: File, key: str) -> list[Any]:
    """The list of this name in a JSON file. Raises `UserError`."""
    try:
        entries = json.loads(storage.read(file.path))[key]
        if isinstance(entries, list):
            return entries
    except (Missing, ValueError, LookupError, TypeError):
        pass
    problem = f"{file.path} is not as save_to_disk writes it: it has no list '{key}'"
    raise UserError("source.path", problem, "save the dataset again")


def _is_one_of(name: str, kinds: tuple[str, ...]) -> bool:
    return storage.name_of(name) in kinds or PurePosixPath(name).suffix in kinds


def _is_of(name: str, split: str) -> bool:
    """Whether a file belongs to a split, by its own name or a folder's."""
    *folders, stem = PurePosixPath(name).with_suffix("").parts
    shard = _SHARD.match(stem)
    if shard:
        return shard[1] == split
    return any(re.match(rf"{re.escape(split)}(?![a-zA-Z0-9])", part) for part in (*folders, stem))
