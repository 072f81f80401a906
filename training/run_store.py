"""A run in an object store: `storage: s3://bucket/runs`. No disk is shared.

The store has what a run's folder on a disk has, under the same names. Each node has a working copy in its user's cache:

- On the driver's node the program works on it as on any run's folder, and so does Ray Train's controller, which runs there too;
  whatever has to outlive the node is put into the store at once, by the functions below. They do nothing for a run on a disk.
- Ray Train keeps its list of checkpoints in the store, and the worker that saves puts the checkpoint there.
- Other nodes copy what they read, `opened`, and check it by its digests.

A sweep is kept in the same way (`tuning.trials`), and each of its trials is a run whose working copy is where it trains.

Objects cannot be appended to, so a growing file X is stored as X.parts/000000 and so on, and as a whole once the run has ended.
Of a folder with digests these are sent last, so one without them is incomplete.
"""

import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipelines.io import node_cache, storage
from pipelines.io.http import is_web
from pipelines.io.patient import outlast, system_of
from pipelines.io.retry import Missing, shown_place
from pipelines.program.errors import UserError
from pipelines.program.ray_internals import SNAPSHOT
from training.checkpoint_registry import DIGESTS, KEPT_LIST, NEWEST, TESTED, changed, newest_checkpoint, registered

_CHECKPOINT = re.compile(r"checkpoint_[0-9]+|best")
HELD = "placement_group"  # of `training.placement`, which imports Ray; it stays on this node
NOTE = ".raylign-place"  # beside a working copy: the URI
_DEPTH = 3  # folders above one that has this beside it: a trial's of a sweep, SWEEP/trials/NAME
_PART = 1 << 18  # bytes
PARTS = ".parts"
NEW = ".partial"
_AT_ONCE = 16  # requests
_LOOKS = 5  # at a store that changes meanwhile
_UNUSED = 600.0  # seconds after which a copy of a checkpoint is deleted, once another one is read


@dataclass(frozen=True)
class RunStore:
    """A run's place in a store, the same on every node."""

    uri: str

    @property
    def folder(self) -> Path:
        """This node's working copy."""
        return node_cache.copy_of("runs", self.uri) / storage.name_of(self.uri)

    def make(self) -> None:
        """Create the working copy's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder.parent / NOTE).write_text(self.uri)

    def at(self, name: str) -> str:
        """The URI of a file or folder of the run."""
        return f"{self.uri}/{name}"

    def files(self, name: str = "") -> dict[str, storage.File]:
        """The files below a folder of the run, or of all of it, by their relative paths, sorted; without hidden ones."""
        return outlast(lambda: storage.data_below(self.at(name) if name else self.uri))

    def read(self, name: str) -> bytes:
        """A file's content. Raises `Missing`."""
        return outlast(lambda: storage.read(self.at(name)))

    def drop(self, name: str) -> None:
        """Delete a file or folder, if it is there."""
        outlast(lambda: storage.delete(self.at(name)))

    def put(self, file: Path, name: str) -> None:
        """Upload a file."""
        outlast(lambda: storage.send(file, self.at(name)))

    def put_folder(self, folder: Path, name: str) -> None:
        """Upload a folder with digests, these last."""
        files = [path for path in sorted(folder.iterdir()) if path.name != DIGESTS]
        for file in [*files, folder / DIGESTS]:
            self.put(file, f"{name}/{file.name}")

    def get(self, name: str, to: Path) -> None:
        """Download a file. Raises `Missing`."""
        aside = _aside(to)
        aside.parent.mkdir(parents=True, exist_ok=True)
        outlast(lambda: storage.receive(self.at(name), aside))
        aside.replace(to)

    def get_grown(self, name: str, files: Mapping[str, storage.File], to: Path) -> None:
        """Download a file, also one that grows, with its time; nothing if it is not among `files`. Raises `Missing`."""
        parts = [part for part in files if part.startswith(f"{name}{PARTS}/")]
        if name in files:
            self.get(name, to)
            if (time_of := files[name].changed) > 0:  # 0: unknown
                os.utime(to, ns=(time_of, time_of))
        elif parts:
            aside = _aside(to)
            aside.write_bytes(b"".join(self.read(part) for part in parts))
            aside.replace(to)

    def get_folder(self, name: str) -> Path:
        """Download a folder into the working copy, unless that has it as the store has it; it may be damaged there."""
        local = self.folder / name
        with self._alone():
            try:
                wanted = self.read(f"{name}/{DIGESTS}")
            except Missing:
                wanted = None
            has_it = wanted is not None and (local / DIGESTS).exists() and (local / DIGESTS).read_bytes() == wanted
            if has_it and changed(local) is None:
                os.utime(self.folder.parent)
                return local
            aside = local.with_name(f"{local.name}.partial-{os.getpid()}")
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            for path in self.files(name):
                self.get(f"{name}/{path}", aside / path)
            shutil.rmtree(local, ignore_errors=True)
            aside.rename(local)
        return local

    def opened(self, name: str) -> Path:
        """A folder with digests, such as `best`, on this node's disk. Raises `UserError` if it is damaged, or not there."""
        local = self.get_folder(name)
        if (what := changed(local)) is not None:
            remedy = "give another checkpoint, or copy it again"
            raise UserError("checkpoint", f"{shown_place(self.at(name))} is damaged: {what}", remedy)
        os.utime(local)
        for other in self.folder.glob("checkpoint_*"):
            if other.is_dir() and time.time() - other.stat().st_mtime > _UNUSED:
                shutil.rmtree(other, ignore_errors=True)
        return local

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process of a node at a time."""
        self.make()
        with node_cache.alone(self.folder.parent):
            yield


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial-{os.getpid()}-{threading.get_ident()}")


def store_of(folder: Path) -> RunStore | None:
    """The place in a store of which a folder is this node's working copy, or a part of it; None for one on a disk."""
    for above in folder.parents[:_DEPTH]:
        try:  # not by its path: a process that Ray started may have another cache
            uri = (above / NOTE).read_text()
        except FileNotFoundError:
            continue
        return RunStore("/".join([uri, *folder.relative_to(above).parts[1:]]))
    return None


