"""What a worker reports to Ray Train: lines, and checkpoints that are saved while training goes on.

A step waits for a copy of the state in memory. A thread of Ray Train writes it, to the run's disk or to its store, and then
reports it, so that only a complete checkpoint is listed. Reports stay in order: the lines of later steps follow. One checkpoint
is under way at a time: the next one, and the end of training, wait for it.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
from pyarrow.fs import LocalFileSystem

from pipelines.io.patient import system_of
from pipelines.program.ray_internals import unreported
from training import pulse
from training.checkpoint import Snapshot
from training.checkpoint_registry import is_checkpoint
from training.loop import Save
from training.run_store import RunStore

_MOST = 300  # reports behind a checkpoint for which training does not wait: what Ray Train's controller takes in a minute
_POLL = 0.02  # seconds


class Saver:
    """A context for one worker, at whose end all that was reported has reached Ray Train; after an error, the checkpoint."""

    def __init__(self, folder: Path, store: RunStore | None):
        self._folder, self._store = folder, store
        self._snapshot: Snapshot | None = None  # the newest one; None once it is saved
        self._writing = False

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is None:
            self._wait(1)
            return
        while self._writing:
            time.sleep(_POLL)

    def clear(self, newest: str) -> None:
        """Delete the checkpoints after the newest that is registered: incomplete ones, of workers that were killed."""
        for name in self._names():
            if is_checkpoint(name) and name > newest:
                shutil.rmtree(self._folder / name) if self._store is None else self._store.drop(name)

    def _names(self) -> set[str]:
        if self._store is None:
            return {path.name for path in self._folder.iterdir() if path.is_dir()}
        return {name.partition("/")[0] for name in self._store.files()}

    def report(self, metrics: dict[str, Any], save: Save | None) -> None:
        """Report a line, and begin a checkpoint if this worker is to save one."""
        mode = ray.train.CheckpointUploadMode
        if save is None:
            self._wait(_MOST)
            ray.train.report(metrics, checkpoint_upload_mode=mode.ASYNC if unreported() else mode.SYNC)
            return
        self._wait(1)
        pulse.at("checkpoint")
        self._snapshot = save()
        pulse.at("report")
        name = f"checkpoint_{metrics['step']:08d}"
        ray.train.report(
            metrics,
            checkpoint=self._at(name),
            checkpoint_dir_name=name,
            checkpoint_upload_mode=mode.ASYNC,
            delete_local_checkpoint_after_upload=False,
            checkpoint_upload_fn=self._write,
        )

    def _at(self, name: str) -> ray.train.Checkpoint:
        if self._store is None:
            return ray.train.Checkpoint(self._folder / name, LocalFileSystem())
        system, inside = system_of(self._store.at(name))
        return ray.train.Checkpoint(inside, system)

    def _write(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """In Ray Train's thread."""
        self._writing = True
        try:
            assert self._snapshot is not None
            with pulse.Beside(self._snapshot.step) as beside:
                self._save(self._snapshot, name, beside)
            self._snapshot = None
        finally:
            self._writing = False
        return checkpoint

    def _save(self, snapshot: Snapshot, name: str, beside: pulse.Beside) -> None:
        beside.at("checkpoint")
        if self._store is None:
            (self._folder / name).mkdir()
            snapshot.write(self._folder / name)
            return
        with tempfile.TemporaryDirectory(prefix="raylign-") as aside:
            snapshot.write(Path(aside))
            beside.at("upload")
            self._store.put_folder(Path(aside), name)

    def _wait(self, most: int) -> None:
        """Until fewer reports than that have not reached Ray Train."""
        before = 0
        while (count := unreported()) >= most:
            if count != before:
                pulse.at("upload")
                before = count
            time.sleep(_POLL)
