"""What a node keeps of stores on its own disk: copies of runs and stored features, in the user's cache, bounded."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.io.artifacts import cache_folder
from pipelines.program.settings_base import digest

_MOST = 40 << 30  # bytes of each kind
_USED = ".used"  # locked by a process that must not lose its copy


def copy_of(kind: str, uri: str) -> Path:
    """The folder for this node's copy of what is at a URI. `kind`: of copies that are bounded together."""
    return cache_folder() / kind / digest(uri)[:16]


@contextmanager
def alone(copy: Path) -> Iterator[None]:
    """One process of the node at a time; older copies go if all together are too large."""
    copy.mkdir(parents=True, exist_ok=True)
    with (copy / ".copying").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    _make_room(copy)


@contextmanager
def used(copy: Path) -> Iterator[None]:
    """The copy stays in the block, and is this process's. Raises `BlockingIOError` if it is another's."""
    copy.mkdir(parents=True, exist_ok=True)
    with (copy / _USED).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _make_room(wanted: Path) -> None:
    """Delete the copies that were not used for longest, and are not in use, until the others are small enough."""
    copies = sorted((path for path in wanted.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in copies}
    for path in copies:
        if sum(sizes.values()) <= _MOST:
            return
        if path != wanted:
            try:
                with used(path):
                    shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                continue
            del sizes[path]
