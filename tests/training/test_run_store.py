"""A run in a store, from one node's side: what is put there comes back on another node, whole, and has one holder."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pipelines.io import lease
from pipelines.io.retry import Unreachable
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from tests.object_store import Store, object_store
from tests.patience import PATIENCE, wait_until
from tests.refusals import refused
from training import placement, run_store
from training.checkpoint import find_checkpoint
from training.checkpoint_registry import seal, settle
from training.metrics_file import append_lines, read_metrics
from training.metrics_log import MetricsLog
from training.run import only_one
from training.run_store import RunStore, appended, finished, kept, place_of, store_of
from training.sessions import SESSIONS
from training.status import main, status_of
from training.working_copy import settled, working_copy

QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.environment.items():
            patch.setenv(name, value)
        patch.setattr(lease, "SETTLE", 0.0)
        yield store


def folder_of(place: Path, content: str) -> Path:
    """A folder with digests."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "weights").write_text(content)
    seal(place)
    return place


@pytest.mark.slow
def test_what_one_node_put_there_another_finds(store: Store, node: Any) -> None:
    uri = store.uri("runs", "there")
    store.forget()
    with store.faulty(errors=0.1, resets=0.1, stalls=0.03), working_copy(uri, QUIET) as run:
        assert store_of(run) == RunStore(uri) and place_of(run) == uri and list(run.iterdir()) == []
        (run / "config.yaml").write_text("a: 1")
        folder_of(run / "towers" / "image_tower", "locked")
        folder_of(run / "best", "one")
        kept(run, "config.yaml", "towers/image_tower", "best")
        shutil.rmtree(run / "best")
        folder_of(run / "best", "two")
        kept(run, "best")
    assert sum(store.faults().values()) > 3
    node("second")
    with working_copy(uri, QUIET) as other:
        assert other != run and (other / "config.yaml").read_text() == "a: 1"
        assert (other / "towers/image_tower/weights").read_text() == "locked" and (other / "best/weights").read_text() == "two"
    # What a node has is read again only if it is another one now, or damaged on its disk.
    store.forget()
    RunStore(uri).opened("best")
    assert not [request for request in store.requests() if request.key.endswith("weights") and request.method == "GET"]
    (other / "best" / "weights").write_text("too")
    assert (RunStore(uri).opened("best") / "weights").read_text() == "two"
    store.put("runs/there/best/weights", b"owt")
    (other / "best" / "weights").write_text("too")
    with refused("checkpoint", f"{uri}/best", "weights"):
        RunStore(uri).opened("best")


def test_what_an_earlier_start_has_booked_stays_on_this_node(store: Store, node: Any) -> None:
    """Its controller may live on for some seconds, and what it booked longer."""
    assert run_store.HELD == placement.HELD
    for _ in range(2):
        with working_copy(store.uri("runs", "held"), QUIET) as run:
            kept(run, "config.yaml")
            (run / run_store.HELD).touch()
            (run / "config.yaml").write_text("a: 1")
    assert (run / run_store.HELD).exists()


def test_a_checkpoint_that_is_damaged_in_the_store_alone(store: Store, node: Any) -> None:
    """Workers on other nodes would read it, so the run resumes from the one before, though this node's copy is intact."""
    uri, names = store.uri("runs", "damaged"), ["checkpoint_00000002", "checkpoint_00000004"]
    with working_copy(uri, QUIET) as run:
        for name in names:
            (run / name).mkdir()
            (run / name / "checkpoint.json").write_text('{"config": {}}')
            folder_of(run / name, name)
        (run / "newest_checkpoint.json").write_text(json.dumps(names))
        kept(run, *names, "newest_checkpoint.json")
    store.put(f"runs/damaged/{names[1]}/weights", b"damaged")
    told: list[str] = []
    with working_copy(uri, QUIET) as run:
        assert settle(run, told.append) == run / names[0] and len(told) == 1 and "weights" in told[0]
        settled(run)
    assert store.get(f"runs/damaged/damaged-{names[1]}/weights") == b"damaged"
    assert store.get(f"runs/damaged/{names[1]}/weights") is None