def place_of(folder: Path) -> Path | str:
    """Where a run or a sweep is: its URI, or its folder."""
    store = store_of(folder)
    return folder if store is None else store.uri


def ray_options(place: Path | str) -> dict[str, Any]:
    """Where Ray Train or Tune keeps its files, for its `RunConfig`: in a folder, or a URI in a store."""
    if isinstance(place, Path):
        return {"name": place.name, "storage_path": str(place.parent)}
    system, inside = system_of(place)
    folder, _, name = inside.rpartition("/")
    return {"name": name, "storage_path": folder, "storage_filesystem": system}


def opened_run(uri: str) -> Path:
    """This node's copy of a run's newest checkpoint, or of the one that the URI names, beside the towers that it needs.

    Raises `UserError` if it is damaged, or not there.
    """
    uri = uri.rstrip("/")
    if is_web(uri):
        raise UserError("checkpoint", f"{shown_place(uri)} is on the web, where files cannot be listed", "copy it to a disk")
    named = _CHECKPOINT.fullmatch(storage.name_of(uri))
    store = RunStore(uri.rpartition("/")[0] if named else uri)
    files = store.files()
    for name in {NEWEST, KEPT_LIST, SNAPSHOT, TESTED} & files.keys():
        store.get(name, store.folder / name)
    if not named and not registered(store.folder):
        remedy = "give a run, or one checkpoint_... or best inside it"
        raise UserError("checkpoint", f"{shown_place(uri)} holds no finished checkpoint", remedy)
    for name in files:
        if name.startswith("towers/") and name.endswith(f"/{DIGESTS}"):
            store.opened(name.rpartition("/")[0])
    return store.opened(storage.name_of(uri) if named else newest_checkpoint(store.folder).name)


@contextmanager
def looked_at(uri: str, names: Collection[str]) -> Iterator[Path]:
    """A temporary folder with files of a run, or in a folder each those of all runs below a URI, as the store has them now.

    Args:
        names: of the files. Growing ones are there as a whole, and all have the times of the store.
    """
    if is_web(uri):
        raise UserError(shown_place(uri), "is on the web, where files cannot be listed", "copy it to a disk")
    with tempfile.TemporaryDirectory(prefix="raylign-") as folder:
        for left in reversed(range(_LOOKS)):
            try:
                _look(uri, names, Path(folder))
                break
            except Missing:  # replaced since it was listed
                if not left:
                    raise
        yield Path(folder)


