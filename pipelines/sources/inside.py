"""Which files data may name: those below the source's own folder, unless its settings say otherwise.

A table, a list or a folder from somebody else may name any file that this machine's user can read (`/etc/passwd`, `../..`, a
link), and what is read ends up in a dataset. Images of the web are another matter: `http.py` says which hosts are asked.
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
_FOLDERS = 4096  # whose links are known, per process


def is_inside(file: str, root: Place) -> bool:
    """Whether a file lies below a folder, links followed; what is on the web belongs to no folder, and counts as inside."""
    if is_web(file):
        return True
    if is_remote(file) or isinstance(root, str):
        return file.startswith(f"{root}/") and not {".", ".."} & set(file[len(str(root)) :].split("/"))
    path = Path(file.removeprefix("file://"))
    return any(_is_below(_real(path), bound) for bound in _bounds(str(root)))


def link_out(names: Iterable[str], folder: Place) -> str:
    """Of files that were found below a folder, what is wrong with the first that is a link out of it; empty where none is."""
    found = next((name for name in names if not is_inside(str(join(folder, name)), folder)), None)
    return f"{found} is a link out of {shown_place(folder)}; pass source.outside=true to follow such links" if found else ""


def _real(path: Path) -> str:
    """The path without links. Of files in one folder only the last part is looked at."""
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
