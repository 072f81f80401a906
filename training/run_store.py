"""A run in an object store: `storage: s3://bucket/runs`. No disk is shared.

The store has what a run's folder on a disk has, under the same names. Each node has a working copy in its user's cache:

- On the driver's node the program works on it as on any run's folder, and so does Ray Train's controller, which runs there too;
  whatever has to outlive the node is put into the store at once, by the functions below. They do nothing for a run on a disk.
- Ray Train keeps its list of checkpoints in the store, and the worker that saves puts the checkpoint there.
- Other nodes copy what they read, `opened`, and check it by its digests.

Objects cannot be appended to, so a growing file X is stored as X.parts/000000 and so on, and as a whole once the run has ended.
Of a folder with digests these are sent last, so one without them is incomplete.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.io import node_cache, storage
from pipelines.io.http import is_web
from pipelines.io.patient import outlast, system_of
from pipelines.io.retry import Missing, shown_place
from pipelines.program import path_keys
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.ray_internals import SNAPSHOT
from training.checkpoint_registry import DIGESTS, KEPT_LIST, NEWEST, changed, newest_checkpoint, registered
from training.lock import leased, taken

_CHECKPOINT = re.compile(r"checkpoint_[0-9]+|best")
HELD = "placement_group"  # of `training.placement`, which imports Ray; it stays on this node
_NOTE = ".raylign-place"  # beside a working copy: the URI
_PART = 1 << 18  # bytes
_PARTS = ".parts"
_NEW = ".partial"
_UNUSED = 600.0  # seconds after which a copy of a checkpoint is deleted, once another one is read


@dataclass(frozen=True)
class RunStore:
    """A run's place in a store, the same on every node."""

    uri: str

    @property
    def folder(self) -> Path:
        """This node's working copy."""
        return node_cache.copy_of("runs", self.uri) / storage.name_of(self.uri)

    def at(self, name: str) -> str:
        """The URI of a file or folder of the run."""
        return f"{self.uri}/{name}"

    def ray_options(self) -> dict[str, Any]:
        """Where Ray Train keeps its files, for its `RunConfig`."""
        system, inside = system_of(self.uri)
        folder, _, name = inside.rpartition("/")
        return {"name": name, "storage_path": folder, "storage_filesystem": system}

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
        aside = to.with_name(f"{to.name}.partial-{os.getpid()}")
        aside.parent.mkdir(parents=True, exist_ok=True)
        outlast(lambda: storage.receive(self.at(name), aside))
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
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder.parent / _NOTE).write_text(self.uri)
        with node_cache.alone(self.folder.parent):
            yield


def store_of(folder: Path) -> RunStore | None:
    """The store of which a folder is this node's working copy; None for a run on a disk."""
    try:  # not by its path: a process that Ray started may have another cache
        return RunStore((folder.parent / _NOTE).read_text())
    except FileNotFoundError:
        return None


def place_of(folder: Path) -> Path | str:
    """Where a run is: its URI, or its folder."""
    store = store_of(folder)
    return folder if store is None else store.uri


def opened_run(uri: str) -> Path:
    """This node's copy of a run's newest checkpoint, or of the one that the URI names, beside the towers that it needs.

    Raises `UserError` if it is damaged, or not there.
    """
    named = _CHECKPOINT.fullmatch(storage.name_of(uri))
    store = RunStore(uri.rpartition("/")[0] if named else uri)
    files = store.files()
    for name in {NEWEST, KEPT_LIST, SNAPSHOT} & files.keys():
        store.get(name, store.folder / name)
    if not named and not registered(store.folder):
        remedy = "give a run, or one checkpoint_... or best inside it"
        raise UserError("checkpoint", f"{shown_place(uri)} holds no finished checkpoint", remedy)
    for name in files:
        if name.startswith("towers/") and name.endswith(f"/{DIGESTS}"):
            store.opened(name.rpartition("/")[0])
    return store.opened(storage.name_of(uri) if named else newest_checkpoint(store.folder).name)


# --- the driver's and the controller's side ------------------------------------------------------------------------------------


