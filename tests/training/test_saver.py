"""Checkpoints are saved while training goes on: one at a time, each complete before it is reported, reports in order.

With Ray Train's own context of a worker, in this process; what its controller would poll is read from its queue.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2._internal.execution import train_fn_utils
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.worker_group.thread_runner import ThreadRunner

from pipelines.program.ray_internals import unreported
from tests.patience import PATIENCE, wait_until
from training import pulse
from training.checkpoint import Snapshot
from training.checkpoint_registry import changed
from training.saver import Saver


@dataclass(frozen=True)
class Held(Snapshot):
    """It is written once it may be."""

    may: Callable[[], object] = bool

    def write(self, folder: Path) -> None:
        self.may()
        super().write(folder)


def held(step: int, may: Callable[[], object]) -> Held:
    return Held({"step": step}, "{}", {"a": torch.full((3,), float(step))}, "{}", may)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def worker(run: Path, monkeypatch: pytest.MonkeyPatch) -> train_context.TrainContext:
    """Ray Train's context of the only worker of a run."""
    barrier = SimpleNamespace(broadcast_from_rank_zero=SimpleNamespace(remote=lambda data, **_: data))
    context = train_context.TrainContext(
        train_run_context=None,  # type: ignore[arg-type]
        distributed_context=train_context.DistributedContext(0, 1, 0, 1, 0),
        execution_context=train_context.ExecutionContext(barrier, queue.Queue(maxsize=1), ThreadRunner(), []),  # type: ignore[arg-type]
        storage_context=StorageContext(storage_path=str(run.parent), experiment_dir_name=run.name),
        preemption_context=PreemptionContext(),
        controller_actor=None,  # type: ignore[arg-type]
        dataset_shard_provider=None,  # type: ignore[arg-type]
    )
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(train_context, "_train_context", context)
    monkeypatch.setattr(train_fn_utils, "_train_fn_utils", train_fn_utils.DistributedTrainFnUtils())
    return context


@pytest.fixture
def polled(worker: train_context.TrainContext) -> Iterator[list[Any]]:
    """What the controller has got so far."""
    found: list[Any] = []

    def poll() -> None:
        while (report := worker.get_result_queue().get()) is not None:
            found.append(report)

    thread = threading.Thread(target=poll)
    thread.start()
    yield found
    worker.get_result_queue().put(None)
    thread.join()


def test_training_goes_on_while_a_checkpoint_is_saved(run: Path, polled: list[Any]) -> None:
    for name in ("checkpoint_00000001", "checkpoint_00000002", "towers"):
        (run / name).mkdir()
    saver = Saver(run, None)
    saver.clear("checkpoint_00000001")
    assert not (run / "checkpoint_00000002").exists() and (run / "checkpoint_00000001").exists() and (run / "towers").exists()
    captured, first, last = threading.Event(), threading.Event(), threading.Event()

    def second() -> Held:
        assert changed(run / "checkpoint_00000002") is None and not unreported(), "one at a time"
        captured.set()
        return held(4, last.wait)

    def let_go() -> None:
        wait_until(lambda: pulse._Doing.stage == "upload")
        first.set()
        captured.wait()
        wait_until(lambda: pulse._Doing.stage == "upload")
        last.set()

    with saver:
        pulse.at("step")
        saver.report({"step": 1}, None)
        saver.report({"step": 2}, lambda: held(2, first.wait))
        saver.report({"step": 3}, None)
        assert unreported() == 2 and [report.metrics["step"] for report in polled] in ([], [1])
        thread = threading.Thread(target=let_go)
        thread.start()
        saver.report({"step": 4}, second)
    assert not unreported(), "the end waits for the last"
    thread.join()
    wait_until(lambda: len(polled) == 4)
    assert [report.metrics["step"] for report in polled] == [1, 2, 3, 4]
    places = [report.checkpoint and Path(report.checkpoint.path) for report in polled]
    assert places == [None, run / "checkpoint_00000002", None, run / "checkpoint_00000004"]
    assert changed(run / "checkpoint_00000004") is None


def test_a_checkpoint_that_cannot_be_written_ends_the_worker(
    run: Path, worker: train_context.TrainContext, polled: list[Any]
) -> None:
    """It is never reported, and whoever waits for it is not the one to tell."""

    def fail() -> None:
        raise OSError(28, "no space")

    with pytest.raises(KeyError), Saver(run, None) as saver:
        saver.report({"step": 2}, lambda: held(2, fail))
        raised = worker.execution_context.training_thread_runner.get_exception_queue()
        wait_until(lambda: not raised.empty())
        raise KeyError("another error, meanwhile")
    error = raised.get(timeout=PATIENCE)
    assert isinstance(getattr(error, "_base_exc", error), OSError) and not polled and changed(run / "checkpoint_00000002")
