"""Which files data may refer to: those below the source's own folder, unless its settings allow others.

A table, a list or a folder from a third party may refer to any file that the user can read (`/etc/passwd`, `../..`, a link), and
its content would end up in a dataset. For images on the web, `http.py` decides which hosts are contacted.
"""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.io.http import is_web
from pipelines.io.retry import is_remote, shown_place
from pipelines.io.storage import join
from pipelines.program.path_keys import Place

REASON = "outside_root"
Outside = Annotated[
    bool, Field(description="whether files may lie anywhere that you can read: by absolute paths, .. and links out of the folder")
]
_FOLDERS = 4096  # whose resolved links are cached, per process


def is_inside(file: str, root: Place) -> bool:
    """Whether a file lies below a folder after following links; a URL of the web counts as inside."""
    if is_web(file):
        return True
    if is_remote(file) or isinstance(root, str):
        return file.startswith(f"{root}/") and not {".", ".."} & set(file[len(str(root)) :].split("/"))
    path = Path(file.removeprefix("file://"))
    return any(_is_below(_real(path), bound) for bound in _bounds(str(root)))


def link_out(names: Iterable[str], folder: Place) -> str:
    """A message about the first of the files below a folder that is a link out of it; empty if none is."""
    link = next((name for name in names if not is_inside(str(join(folder, name)), folder)), None)
    return f"{link} is a link out of {shown_place(folder)}; pass source.outside=true to follow such links" if link else ""


def _real(path: Path) -> str:
    """The path with links resolved; the folder's are resolved once."""
    if path.name in ("", ".."):
        return os.path.realpath(path)
    whole = Path(_real_folder(str(path.parent)), path.name)
    return os.path.realpath(whole) if whole.is_symlink() else str(whole)


@functools.lru_cache(maxsize=_FOLDERS)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


@functools.lru_cache(maxsize=_FOLDERS)
def _bounds(root: str) -> tuple[str, ...]:
    real = os.path.realpath(root)
    # The hub's cache: datasets--NAME/snapshots/REVISION/... are links to files in datasets--NAME/blobs.
    parts = Path(real).parts
    if "snapshots" in parts:
        return real, str(Path(*parts[: parts.index("snapshots")], "blobs"))
    return (real,)


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder.rstrip('/')}/")