@contextmanager
def working_copy(uri: str, display: Display) -> Iterator[Path]:
    """Hold the run's lease, and bring the working copy up to date. Raises `UserError` if another process holds it."""
    if is_web(uri):
        raise UserError(
            "storage", f"nothing can be written to {shown_place(uri)}", "give a folder, or a store such as s3://bucket/runs"
        )
    store = RunStore(uri)
    path_keys.check_folder(store.folder, "XDG_CACHE_HOME")
    store.folder.mkdir(parents=True, exist_ok=True)
    (store.folder.parent / _NOTE).write_text(uri)
    with ExitStack() as stack:
        try:
            stack.enter_context(node_cache.used(store.folder.parent))
        except BlockingIOError:
            raise taken(uri) from None
        names = {name.partition("/")[0] for name in store.files()}
        if outlast(lambda: storage.exists(store.at(path_keys.LOCK))):
            names.add(path_keys.LOCK)
        path_keys.check_names(uri, sorted(names), "training run", "name")
        begun = True
        try:
            with leased(uri, store.at(path_keys.LOCK), display):
                try:
                    if (store.folder / HELD).exists():  # else that costs the import of Ray
                        from training.placement import wait_for_earlier

                        wait_for_earlier(store.folder, display)
                    _pull(store, started=path_keys.LOCK in names)
                    yield store.folder
                finally:
                    begun = bool(store.files())
        except UserError as error:  # what is said of the copy is meant of the store
            error.args = tuple(str(part).replace(str(store.folder), shown_place(uri)) for part in error.args)
            error.key, error.problem, error.remedy = error.args
            raise
        finally:
            if not begun:
                store.drop(path_keys.LOCK)  # a run that never began leaves nothing


def _pull(store: RunStore, started: bool) -> None:
    """Make the working copy what the store has, without TensorBoard's events and incomplete checkpoints."""
    folder, files = store.folder, store.files()
    if f"best{_NEW}/{DIGESTS}" in files:  # a process died while it put a complete one in its place
        store.get_folder(f"best{_NEW}")
        shutil.rmtree(folder / "best", ignore_errors=True)
        (folder / f"best{_NEW}").rename(folder / "best")
        _place_best(store, folder / "best")
        files = store.files()
    top = {name.partition("/")[0] for name in files}
    for path in folder.iterdir():
        own = path.name == HELD or path.name.startswith(".")
        # Checkpoints are read again: workers on other nodes resume from what the store has, which may be damaged.
        if not own and (path.name not in top or path.name.startswith("checkpoint_")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in files:
        if "/" not in name:
            store.get(name, folder / name)
    for grown in sorted({name.partition("/")[0] for name in files if name.partition("/")[0].endswith(_PARTS)}):
        whole = grown.removesuffix(_PARTS)
        if whole not in files:
            parts = [store.read(name) for name in files if name.startswith(f"{grown}/")]
            (folder / whole).write_bytes(b"".join(parts))
    whole_folders = {name.rpartition("/")[0] for name in files if name.endswith(f"/{DIGESTS}")}
    for name in sorted(whole_folders | {path.name for path in registered(folder)}):
        if not name.startswith("damaged-") and any(file.startswith(f"{name}/") for file in files):
            store.get_folder(name)
    if started:
        (folder / path_keys.LOCK).touch()


def settled(folder: Path) -> None:
    """After `checkpoint_registry.settle` on the working copy: the same in the store."""
    store = store_of(folder)
    if store is None:
        return
    there = {name.partition("/")[0] for name in store.files()}
    for path in folder.glob("checkpoint_manager_snapshot*.json"):
        store.put(path, path.name)
    for path in folder.glob("damaged-*"):
        if path.name not in there:
            for file in sorted(path.iterdir()):
                store.put(file, f"{path.name}/{file.name}")
    for name in there:
        gone = name.startswith("checkpoint_") and not (folder / name).exists()
        if gone or name == f"best{_NEW}":
            store.drop(name)


def kept(folder: Path, *names: str) -> None:
    """Put files, or folders with digests, of the working copy into the store."""
    store = store_of(folder)
    if store is None:
        return
    for name in names:
        path = folder / name
        if path.is_dir() and name == "best":
            _place_best(store, path)
        elif path.is_dir() and (path / DIGESTS).exists():
            store.put_folder(path, name)
        elif path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    store.put(file, str(file.relative_to(folder)))
        elif path.exists():
            store.put(path, name)


def _place_best(store: RunStore, local: Path) -> None:
    """Replace `best`: the new one is complete beside it before it goes."""
    new = f"best{_NEW}"
    store.drop(new)
    store.put_folder(local, new)
    store.drop("best")
    store.put_folder(local, "best")
    store.drop(f"{new}/{DIGESTS}")
    store.drop(new)


def fetched(folder: Path, *names: str) -> None:
    """Get files that other nodes have put into the store; a missing one is left out."""
    store = store_of(folder)
    for name in names if store is not None else ():
        assert store is not None
        try:
            store.get(name, folder / name)
        except Missing:
            continue


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
            _put_bytes(store.at(f"{name}{_PARTS}/{number:06d}"), data)
    if inode != status.st_ino or done > status.st_size:
        last = (status.st_size + _PART - 1) // _PART
        for old in store.files(f"{name}{_PARTS}"):
            if int(old) >= last:
                store.drop(f"{name}{_PARTS}/{old}")
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
    for parts in sorted(name for name in names if name.endswith(_PARTS)):
        kept(folder, parts.removesuffix(_PARTS))
        store.drop(parts)
