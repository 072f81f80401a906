"""Trains one run in this process: the same plan, loop and files as with Ray Train, without starting its processes.

For small runs, of which a sweep has hundreds: both towers locked, one worker. Started again on the same folder, it resumes from
the newest checkpoint, as `fit` does. As there, a step waits for a copy of the state in memory, and a thread saves it: one
checkpoint at a time, for which the next one and the end of training wait.
"""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch

from pipelines.dataset.stream import Worker
from training.checkpoint import Snapshot
from training.checkpoint_registry import NEWEST, put, registered
from training.held_out import keep_held_out
from training.loop import Save, completed, train
from training.metrics_log import Recorder
from training.plan import Plan
from training.run_store import dropped, kept, place_of
from training.stopping import Asked


def fit_inline(plan: Plan, folder: Path, on_line: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train to the end, and return the loop's result; `on_line(line)` is called after each line of metrics.jsonl.

    The folder is new, or `checkpoint_registry.settle` was called on it.

    Raises as `loop.completed` does.
    """
    settings = plan.settings
    for leftover in folder.glob("partial-*"):
        leftover.unlink() if leftover.is_file() else shutil.rmtree(leftover)
    keep, tries = settings.checkpoint, settings.resources.max_failures
    recorder = Recorder(folder, keep.best, keep.mode, bool(settings.tensorboard), tries)
    recorder.catch_up()

    saving: Future[None] | None = None

    def put_in_place(snapshot: Snapshot, line: dict[str, Any]) -> None:
        recorder.keep_best(line, _put(folder, snapshot, keep.keep))

    def report(metrics: dict[str, Any], save: Save | None) -> None:
        nonlocal saving
        # The line comes first: after a kill between the two, the step is repeated and its line replaced.
        line = recorder.write(metrics)
        if save is not None:
            if saving is not None:
                saving.result()
            saving = writer.submit(put_in_place, save(), line)
        on_line(line)

    checkpoints = registered(folder)
    checkpoint = ray.train.Checkpoint.from_directory(checkpoints[-1]) if checkpoints else None
    device = torch.device("cuda" if settings.resources.use_gpu else "cpu")
    with Asked(place_of(folder)) as asked, ThreadPoolExecutor(1) as writer:  # which waits at its end, after an error too
        worker = Worker(0, 1, device, settings.resources.data_cpus)
        returned = train(plan, worker, report, checkpoint, asked, partial(keep_held_out, place_of(folder)))
    if saving is not None:
        saving.result()
    return completed(returned)


def _put(folder: Path, snapshot: Snapshot, keep: int) -> ray.train.Checkpoint:
    """Write a checkpoint under a temporary name, rename and register it, and delete all but the newest `keep`."""
    place = folder / f"checkpoint_{snapshot.step:08d}"
    aside = folder / f"partial-{place.name}-{os.getpid()}"
    aside.mkdir()
    snapshot.write(aside)
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)
    names = [path.name for path in registered(folder) if path != place] + [place.name]
    put(folder / NEWEST, json.dumps(names[-keep:]))
    kept(folder, place.name)
    kept(folder, NEWEST)
    for name in names[:-keep]:
        shutil.rmtree(folder / name, ignore_errors=True)
    dropped(folder, *names[:-keep])
    return ray.train.Checkpoint.from_directory(place)
