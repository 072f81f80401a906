"""Images in files, of which only the names stay in memory, and how readers list and read files."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pipelines.dataset.images import BadImage, decode
from pipelines.io import storage
from pipelines.io.http import is_web
from pipelines.io.image_bytes import Location, read_locations
from pipelines.io.retry import is_text, shown
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded


@dataclass(eq=False)
class FileImages:
    """Images in files below a folder."""

    key: str
    folder: Place
    names: tuple[str, ...]  # paths relative to the folder
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def location(self, index: int) -> Location:
        """The location of the encoded image."""
        return Location(str(storage.join(self.folder, self.names[index])))

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        """As of `base.Images`."""
        rows = [int(index) for index in indices]
        for index, data in zip(rows, read_locations([self.location(index) for index in rows]), strict=True):
            try:
                if isinstance(data, Missing):
                    raise BadImage("missing_image", str(data))
                yield decode(data)
            except BadImage as bad:
                problem = f"the image {self.name(index)} in {self.folder} cannot be used: {bad.reason}, {bad.detail}"
                raise UserError(self.key, problem, "replace it with a valid one: scores need every image") from None


def files_in(folder: Place, key: str, expected: str) -> dict[str, File]:
    """Files below a folder by relative path, sorted folder by folder, without hidden ones. Raises `UserError`.

    Args:
        expected: what belongs there, for the error.
    """
    if is_web(folder):
        problem = f"{folder} is on the web, and evaluation downloads nothing"
        raise UserError(key, problem, "download it, and give its folder")
    try:
        files = storage.data_below(folder)
    except UserError as error:  # no file system for such a URI
        raise UserError(key, f"{folder} cannot be read: {error.problem}", error.remedy) from None
    if not files:
        state = "holds no files" if storage.exists(folder) else "does not exist"
        raise UserError(key, f"{folder} {state}", f"put there: {expected}")
    undecodable = next((name for name in files if not is_text(name)), None)
    if undecodable is not None:
        raise UserError(key, f"the name of {shown(undecodable)} in {folder} is not UTF-8", "rename it")
    # By parts of the path, the order of a walk through the folders.
    return {name: files[name] for name in sorted(files, key=lambda name: name.split("/"))}


def changes(names: Iterable[str], files: dict[str, File]) -> Iterator[list[Any]]:
    """For fingerprints: name, size and time of change of each file."""
    return ([name, files[name].size, files[name].changed] for name in names)


def fingerprint(rows: Iterable[Any]) -> str:
    """32 hex digits of any JSON-able values, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def read_text(path: Place, key: str, expected: str) -> str:
    """A text file, without a byte order mark. Raises `UserError` where it is missing or not UTF-8."""
    try:
        return decoded(storage.read(path))
    except Missing as missing:
        raise UserError(key, f"{path} cannot be read: {missing}", f"put there: {expected}") from None
    except ValueError as error:
        raise UserError(key, f"{path} is not UTF-8: {error}", "save it as UTF-8") from None
