"""The working copy of what is in a store (run_store.py) on the node that works on it: a run's, a sweep's, a trial's.

One process holds it by a lease in the store. It is what the store has before anything else is done.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pipelines.io import node_cache, storage
from pipelines.io.http import is_web
from pipelines.io.lease import Lease, Taken
from pipelines.io.patient import outlast
from pipelines.io.retry import shown_place
from pipelines.program import path_keys
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from training.checkpoint_registry import DIGESTS, NEWEST, registered
from training.lock import leased, taken, taken_over
from training.run_store import HELD, NEW, PARTS, RunStore, place_best, store_of


@contextmanager
def working_copy(
    uri: str, display: Display, kind: str = "training run", pull: Callable[[RunStore], None] | None = None
) -> Iterator[Path]:
    """Hold the lease of a run, or of another `kind`, and bring the working copy up to date.

    `pull`: makes it what the store has; None: as for a run. Raises `UserError` if another process holds the lease.
    """
    if is_web(uri):
        raise UserError(
            "storage", f"nothing can be written to {shown_place(uri)}", "give a folder, or a store such as s3://bucket/runs"
        )
    store = RunStore(uri)
    path_keys.check_folder(store.folder, "XDG_CACHE_HOME")
    with ExitStack() as stack:
        try:
            stack.enter_context(node_cache.used(store.folder.parent))
        except BlockingIOError:
            raise taken(uri) from None
        store.make()
        names = {name.partition("/")[0] for name in store.files()}
        if outlast(lambda: storage.exists(store.at(path_keys.LOCK))):
            names.add(path_keys.LOCK)
        path_keys.check_names(uri, sorted(names), kind, "name")
        begun = True
        try:
            with leased(uri, store.at(path_keys.LOCK), display):
                try:
                    if (store.folder / HELD).exists():  # else that costs the import of Ray
                        from training.placement import wait_for_earlier

                        wait_for_earlier(store.folder, display)
                    (pull or _pull)(store)
                    if path_keys.LOCK in names:
                        (store.folder / path_keys.LOCK).touch()
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


@contextmanager
def trials_copy(uri: str) -> Iterator[Path]:
    """The same for a trial, whose sweep's driver hands it to one process at a time; the copy is deleted afterwards.

    After a driver or a node is lost, the process of an earlier start may live on for some seconds: it is waited for.
    """
    store = RunStore(uri)
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(node_cache.used(store.folder.parent))
                break
            except BlockingIOError:
                time.sleep(1)
        store.make()
        while True:
            try:
                stack.enter_context(Lease(store.at(path_keys.LOCK), lambda: None, partial(taken_over, uri), settle=0))
                break
            except Taken:
                continue
        _pull(store)
        try:
            yield store.folder
        finally:
            shutil.rmtree(store.folder.parent, ignore_errors=True)


def _pull(store: RunStore) -> None:
    """Make the working copy what the store has, without TensorBoard's events and incomplete checkpoints."""
    folder, files = store.folder, store.files()
    if f"best{NEW}/{DIGESTS}" in files:  # a process died while it put a complete one in its place
        store.get_folder(f"best{NEW}")
        shutil.rmtree(folder / "best", ignore_errors=True)
        (folder / f"best{NEW}").rename(folder / "best")
        place_best(store, folder / "best")
        files = store.files()
    top = {name.partition("/")[0].removesuffix(PARTS) for name in files}
    for path in folder.iterdir():
        own = path.name == HELD or path.name.startswith(".")
        # Checkpoints are read again: workers on other nodes resume from what the store has, which may be damaged.
        if not own and (path.name not in top or path.name.startswith("checkpoint_")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in sorted(top):
        store.get_grown(name, files, folder / name)
    whole_folders = {name.rpartition("/")[0] for name in files if name.endswith(f"/{DIGESTS}")}
    for name in sorted(whole_folders | {path.name for path in registered(folder)}):
        if not name.startswith("damaged-") and any(file.startswith(f"{name}/") for file in files):
            store.get_folder(name)


def settled(folder: Path) -> None:
    """After `checkpoint_registry.settle` on the working copy: the same in the store."""
    store = store_of(folder)
    if store is None:
        return
    there = {name.partition("/")[0] for name in store.files()}
    for path in [*folder.glob("checkpoint_manager_snapshot*.json"), *folder.glob(NEWEST)]:
        store.put(path, path.name)
    for path in folder.glob("damaged-*"):
        if path.name not in there:
            for file in sorted(path.iterdir()):
                store.put(file, f"{path.name}/{file.name}")
    for name in there:
        gone = name.startswith("checkpoint_") and not (folder / name).exists()
        if gone or name == f"best{NEW}":
            store.drop(name)
