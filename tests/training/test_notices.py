"""Nodes that are taken away from a run, with a notice and without one: which steps it repeats, and what that costs."""

import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import ray.train
from ray.cluster_utils import Cluster

from pipelines.program import ray_elastic
from tests.object_store import Store, object_store
from tests.patience import wait_until
from tests.training.lost_steps import EVERY, WORKERS, LongRun, Loss
from training.checkpoint_registry import is_checkpoint, newest_step, registered
from training.metrics_file import read_metrics
from training.notices import Left, Notice
from training.pulse import pulses
from training.run_store import RunStore
from training.status import status_of

import psutil  # isort: skip  comes with ray


def test_who_asks_to_stop_is_heard_before_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that both the user and a cloud interrupt ends; and one that ends by itself does not start again."""
    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda consistency_mode: [])
    monkeypatch.setattr(ray_elastic, "_notice", None)
    stopped, ended = {"stopped": 7}, {"step": 9}
    notice, asked = Notice(), [False]
    stop = notice.or_asked(lambda: asked[0])
    assert not stop() and notice.after(stopped) is stopped
    monkeypatch.setattr(ray_elastic, "_notice", "of a node")
    assert stop() and notice.after(ended) is ended
    with pytest.raises(Left) as left:
        notice.after(stopped)
    assert pickle.loads(pickle.dumps(left.value)).step == 7, "it passes through Ray"
    asked[0] = True
    assert stop() and notice.after(stopped) is stopped


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.e2e
def test_no_step_is_lost_after_a_notice(cluster: Cluster, tmp_path: Path) -> None:
    """First a worker's node, then that of the tasks that read, then a worker's at once; the run still stops when asked to."""
    long = LongRun(cluster, tmp_path)
    try:
        worker, reading = long.lose(Loss(True, 0, 3)), long.lose(Loss(True, WORKERS, 1))
        killed = long.lose(Loss(False, 1, EVERY + 1))
        long.program.process.send_signal(signal.SIGINT)
        assert long.program.wait() == 128 + signal.SIGINT, long.program.text()
    finally:
        long.program.kill()
    for outcome in (worker, reading):
        assert (outcome.kind, outcome.lost, outcome.workers) == ("notice", 0, WORKERS), outcome
        assert outcome.saved < outcome.done, "a checkpoint was made for it"
    assert killed.kind == "lost node" and reading.done < killed.saved <= killed.resumed <= killed.done, killed
    steps = [line["step"] for line in read_metrics(long.run / "metrics.jsonl")]
    assert steps == [*range(1, len(steps) + 1)]


@pytest.mark.e2e
def test_a_range_of_workers_goes_on_with_fewer_after_a_notice(cluster: Cluster, tmp_path: Path) -> None:
    """There is no node to spare, and the one that will be taken away is not counted as free."""
    long = LongRun(cluster, tmp_path, elastic=True)
    try:
        outcome = long.lose(Loss(True, 1, 3))
        wait_until(lambda: long.reported()[-1]["workers"] == WORKERS, every=0.1)
    finally:
        long.program.kill()
    assert (outcome.kind, outcome.lost, outcome.workers) == ("notice", 0, WORKERS - 1), outcome


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with object_store() as store:
        for name, value in (store.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        yield store


@pytest.mark.e2e
def test_a_checkpoint_that_takes_longer_than_its_notice(store: Store, cluster: Cluster, tmp_path: Path) -> None:
    """Its upload stalls until rank 0's node has gone: the run goes on from the one before, which costs steps and no failure."""
    every = 3 * EVERY  # so that none is due by itself while the notice comes
    long, stalled = LongRun(cluster, tmp_path, storage=store.uri("runs"), every=every), ExitStack()

    def too_late(take: Callable[[], None]) -> None:
        """Once the other worker has stopped for it; rank 0's process outlives its node a little, and would upload after all."""
        wait_until(lambda: store.held() > 0 and pulses(long.run)[1]["stage"] == "ended", long.program.text)
        first = pulses(long.run)[0]["pid"]
        take()
        wait_until(lambda: has_ended(first), long.program.text)
        stalled.close()

    try:
        wait_until(lambda: newest_step(long.run) is not None, long.program.text)
        stalled.enter_context(store.faulty(errors=0, stalls=0, resets=0, held="PUT .*checkpoint_0"))
        outcome = long.lose(Loss(True, long.bundle_of_rank_0(), every + 3), too_late)
        long.program.process.send_signal(signal.SIGINT)
        assert long.program.wait() == 128 + signal.SIGINT, long.program.text()
    finally:
        stalled.close()
        long.program.kill()
    assert (outcome.kind, outcome.resumed, outcome.workers) == ("notice", outcome.saved, WORKERS) and outcome.lost > 0, outcome
    assert status_of(long.run).costs["redone_steps"] > 0
    steps = [line["step"] for line in read_metrics(long.run / "metrics.jsonl")]
    assert steps == [*range(1, len(steps) + 1)]
    there = RunStore(store.uri("runs", "run"))
    names = {name.partition("/")[0] for name in there.files()}
    assert {name for name in names if is_checkpoint(name)} == {path.name for path in registered(long.run)}
    assert all(there.opened(path.name) for path in registered(long.run)), "what is listed is whole"
