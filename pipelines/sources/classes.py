"""Images in one folder per class, `dogs/rex.jpg`: the folder's name is the class, and templates turn it into captions.

Images may be any number of folders below that of their class. Every image is a group of its own, so that every split has images
of a class. A folder without images is no class, since an object store does not list it at all. A file that is not named like an
image is rejected as unknown_file, unless an image beside it has its stem.
"""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any, Literal

from pydantic import Field, field_validator

from pipelines.dataset.image_formats import EXTENSIONS, is_image
from pipelines.io import storage
from pipelines.io.image_bytes import Location
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded, lines_of
from pipelines.sources.base import UNKNOWN_FILE, Pair, Rejected, Source, Unit, unknown_files
from pipelines.sources.inside import REASON, Outside, link_out
from pipelines.sources.rows import title_of

_ROWS_PER_UNIT = 256


class ClassesSource(Source):
    """Images in one folder per class, with captions made of the class's name."""

    name: Literal["classes"]
    path: Place = Field(description="the folder that has one folder per class")
    templates: tuple[str, ...] = Field(
        ("a photo of a {}.",), min_length=1, description="captions of every image; {} or {c} is the class's name"
    )
    label: str = Field("class", min_length=1, description="name of the label whose value is the class's folder")
    names: Place | None = Field(
        None,
        description="file with the classes' names: JSON {folder: name}, or lines of a folder, a space and its name;"
        " null: the folders' names, with spaces for - and _",
    )
    extensions: tuple[str, ...] = Field(
        EXTENSIONS, description="of images; with your own list, other files are ignored, not counted"
    )
    exclude: tuple[str, ...] = Field((), description="patterns of paths to leave out, such as */masks/*")
    outside: Outside = False

    @field_validator("templates")
    @classmethod
    def _has_placeholder(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{}" not in template and "{c}" not in template:
                raise ValueError(f"{template!r} has no {{}} for the class's name; write, for example, 'a photo of a {{}}.'")
        return templates

    def title(self) -> str:
        return self.dataset or title_of(str(self.path))

    def units(self) -> list[Unit]:
        files = storage.data_below(self.path)
        # Folder by folder: a plain sort would put a.b/x before a/x.
        names = [
            name
            for name in sorted(files, key=lambda name: name.split("/"))
            if not any(fnmatch(name, pattern) for pattern in self.exclude)
        ]
        images = [name for name in names if is_image(name, self.extensions)]
        if not images:
            problem = f"there are no images ({', '.join(self.extensions)}) in {self.path}"
            raise UserError("source.path", problem, "check source.path, source.extensions and source.exclude")
        class_names = self._names({folder for name in images if (folder := _folder(name))})
        rows = [[name, class_names.get(_folder(name), ""), files[name].size, files[name].changed] for name in images]
        rows += [[name, None, 0, 0] for name in unknown_files(names, images, self.extensions)]
        chunks = [rows[start : start + _ROWS_PER_UNIT] for start in range(0, len(rows), _ROWS_PER_UNIT)]
        return [Unit(data=chunk, rows=len(chunk)) for chunk in chunks]

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        for name, class_name, *_ in unit:
            path, folder = str(storage.join(self.path, name)), _folder(name)
            if class_name is None:
                yield Rejected(name, path, "unknown_file", UNKNOWN_FILE)
                continue
            if not folder:
                yield Rejected(name, path, "no_class", "not in the folder of a class")
                continue
            if (link := link_out((name,), self.path)) and not self.outside:
                yield Rejected(name, path, REASON, link)
                continue
            captions = [template.replace("{c}", "{}").replace("{}", class_name) for template in self.templates]
            yield Pair(name, path, Location(path), captions, group=name, labels={self.label: folder})

    def _names(self, folders: set[str]) -> dict[str, str]:
        """The name of each folder's class. Raises `UserError`."""
        if self.names is None:
            return {folder: " ".join(folder.replace("-", " ").replace("_", " ").split()) or folder for folder in folders}
        names = _read_names(self.names)
        unnamed = sorted(folder for folder in folders if not names.get(folder, "").strip())
        if unnamed:
            problem = f"{self.names} has no name for the folder '{unnamed[0]}' of {self.path} ({len(unnamed)} such folders)"
            raise UserError("source.names", problem, f"add it, or pass source.exclude=['{unnamed[0]}/*']")
        return names


def _folder(name: str) -> str:
    """The folder of an image's class; empty for an image outside any."""
    return name.partition("/")[0] if "/" in name else ""


def _read_names(path: Place) -> dict[str, str]:
    """{folder: name}, from a JSON object or from lines. Raises `UserError`."""
    try:
        text = decoded(storage.read(path))
        if not str(path).endswith(".json"):
            words = [line.split(maxsplit=1) for line in lines_of(text)]
            return {folder: name[0].strip() for folder, *name in filter(None, words) if name}
        names = json.loads(text)
    except (Missing, ValueError) as error:
        raise UserError("source.names", f"{path} cannot be read: {error}", "check the file") from None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError("source.names", f"{path} is not a JSON object of names", 'write {"folder": "name"}')
    return names
