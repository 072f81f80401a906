"""The same on Google's protocol: files below gs://, a run on two nodes, and a trial that goes on on another one."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from gcp_storage_emulator import server as emulator

from pipelines.io import lease, storage
from pipelines.io.retry import Missing
from pipelines.program.display import Display
from tests.training.squares import BEST, STEPS, tree_of, write_root
from training.checkpoint_registry import seal
from training.metrics_file import append_lines, read_metrics
from training.run_store import RunStore, appended, finished, kept
from training.working_copy import working_copy
from tuning.trial_runner import run_trial
from tuning.trials import Folder, Trial, pull

QUIET = Display(quiet=True)


def _serve(told: Any) -> None:
    emulator.server.HTTPServer = ThreadingHTTPServer  # its own answers one connection at a time, and clients keep several
    server = emulator.create_server("localhost", 0, in_memory=True, default_bucket="bucket")
    server.start()
    told.send(server._api._httpd.server_port)
    told.recv()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an emulator, in a process of its own: while it is asked for bytes, this one has Python's lock."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(there,), daemon=True)
    process.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{here.recv()}")
        patch.setattr(lease, "SETTLE", 0.0)
        yield "gs://bucket"
    process.kill()
    process.join()


def test_files(bucket: str, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than one request takes
    (tmp_path / "file").write_bytes(content)
    for name in ("a/b/c", "a/b/d", "a/bc", "ab"):
        storage.send(tmp_path / "file", f"{bucket}/{name}")
    assert storage.read(f"{bucket}/a/b/c") == content and storage.read(f"{bucket}/a/b/c", 300, 7) == content[300:307]
    assert [file.path for file in storage.files_below(f"{bucket}/a")] == [f"{bucket}/a/{name}" for name in ("b/c", "b/d", "bc")]
    assert {file.size for file in storage.files_below(f"{bucket}/a")} == {len(content)}
    assert [file.path for file in storage.find(f"{bucket}/a/*/[cd]", "path")] == [f"{bucket}/a/b/c", f"{bucket}/a/b/d"]
    with storage.written(f"{bucket}/a/b/c") as aside:
        aside.write_text("other")
        assert storage.read(f"{bucket}/a/b/c") == content
    assert storage.read(f"{bucket}/a/b/c") == b"other"
    storage.delete(f"{bucket}/a/b")
    assert [file.path for file in storage.files_below(bucket)] == [f"{bucket}/a/bc", f"{bucket}/ab"]
    storage.delete(f"{bucket}/a/bc")
    assert storage.exists(f"{bucket}/ab") and not storage.exists(f"{bucket}/a/bc")
    for missing in (f"{bucket}/a/b/c", "gs://none/a"):
        with pytest.raises(Missing):
            storage.read(missing)
    with pytest.raises(OSError):
        storage.send(tmp_path / "file", "gs://none/a")


def test_a_run_on_two_nodes(bucket: str, node: Any) -> None:
    """What the first has put there, the second has."""
    uri = f"{bucket}/runs/one"
    with working_copy(uri, QUIET) as run:
        for content in ("old", "new"):
            (run / "best").mkdir(exist_ok=True)
            (run / "best" / "weights").write_text(content)
            seal(run / "best")
            kept(run, "best")
        for step in range(3):
            append_lines(run / "metrics.jsonl", [{"step": step}])
            appended(run, "metrics.jsonl")
        assert json.loads(storage.read(f"{uri}/.lock"))["process"] == os.getpid()
    node("second")
    with working_copy(uri, QUIET) as other:
        assert other != run and (other / "best" / "weights").read_text() == "new"
        assert [line["step"] for line in read_metrics(other / "metrics.jsonl")] == [0, 1, 2]
        finished(other)
    assert set(RunStore(uri).files()) == {"best/digests.json", "best/weights", "metrics.jsonl"}


@pytest.mark.filterwarnings("ignore:`(report|get_session)` is meant to only be called")
def test_a_trial_goes_on_on_another_node(bucket: str, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as one on a disk, with the same files."""
    write_root(tmp_path)

    def die(values: dict[str, Any]) -> None:
        raise KeyboardInterrupt  # which no outcome records, as a killed process

    trial, ends = Trial("all", "final", 0, 1, {}, {}, "all"), []
    for place in (f"{bucket}/runs/sweep", tmp_path / "sweep"):
        node("driver")
        if isinstance(place, str):
            with working_copy(place, QUIET, "sweep", pull):
                Folder(place).begin(trial)
        else:
            Folder(place).begin(trial)
        config = {"name": trial.name, "tree": tree_of(tmp_path) | {"name": trial.name}, "items": True}
        config |= {
            "place": str(Folder(place).place(trial.name)),
            "inline": True,
            "data_cpus": 1,
            "score": [BEST],
            "logged": False,
        }
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            node("first")
            patched.setattr("ray.tune.report", die)
            run_trial(config)
        node("second")
        run_trial(config)
        run = Folder(place).of(trial.name)
        on_disk = {
            str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")
        }
        files = RunStore(config["place"]).files() if isinstance(place, str) else on_disk
        ends.append((set(files), storage.read(f"{config['place']}/metrics.jsonl")))
    (ours, text), (theirs, other_text) = ends
    assert ours == theirs and any("state.safetensors" in name for name in ours)
    lines, others = ([json.loads(line) for line in one.splitlines()] for one in (text, other_text))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)) and lines[-1]["loss"] == others[-1]["loss"]
