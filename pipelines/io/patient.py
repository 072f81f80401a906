"""Writing to a store that may be out of order for minutes: what has to be there waits for it, and goes on.

`retried` (retry.py) tells a store that fails now and then from a file that is missing, and gives up after two minutes. A run's
checkpoints, metrics and results wait longer: an outage pauses a run, and does not end it.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from pipelines.io import storage
from pipelines.io.retry import Unreachable, retried, shown

T = TypeVar("T")

# Seconds. Workers that wait for the one that saves give up after half an hour (Ray Train's timeout of collectives).
OUTAGE = 1200.0
_WAIT = 5.0  # between two rounds of attempts


def outlast(work: Callable[[], T]) -> T:
    """Do the work, and again while the store is unreachable, for `OUTAGE` seconds. Repeating it must change nothing."""
    started, told = time.monotonic(), False
    while True:
        try:
            return work()
        except Unreachable as error:
            if time.monotonic() - started > OUTAGE:
                raise
            if not told:
                print(f"waiting for the store: {shown(str(error))}", file=sys.stderr)
                told = True
            time.sleep(_WAIT)


def system_of(uri: str) -> tuple[pafs.FileSystem, str]:
    """A file system that outlasts an outage, for Ray, and the path inside it. Picklable: a node opens it for itself."""
    _, inside = storage.system_of(uri)
    return pafs.PyFileSystem(_Patient(uri.removesuffix(inside))), inside


class _Patient(pafs.FileSystemHandler):
    """`root`: the URI of the file system, before its own paths."""

    def __init__(self, root: str):
        self._root = root

    def __reduce__(self) -> tuple[Any, ...]:
        return _Patient, (self._root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patient) and other._root == self._root

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self._root)

    def _do(self, work: Callable[[pafs.FileSystem], T], path: str = "") -> T:
        system, _ = storage.system_of(self._root + path)
        return outlast(lambda: retried(lambda: work(system)))

    def get_type_name(self) -> str:
        return "raylign"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        return self._do(lambda system: system.get_file_info(paths), paths[0] if paths else "")

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        return self._do(lambda system: system.get_file_info(selector), selector.base_dir)

    def create_dir(self, path: str, recursive: bool) -> None:
        """A store has no folders: one is there as soon as it holds a file."""

    def delete_dir(self, path: str) -> None:
        outlast(lambda: storage.delete(self._root + path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        outlast(lambda: storage.delete(self._root + path))

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        outlast(lambda: storage.delete(self._root + path))

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def copy_file(self, src: str, dest: str) -> None:
        self._do(lambda system: system.copy_file(src, dest), src)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        def get() -> bytes:
            with system.open_input_stream(path) as file:
                return file.read()

        system, _ = storage.system_of(self._root + path)
        return pa.BufferReader(outlast(lambda: retried(get)))

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.PythonFile(_Upload(self._root + path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        raise NotImplementedError


class _Upload:
    """A file that is sent when it is closed."""

    def __init__(self, uri: str):
        self._uri, self._file = uri, tempfile.NamedTemporaryFile(prefix="raylign-")  # noqa: SIM115 - closed by `close`
        self.closed = False

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        with self._file:
            self._file.flush()
            outlast(lambda: storage.send(Path(self._file.name), self._uri))
