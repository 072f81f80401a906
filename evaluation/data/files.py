"""Images in files: where each is, its bytes when it is asked for, and nothing else in memory."""

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
    """Images that are files below a folder."""

    key: str
    folder: Place
    names: tuple[str, ...]  # below the folder
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def location(self, index: int) -> Location:
        """Where the encoded image is."""
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
                raise UserError(
                    f"{self.key}: the image {self.name(index)} in {self.folder} cannot be used: {bad.reason}, {bad.detail}; "
                    "scores need every image: put a whole one there"
                ) from None


def files_in(folder: Place, key: str, wanted: str) -> dict[str, File]:
    """Files below a folder by their names from there, sorted folder by folder, without hidden ones. Raises `UserError`.

    Args:
        wanted: what belongs there, for the error.
    """
    if is_web(folder):
        raise UserError(f"{key}: {folder} is on the web, and nothing is downloaded here; fetch it, and give its folder")
    try:
        files = storage.data_below(folder)
    except UserError as error:  # of a URI that nobody here can read
        raise UserError(f"{key}: {error}") from None
    if not files:
        state = "holds no files" if storage.exists(folder) else "does not exist"
        raise UserError(f"{key}: {folder} {state}; put there: {wanted}")
    strange = next((name for name in files if not is_text(name)), None)
    if strange is not None:
        raise UserError(f"{key}: the name of {shown(strange)} in {folder} is not UTF-8; rename it")
    # As people sort them, and as a walk through the folders finds them.
    return {name: files[name] for name in sorted(files, key=lambda name: name.split("/"))}


def changes(names: Iterable[str], files: dict[str, File]) -> Iterator[list[Any]]:
    """What of each file goes into a fingerprint."""
    return ([name, files[name].size, files[name].changed] for name in names)


def fingerprint(rows: Iterable[Any]) -> str:
    """32 hex digits of any JSON-able values, in order."""
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        found.update(json.dumps(row).encode() + b"\n")
    return found.hexdigest()


def read_text(path: Place, key: str, wanted: str) -> str:
    """A text file, without a byte order mark. Raises `UserError` where it is missing or no UTF-8."""
    try:
        return decoded(storage.read(path))
    except Missing as missing:
        raise UserError(f"{key}: {path} cannot be read: {missing}; put there: {wanted}") from None
    except ValueError as error:
        raise UserError(f"{key}: {path} is not UTF-8: {error}; save it as such") from None