def until_killed(work: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def act(*arguments: Any) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return work(*arguments)

    return act


@pytest.mark.slow
def test_a_best_checkpoint_that_was_half_replaced(store: Store, node: Any) -> None:
    """Killed after any of its writes and deletions, the next start finds the old one or the new one, whole."""
    seen = set()
    for kills in range(12):
        uri = store.uri("runs", f"half-{kills}")
        with working_copy(uri, QUIET) as run:
            folder_of(run / "best", "old")
            kept(run, "best")
            shutil.rmtree(run / "best")
            folder_of(run / "best", "new")
            with pytest.MonkeyPatch.context() as patch:
                left = [kills]
                for name in ("put", "drop"):
                    patch.setattr(RunStore, name, until_killed(getattr(RunStore, name), left))
                with suppress(KeyboardInterrupt):
                    kept(run, "best")
        node(f"other-{kills}")
        with working_copy(uri, QUIET) as other:
            seen.add((other / "best" / "weights").read_text())
            assert (RunStore(uri).opened("best") / "weights").read_text() in ("old", "new")
            assert store.get(f"runs/half-{kills}/best.partial/digests.json") is None
    assert seen == {"old", "new"}


def test_metrics_grow_in_parts(store: Store, node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line costs one small part, however long the file; lines that are replaced, as after a restart, are replaced there."""
    monkeypatch.setattr("training.run_store._PART", 200)
    uri = store.uri("runs", "grown")

    def lines() -> list[int]:
        return [line["step"] for line in read_metrics(run / "metrics.jsonl")]

    with working_copy(uri, QUIET) as run:
        log = MetricsLog(run / "metrics.jsonl")
        for step in range(60):
            log.append({"step": step, "loss": 0.5})
            store.forget()
            appended(run, "metrics.jsonl")
            sent = [request for request in store.requests() if request.method == "PUT" and request.key]
            assert step == 0 or len(sent) <= 2
        log.append({"step": 7, "loss": 0.25})
        appended(run, "metrics.jsonl")
    for name in ("second", "third"):
        node(name)
        with working_copy(uri, QUIET) as run:
            assert lines() == list(range(8)) and store.get("runs/grown/metrics.jsonl") is None
            appended(run, "metrics.jsonl")
    with working_copy(uri, QUIET) as run:
        finished(run)
    assert store.get("runs/grown/metrics.jsonl.parts/000000") is None
    whole = (store.get("runs/grown/metrics.jsonl") or b"").decode().splitlines()
    assert [json.loads(line)["step"] for line in whole] == list(range(8))
    node("fourth")
    with working_copy(uri, QUIET) as run:
        MetricsLog(run / "metrics.jsonl").append({"step": 3, "loss": 0.125})
        appended(run, "metrics.jsonl")
    node("fifth")
    with working_copy(uri, QUIET) as run:
        assert lines() == [0, 1, 2, 3]


def test_a_place_that_holds_something_else(store: Store, node: Any) -> None:
    """It is neither copied nor touched; and a run that never began leaves nothing."""
    store.put("runs/data/manifest.json", b"{}")
    store.put("runs/own/notes.txt", b"mine")
    for name, mark in {"data": "manifest.json", "own": "notes.txt"}.items():
        with refused("name", store.uri("runs", name), mark, remedy="name"), working_copy(store.uri("runs", name), QUIET):
            pass
        assert store.get(f"runs/{name}/.lock") is None
    with refused("storage", "https://host/runs", remedy="s3://"), working_copy("https://host/runs/one", QUIET):
        pass
    with suppress(UserError), working_copy(store.uri("runs", "never"), QUIET):
        raise UserError("data.path", "nothing there")
    assert store.get("runs/never/.lock") is None
    with working_copy(store.uri("runs", "begun"), QUIET) as run:
        (run / "config.yaml").write_text("a: 1")
        kept(run, "config.yaml")
    with working_copy(store.uri("runs", "begun"), QUIET) as run:
        assert (run / ".lock").exists()


class Told(Display):
    """Keeps its lines."""

    def __init__(self, lines: list[str]):
        super().__init__(quiet=True)
        self._lines = lines

    def line(self, text: str) -> None:
        self._lines.append(text)


def _hold(uri: str, cache: str, told: Any) -> None:
    os.environ["XDG_CACHE_HOME"] = cache
    lease.RENEWAL = 0.5
    with working_copy(uri, QUIET):
        told.send("held")
        told.recv()


@pytest.mark.slow
def test_one_process_holds_a_run(store: Store, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one of this node hears it at once, one of another node once the lease is renewed; a dead holder's is taken over."""
    monkeypatch.setattr(lease, "EXPIRY", PATIENCE)  # it returns as soon as the lease is renewed
    spawn = multiprocessing.get_context("spawn")  # threads of a store's client do not live on in a fork
    uri = store.uri("runs", "one")
    pipe, other = spawn.Pipe()
    process = spawn.Process(target=_hold, args=(uri, str(tmp_path / "first"), other))
    process.start()
    assert pipe.recv() == "held"
    with refused("name", uri, remedy="name="), working_copy(uri, QUIET):
        pass
    node("second")
    told: list[str] = []
    with refused("name", uri, remedy="name="), working_copy(uri, Told(told)):
        pass
    assert uri in told[0]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # it looks alive to this machine, and renews nothing
    monkeypatch.setattr(lease, "EXPIRY", 3.0)
    with working_copy(uri, Told(told)):
        os.kill(process.pid, signal.SIGCONT)
        process.join(PATIENCE)
        assert process.exitcode == 1, "who lost it ends"
    assert store.get("runs/one/.lock") is None
    process = spawn.Process(target=_hold, args=(uri, str(tmp_path / "first"), other))
    process.start()
    assert pipe.recv() == "held"
    process.kill()
    process.join()
    told.clear()
    with working_copy(uri, Told(told)):
        assert told == [], "nobody waits for a process of this machine that is dead"


def _locks_of_its_own(system: str) -> None:
    """As on another machine, if the disk that both share keeps locks to each."""
    fcntl.flock = lambda *_: None  # type: ignore[assignment]
    lease._system = lambda: system  # type: ignore[assignment]


def _hold_on_disk(folder: Path, system: str | None, told: Any) -> None:
    lease.RENEWAL = 0.5
    if system is not None:
        _locks_of_its_own(system)
    with only_one(folder, QUIET):
        told.send("held")
        told.recv()


@pytest.mark.slow
def test_one_process_holds_a_run_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its lock, or where that is not seen by its lease; a dead one of this machine is not waited for."""
    monkeypatch.setattr(lease, "EXPIRY", PATIENCE)  # it returns as soon as the lease is renewed
    spawn, run, told = multiprocessing.get_context("spawn"), tmp_path / "run", list[str]()
    pipe, other = spawn.Pipe()

    def hold(system: str | None) -> Any:
        process = spawn.Process(target=_hold_on_disk, args=(run, system, other))
        process.start()
        assert pipe.recv() == "held"
        return process

    process = hold(None)
    with refused("name", run, remedy="name="), only_one(run, Told(told)):
        pass
    process.kill()
    process.join()
    with only_one(run, Told(told)):
        assert told == []
    append_lines(run / SESSIONS, [{"event": "start", "time": time.time(), "total": 3, "seen": None}])
    assert status_of(run).state == "failed"
    process = hold("another")
    assert status_of(run).state == "running", "whose lock is not seen here"
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda *_: None)
        with refused("name", run, remedy="name="), only_one(run, Told(told)):
            pass
        assert str(run) in told[0] and process.is_alive()
        os.kill(process.pid, signal.SIGSTOP)
        patch.setattr(lease, "EXPIRY", 3.0)
        with only_one(run, Told(told)):
            os.kill(process.pid, signal.SIGCONT)
            process.join(PATIENCE)
            assert process.exitcode == 1, "who lost it ends"
    told.clear()
    with only_one(run, Told(told)):
        assert told == [], "it was given back"


@pytest.mark.slow
def test_an_outage_is_waited_for(store: Store, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than requests are retried for, but not for ever."""
    monkeypatch.setattr("pipelines.io.retry._FIRST_WAIT", 0.001)
    monkeypatch.setattr("pipelines.io.patient._WAIT", 0.01)
    (tmp_path / "file").write_bytes(b"content")
    there = RunStore(store.uri("runs", "out"))
    store.forget()
    with store.faulty(errors=1, resets=0, stalls=0), ThreadPoolExecutor(1) as pool:
        put = pool.submit(there.put, tmp_path / "file", "file")
        wait_until(lambda: put.done() or sum(store.faults().values()) > 24)  # which a round has at most
        assert not put.done()
        with store.faulty(errors=0, resets=0, stalls=0):
            put.result(PATIENCE)
    assert there.read("file") == b"content"
    monkeypatch.setattr("pipelines.io.patient.OUTAGE", 0.0)
    with store.faulty(errors=1, resets=0, stalls=0), pytest.raises(Unreachable):
        there.read("file")


def test_a_run_in_a_store_opens_as_one_on_a_disk(store: Store, node: Any, tmp_path: Path) -> None:
    """Its newest checkpoint, or the one that is named, beside the towers that it needs."""
    there = RunStore(store.uri("runs", "opened"))
    for name in ("checkpoint_00000002", "checkpoint_00000004", "best", "towers/image_tower"):
        there.put_folder(folder_of(tmp_path / "made" / name, name), name)
    store.put("runs/opened/newest_checkpoint.json", json.dumps(["checkpoint_00000002", "checkpoint_00000004"]).encode())
    store.put("runs/opened/checkpoint_00000006/weights", b"incomplete")
    for given, name in {"": "checkpoint_00000004", "/checkpoint_00000002": "checkpoint_00000002", "/best": "best"}.items():
        found = find_checkpoint(there.uri + given)
        assert (found / "weights").read_text() == name == found.name
        assert (found.parent / "towers" / "image_tower" / "weights").read_text() == "towers/image_tower"
    for missing in (store.uri("runs", "nowhere"), f"{there.uri}/checkpoint_00000006"):
        with refused("checkpoint", missing):
            find_checkpoint(missing)


def lease_of(name: str, beat: int) -> bytes:
    return json.dumps({"holder": name, "machine": "elsewhere", "process": 1, "beat": beat}).encode()


@contextmanager
def renewed(store: Store, name: str) -> Iterator[None]:
    """A process of another machine renews this run's lease in the block."""
    over = threading.Event()

    def renew() -> None:
        beat = 1
        while not over.wait(0.02):
            beat += 1
            store.put(f"seen/{name}/.lock", lease_of(name, beat))

    thread = threading.Thread(target=renew)
    thread.start()
    yield
    over.set()
    thread.join()


def test_what_is_seen_of_runs_in_a_store(
    store: Store, node: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Growing files count as a whole; a run is at work whose lease is renewed, whatever the clocks say."""
    for name in ("dead", "living"):
        store.put(f"seen/{name}/sessions.jsonl.parts/000000", b'{"time": 0, "event": "start", "total": 10, "seen": null}\n')
        store.put(f"seen/{name}/metrics.jsonl.parts/000000", b'{"step": 1, "time": 5}\n{"ste')
        store.put(f"seen/{name}/metrics.jsonl.parts/000001", b'p": 2, "time": 6}\n')
        store.put(f"seen/{name}/.lock", lease_of(name, 1))
    store.put("seen/over/result.json", b'{"step": 3}')
    store.put("seen/over/metrics.jsonl", b'{"step": 3, "time": 6}\n')
    store.put("seen/over/metrics.jsonl.parts/000000", b'{"step": 2, "time": 6}\n')
    store.put("seen/over/.lock", b"{}")
    store.put("seen/data/manifest.json", b"{}")
    store.put("seen/.hidden/result.json", b'{"step": 3}')
    assert (status_of(store.uri("seen", "dead")).state, status_of(store.uri("seen", "over")).step) == ("running", 3)
    monkeypatch.setattr(lease, "EXPIRY", 0.0)  # as if they had been renewed long ago
    monkeypatch.setattr(lease, "RENEWAL", 0.5)
    with renewed(store, "living"):
        assert main([store.uri("seen")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        ("dead", "failed", "2"),
        ("living", "running", "2"),
        ("over", "finished", "3"),
    ]
    for place in (store.uri("nothing"), "https://host/runs"):
        assert main([place]) == 2
        assert place in capsys.readouterr().err
