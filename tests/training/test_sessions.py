"""What a run took over all its sessions, by the lines of files that are written as it runs; and what `raylign status` says."""

import fcntl
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.program.errors import UserError
from raylign.__main__ import main
from training.sessions import SESSIONS, Session, history
from training.status import Status, status_of

TEN = {"event": "start", "total": 10}


def lines(path: Path, *given: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in given))


def workers(at: float, step: int, count: int, redone: int, *nodes: str, gpus: int = 0) -> dict[str, Any]:
    values = {"time": at, "event": "workers", "step": step, "redone": redone, "workers": count, "gpus": gpus}
    return values | {"nodes": [*nodes]}


@pytest.fixture
def eventful(tmp_path: Path) -> Path:
    """A session that lost a worker and was killed, one that was stopped while it waited, and one that finished."""
    folder = tmp_path / "eventful"
    folder.mkdir()
    phase = lambda at, name: {"time": at, "event": "phase", "name": name}  # noqa: E731
    lines(
        folder / SESSIONS,
        {"time": 0.0, **TEN, "seen": None},
        phase(0.0, "start"),
        phase(10.0, "training"),
        workers(20.0, 0, 2, 0, "a", "b", gpus=2),
        workers(140.0, 3, 1, 1, "a", gpus=1),
        # Killed; the last report came at 200.
        {"time": 1000.0, **TEN, "seen": 200.0},
        phase(1000.0, "start"),
        phase(1005.0, "training"),
        {"time": 1010.0, "event": "waiting", "text": "for a GPU"},
        {"time": 1105.0, "event": "end", "state": "stopped", "cause": ""},
        {"time": 2000.0, **TEN, "seen": 200.0},
        phase(2000.0, "start"),
        phase(2002.0, "training"),
        workers(2010.0, 3, 1, 2, "c", gpus=1),
        phase(2046.0, "report"),
        {"time": 2050.0, "event": "end", "state": "finished"},
    )
    lines(folder / "restarts.jsonl", {"time": 92.0, "cause": "worker 1 died", "workers": {}})
    lines(folder / "metrics.jsonl", {"step": 10, "time": 2045.0})
    return folder


def test_costs_of_all_sessions_add_up(eventful: Path) -> None:
    costs = history(eventful)
    assert costs["seconds"] == {"start": 10 + 5 + 2, "training": 190 + 100 + 44, "report": 4}
    assert (costs["sessions"], costs["redone_steps"], costs["nodes"]) == (3, 3, ["a", "b", "c"])
    assert costs["restarts"] == [{"time": 92.0, "cause": "worker 1 died"}]
    assert [(start["step"], start["workers"]) for start in costs["workers"]] == [(0, 2), (3, 1), (3, 1)]
    # Two workers until one died, not until they were replaced; one until the driver was killed; one until training ended.
    assert costs["worker_hours"] == costs["gpu_hours"] == pytest.approx((2 * 72 + 60 + 36) / 3600, abs=1e-4)


def test_a_session_that_works_counts_until_now(tmp_path: Path) -> None:
    with Session(tmp_path, 10, held_back=False) as session:
        session.phase("training")
        assert history(tmp_path, time.time() + 3600)["seconds"]["training"] >= 3600 > history(tmp_path)["seconds"]["training"]


def test_nothing_is_written_into_an_earlier_run_before_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(0.0, 10.0)
    monkeypatch.setattr("training.sessions.time", SimpleNamespace(time=lambda: next(times)))
    with pytest.raises(KeyError), Session(tmp_path, 10, held_back=True):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with Session(tmp_path, 10, held_back=True) as session:
        session.phase("training")
        session.release()
        session.phase("report")
    assert history(tmp_path)["seconds"] == {"start": 10, "training": 10, "report": 10}


# What is seen from outside


def begun(folder: Path, **metrics: Any) -> Path:
    """A run of which one session has begun."""
    folder.mkdir()
    with (folder / ".lock").open("w"):
        lines(folder / SESSIONS, {"time": time.time(), **TEN, "seen": None})
        lines(folder / "metrics.jsonl", *([{"step": 4, "time": time.time(), "workers": 1, **metrics}] if metrics else []))
    return folder


def seen(folder: Path) -> Status:
    """The status while a process holds the run's lock."""
    with (folder / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return status_of(folder)


def append(folder: Path, **event: Any) -> None:
    with (folder / SESSIONS).open("a") as file:
        file.write(json.dumps({"time": time.time(), **event}) + "\n")


def test_states(tmp_path: Path, eventful: Path) -> None:
    run = begun(tmp_path / "run")
    assert (seen(run).state, status_of(run).state) == ("running", "failed"), "a lock that nobody holds is a dead process's"
    append(run, event="waiting", text="2 x GPU")
    assert (seen(run).state, seen(run).why) == ("waiting", "2 x GPU")
    append(run, **workers(time.time(), 0, 2, 0, "a"))
    assert seen(run).state == "running"
    append(run, event="end", state="stopped", cause="")
    assert status_of(run).state == "stopped"
    append(run, event="start", total=10, seen=None)
    append(run, event="end", state="failed", cause="the disk is full")
    assert (status_of(run).state, status_of(run).why) == ("failed", "the disk is full")
    append(run, event="start", total=10, seen=None)
    assert seen(run).state == "running", "a new start waits for nothing"
    (eventful / "result.json").write_text(json.dumps({"step": 10}))
    assert (status_of(eventful).state, status_of(eventful).seconds_left) == ("finished", None)


def test_progress(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    steps = [{"step": step, "seconds": 60.0 * step, "time": 0, "samples_per_second": 9.0, "data_wait": 0.5} for step in (1, 2, 4)]
    lines(run / "metrics.jsonl", *steps)
    status = seen(run)
    assert (status.step, status.total, status.seconds_left) == (4, 10, 360.0)
    assert (status.samples_per_second, status.data_wait, status.kept) == (9.0, 0.5, None)


def test_the_command_tells_of_one_run_and_of_all(tmp_path: Path, eventful: Path, capsys: pytest.CaptureFixture) -> None:
    begun(tmp_path / "other", samples_per_second=1234.0)
    assert main(["status", str(eventful)]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("worker 1 died", "10 of 10", "0.07 GPU hours", "a, b"))
    hours = status_of(eventful).costs["worker_hours"]
    assert main(["status", str(eventful), "--price", "1000"]) == 0
    assert f"{hours * 1000:,.2f} at 1000" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--price", "1000"]) == 0
    assert f" {hours * 1000:,.2f}" in capsys.readouterr().out
    assert main(["status", str(tmp_path)]) == 0
    table = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[2:]}
    assert "failed" in table["other"] and "1,234" in table["other"] and "2 1" in table["eventful"]


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["nothing", "empty"])
def test_where_there_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "runs")
    assert main(["status", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'runs'}: ")
    with pytest.raises(UserError):
        status_of(tmp_path / "runs")
