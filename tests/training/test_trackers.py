"""Trackers of a run, with their own packages, offline or on this disk: one run however often it is started, and no harm to it.

What needs a package is skipped without it (docs/trackers.md).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.display import Display
from tests.patience import wait_until
from tests.refusals import refused
from tests.training.inline_runs import train
from tests.training.squares import STEPS, planner
from training import trackers
from training.checkpoint_registry import settle
from training.metrics_file import read_metrics
from training.plan import Plan
from training.trackers import FILE, check_trackers, tracked

ROOT = Path(__file__).parents[2]
NAMES = ["wandb", "mlflow", "trackio"]
Steps = dict[str, list[int]]  # of each run that a tracker has, by its id


def needs(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tracker leaves this disk, nor is given up on a busy machine."""
    monkeypatch.setattr(trackers, "_LAST", 600.0)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def in_wandb(runs: list[Path]) -> Steps:
    from wandb.proto import wandb_internal_pb2

    (run,) = runs
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))  # of each start

    def newest() -> list[Any]:
        return [wandb_internal_pb2.Record.FromString(data) for data in records(files[-1].read_bytes())]

    wait_until(lambda: any(record.HasField("exit") for record in newest()), every=0.5)  # a process of W&B's own writes it
    found: Steps = {file.stem.removeprefix("run-"): [] for file in files}
    for record in newest():
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found[files[-1].stem.removeprefix("run-")].append(int(items["_step"]))
    return found


def records(data: bytes) -> Iterator[bytes]:
    """Of W&B's file: after 7 bytes LevelDB's log, whose blocks of 32 KiB hold records and parts of them."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


def in_mlflow(runs: list[Path]) -> Steps:
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    (experiment,) = (each for each in client.search_experiments() if each.name == "raylign")
    all_runs = client.search_runs([experiment.experiment_id])
    assert all(run.info.status == "FINISHED" and run.data.params["optimizer.lr"] == "0.01" for run in all_runs)
    return {
        run.data.tags["raylign.id"]: sorted(
            metric.step for metric in client.get_metric_history(run.info.run_id, "samples_per_second")
        )
        for run in all_runs
    }


def in_trackio(runs: list[Path]) -> Steps:
    from trackio.sqlite_storage import SQLiteStorage

    names = SQLiteStorage.get_runs("raylign")
    return {name.rpartition("-")[2]: [log["step"] for log in SQLiteStorage.get_logs("raylign", name)] for name in names}


READ: dict[str, Callable[[list[Path]], Steps]] = {"wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


def go_on(plan: Plan, folder: Path, until: int | None = None) -> None:
    """Train, as a start of the command does, in this process."""
    with tracked(plan.settings, folder, Display(quiet=True)):
        settle(folder, print)
        train(plan, folder, until)


def killed_in_a_process(squares: Path, folder: Path, name: str) -> None:
    """A start whose process is killed when it has reported step 5, and its tracker may have been told."""
    code = "\n".join(
        [
            "import json, os, signal, sys, time",
            "from pathlib import Path",
            "import training.trackers as k",
            "from tests.training.test_trackers import Display, planner, train",
            "k._POLL, plan, folder = 0.05, planner(Path(sys.argv[1]))(loggers=[sys.argv[3]]), Path(sys.argv[2])",
            "with k.tracked(plan.settings, folder, Display()):",
            "    train(plan, folder, 5)",
            "    while json.loads((folder / k.FILE).read_text())['sent'].get(sys.argv[3], 0) < 5:",
            "        time.sleep(0.05)",
            "    os.kill(os.getpid(), signal.SIGKILL)",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(squares), str(folder), name], cwd=ROOT, env=dict(os.environ), timeout=600
    )
    assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize("name", [needs(name) for name in NAMES])
def test_a_run_that_is_killed_goes_on_elsewhere_as_the_same_run(name: str, squares: Path, tmp_path: Path) -> None:
    """Every line is there once: those up to the kill, and those of another node that has a copy of the folder."""
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    first.mkdir(parents=True)
    killed_in_a_process(squares, first, name)
    shutil.copytree(first, second)
    plan = planner(squares)(loggers=[name])
    go_on(plan, second)
    identifier = json.loads((second / FILE).read_text())["id"]
    assert READ[name]([second]).keys() == {identifier}
    steps = READ[name]([second])[identifier]
    assert sorted(set(steps)) == list(range(1, STEPS + 1)) == [line["step"] for line in read_metrics(second / "metrics.jsonl")]
    assert len(steps) == len(set(steps))
    # Started again, it has nothing to send.
    with tracked(plan.settings, second, Display(quiet=True), over=True):
        pass
    assert READ[name]([second])[identifier] == steps


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_an_outage_ends_no_run_and_what_it_missed_is_sent_later(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    there = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    plan, folder = planner(squares)(loggers=["mlflow"]), tmp_path / "run"
    folder.mkdir()
    with tracked(plan.settings, folder, Display()):
        result, reported = train(plan, folder)
    assert result is not None and reported == list(range(1, STEPS + 1))
    assert "warning: mlflow: " in capsys.readouterr().out
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there)
    with tracked(plan.settings, folder, Display(), over=True):
        pass
    assert list(in_mlflow([folder]).values()) == [reported]


def test_what_cannot_be_tracked_is_refused_before_training(
    plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as nothing:
        nothing.setattr(trackers, "find_spec", lambda name: None)
        for name in NAMES:
            with refused("loggers", name, remedy="trackio" if name == "trackio" else f"raylign[{name}]"):
                check_trackers(plan_of(loggers=[name]).settings)
    with refused("loggers", "'wandb'", remedy="remove one"):
        plan_of(loggers=["wandb", "wandb"])
    if find_spec("mlflow") is not None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        with refused("loggers", remedy="MLFLOW_TRACKING_URI"):
            check_trackers(plan_of(loggers=["mlflow"], storage="s3://b/runs").settings)
    if find_spec("wandb") is not None:
        check_trackers(plan_of(loggers=["wandb"]).settings)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        import wandb

        wandb.teardown()
        with refused("loggers", "wandb", remedy="WANDB_MODE=offline"):
            check_trackers(plan_of(loggers=["wandb"]).settings)