def _look(uri: str, names: Collection[str], folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    parts: dict[str, list[storage.File]] = {}
    wholes: dict[str, list[storage.File]] = {}
    for file in storage.files_below(uri):
        name = file.path[len(uri) :].lstrip("/")
        above = name.rpartition("/")[0]
        whole = above.removesuffix(PARTS) if above.endswith(PARTS) else name
        run, _, own = whole.rpartition("/")
        if own in names and "/" not in run and not run.startswith("."):
            (wholes if whole == name else parts).setdefault(whole, []).append(file)

    def get(name: str, files: list[storage.File]) -> None:
        copy = folder / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(b"".join(storage.read(file.path) for file in files))
        os.utime(copy, ns=(files[-1].changed, files[-1].changed))

    found = parts | wholes
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(get, found.keys(), found.values()))


# --- the driver's and the controller's side ------------------------------------------------------------------------------------


def kept(folder: Path, *names: str) -> None:
    """Put files, or folders with digests, of the working copy into the store."""
    store = store_of(folder)
    if store is None:
        return
    for name in names:
        path = folder / name
        if path.is_dir() and name == "best":
            place_best(store, path)
        elif path.is_dir() and (path / DIGESTS).exists():
            store.put_folder(path, name)
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    store.put(file, str(file.relative_to(folder)))
        elif path.exists():
            store.put(path, name)


def place_best(store: RunStore, local: Path) -> None:
    """Replace `best`: the new one is complete beside it before it goes."""
    new = f"best{NEW}"
    store.drop(new)
    store.put_folder(local, new)
    store.drop("best")
    store.put_folder(local, "best")
    store.drop(f"{new}/{DIGESTS}")
    store.drop(new)


def fetched(folder: Path, *names: str) -> None:
    """Get files that other nodes have put into the store, also growing ones; a missing one is left out."""
    store = store_of(folder)
    if store is None:
        return
    files = store.files()
    try:
        for name in names:
            store.get_grown(name, files, folder / name)
    except Missing:  # the parts of a file that has become whole
        fetched(folder, *names)


def dropped(folder: Path, *patterns: str) -> None:
    """Delete from the store the files and folders of a run whose names match one of these."""
    store = store_of(folder)
    if store is None:
        return
    for name in {name.partition("/")[0] for name in store.files()}:
        if any(fnmatch(name, pattern) for pattern in patterns):
            store.drop(name)


def emptied(folder: Path) -> None:
    """Delete everything of the run in the store but its lease."""
    store = store_of(folder)
    if store is None:
        return
    for name in {name.partition("/")[0] for name in store.files()}:
        store.drop(name)


_sent: dict[Path, tuple[int, int]] = {}  # files that this process has appended to: inode, and bytes in the store


def appended(folder: Path, name: str) -> None:
    """Put what was appended to a file of the working copy into the store; all of it if it was written anew, or never sent."""
    store, path = store_of(folder), folder / name
    if store is None or not path.exists():
        return
    status = path.stat()
    inode, done = _sent.get(path, (0, 0))
    first = done // _PART if inode == status.st_ino and done <= status.st_size else 0
    with path.open("rb") as file:
        for number in range(first, (status.st_size + _PART - 1) // _PART):
            file.seek(number * _PART)
            data = file.read(_PART)
            _put_bytes(store.at(f"{name}{PARTS}/{number:06d}"), data)
    if inode != status.st_ino or done > status.st_size:
        last = (status.st_size + _PART - 1) // _PART
        for old in store.files(f"{name}{PARTS}"):
            if int(old) >= last:
                store.drop(f"{name}{PARTS}/{old}")
        store.drop(name)
    _sent[path] = status.st_ino, status.st_size


def _put_bytes(uri: str, data: bytes) -> None:
    def put() -> None:
        with storage.written(uri) as file:
            file.write_bytes(data)

    outlast(put)


def finished(folder: Path) -> None:
    """At a run's end: growing files as a whole, in place of their parts."""
    store = store_of(folder)
    if store is None:
        return
    names = {name.partition("/")[0] for name in store.files()}
    for parts in sorted(name for name in names if name.endswith(PARTS)):
        kept(folder, parts.removesuffix(PARTS))
        store.drop(parts)
