"""metrics.jsonl is the history of one run whatever was restarted, and `best` is always a complete checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import ray.train

from pipelines.program.ray_elastic import FAILURE, LOST_NODE
from tests.refusals import refused
from training import metrics_log
from training.checkpoint_registry import newest_checkpoint, seal
from training.failures import Restarts
from training.metrics_log import MetricsLog, Recorder, append_lines, read_metrics


def steps(path: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_metrics(path)]


def test_lines_are_appended_and_readable_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    log = MetricsLog(path)
    for step in (10, 20):
        log.append({"step": step, "loss": step / 10})
        assert steps(path)[-1] == (step, step / 10)


@pytest.mark.parametrize("reopened", [False, True])
def test_after_a_restart_lines_are_replaced_not_doubled(tmp_path: Path, reopened: bool) -> None:
    """Workers resumed from step 10; the lines of steps 20 and 30 are no longer part of the history."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (10, 20, 30):
        log.append({"step": step, "loss": 1.0})
    log = MetricsLog(path) if reopened else log
    log.append({"step": 20, "loss": 2.0})
    assert steps(path) == [(10, 1.0), (20, 2.0)]
    log.append({"step": 30, "loss": 2.0})
    assert steps(path) == [(10, 1.0), (20, 2.0), (30, 2.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("step", [10, 20, 30])
def test_a_line_truncated_by_a_kill_is_dropped_and_no_other(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
    assert steps(path) == [(10, 1.0)]
    log = MetricsLog(path)
    log.append({"step": step, "loss": 3.0})
    assert steps(path) == [(10, 1.0)] * (step > 10) + [(step, 3.0)]


def test_a_line_with_a_byte_that_is_no_text_costs_itself_only(tmp_path: Path) -> None:
    """The top bit of a byte flipped: a run goes on, and its page can be written."""
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append({"step": 10, "loss": 1.0})
    MetricsLog(path).append({"step": 20, "loss": 2.0})
    data = bytearray(path.read_bytes())
    data[3] ^= 0x80
    path.write_bytes(data)
    assert steps(path) == [(20, 2.0)]
    MetricsLog(path).append({"step": 30, "loss": 3.0})
    assert steps(path) == [(20, 2.0), (30, 3.0)]


def checkpoint(folder: Path, content: str) -> ray.train.Checkpoint:
    folder.mkdir()
    (folder / "state.safetensors").write_text(content)
    (folder / "checkpoint.json").write_text(json.dumps({"format": 3, "config": {}}))
    seal(folder)
    return ray.train.Checkpoint.from_directory(str(folder))


@pytest.mark.parametrize(
    ("mode", "values", "best"), [("max", [5.0, 4.0, 6.0, 6.0], [0, 2]), ("min", [5.0, 4.0, 4.0, 6.0], [0, 1])]
)
def test_the_best_checkpoint_is_copied(tmp_path: Path, mode: str, values: list[float], best: list[int]) -> None:
    """An equal value is not better."""
    recorder = Recorder(tmp_path, "score", mode, tensorboard=False)
    kept = None
    for number, value in enumerate(values):
        metrics = {"step": number, "loss": 1.0, "score": value}
        recorder.after_report(None, [metrics], checkpoint(tmp_path / f"checkpoint_{number}", f"weights {number}"))
        kept = number if number in best else kept
        assert (tmp_path / "best" / "state.safetensors").read_text() == f"weights {kept}"
        assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == kept
    assert not list(tmp_path.glob("best.*"))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_the_best_of_an_earlier_process_counts(tmp_path: Path) -> None:
    first, second = (Recorder(tmp_path, "score", "max", tensorboard=False) for _ in range(2))
    first.after_report(None, [{"step": 1, "score": 9.0}], checkpoint(tmp_path / "a", "good"))
    second.after_report(None, [{"step": 2, "score": 8.0}], checkpoint(tmp_path / "b", "worse"))
    second.after_report(None, [{"step": 3, "loss": 8.0}], checkpoint(tmp_path / "c", "not scored"))
    second.after_report(None, [{"step": 4, "score": 10.0}], None)
    assert (tmp_path / "best" / "state.safetensors").read_text() == "good"


@pytest.mark.parametrize("left", ["best.partial", "best.old"])
def test_what_a_kill_left_behind_does_not_stop_the_next_copy(tmp_path: Path, left: str) -> None:
    recorder = Recorder(tmp_path, "score", "max", tensorboard=False)
    recorder.after_report(None, [{"step": 1, "score": 1.0}], checkpoint(tmp_path / "a", "one"))
    (tmp_path / left).mkdir()
    (tmp_path / left / "state.safetensors").write_text("half")
    recorder.after_report(None, [{"step": 2, "score": 2.0}], checkpoint(tmp_path / "b", "two"))
    assert (tmp_path / "best" / "state.safetensors").read_text() == "two" and not (tmp_path / left).exists()


def test_tensorboard_receives_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(tmp_path, None, "max", tensorboard=True)
    for step in (1, 2):
        recorder.after_report(None, [{"step": step, "loss": 0.5 / step}], None)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(1, 0.5), (2, 0.25)]


def test_restarts_are_noted_with_their_causes(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, None, "max", tensorboard=False)
    closed = RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:46107\nGLHF!")
    errors = {0: closed, 1: ConnectionError("what happened\nGLHF!")}
    restarts = Restarts(1, recorder.note_restart)
    restarts(LOST_NODE, "node 10.0.0.1 was lost", errors)
    restarts.after_report(None, [{"step": 7}], None)
    restarts(FAILURE, None, errors)
    lost, failed = read_metrics(tmp_path / "restarts.jsonl")
    assert (lost["kind"], lost["cause"], lost["step"]) == (LOST_NODE, "node 10.0.0.1 was lost", None)
    assert (failed["kind"], failed["step"]) == (FAILURE, 7)
    assert failed["cause"] == "worker 1: ConnectionError: what happened GLHF! (1 other failed with it)"
    assert failed["workers"].keys() == {"0", "1"} and "Connection closed by peer" in failed["workers"]["0"]


# Disk errors


class Failing:
    """Makes the function that writes to one of the places fail so many times, then work."""

    def __init__(self, patch: pytest.MonkeyPatch, place: str, times: int):
        owner, name, argument = PLACES[place]
        self.left, whole = times, getattr(owner, name)

        def work(*arguments: Any, **options: Any) -> Any:
            if self.left and place in str(arguments[argument]):
                self.left -= 1
                raise OSError(28, "No space left on device")
            return whole(*arguments, **options)

        patch.setattr(owner, name, work)
        patch.setattr(metrics_log, "_FIRST_WAIT", 0)


PLACES = {
    "metrics.jsonl": (Path, "open", 0),
    "unusable.jsonl": (Path, "open", 0),
    "restarts.jsonl": (Path, "open", 0),
    "checkpoint_manager_snapshot.kept": (Path, "open", 0),
    "best.partial": (ray.train.Checkpoint, "to_directory", 1),
}


def report(recorder: Recorder, tmp_path: Path, number: int) -> None:
    """All calls of a controller for one report and one lost worker."""
    metrics = {"step": number, "loss": 1.0, "score": float(number), "unusable_rows": [[number, "bad"]]}
    name = f"checkpoint_{number:08d}"
    result = {"version": 0, "checkpoint_dir_name": name, "metrics": {}}
    tree = {"checkpoint_results": [result], "checkpoint_report_indices": [0], "latest_checkpoint_result": result}
    (tmp_path / "checkpoint_manager_snapshot.json").write_text(json.dumps(tree | {"current_report_index": 1}))
    recorder.after_report(None, [metrics], checkpoint(tmp_path / name, f"weights {number}"))
    recorder.note_restart(FAILURE, "lost", {0: RuntimeError(f"lost {number}")}, number)


@pytest.mark.parametrize("file", PLACES)
def test_failed_writes_are_retried_as_often_as_max_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """Each line is written once, and in its order."""
    recorder = Recorder(tmp_path, "score", "max", False, max_failures=3)
    report(recorder, tmp_path, 1)
    with monkeypatch.context() as patch:
        failing = Failing(patch, file, times=3)
        report(recorder, tmp_path, 2)
        assert failing.left == 0
    report(recorder, tmp_path, 3)
    assert steps(tmp_path / "metrics.jsonl") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert [line["sample_id"] for line in read_metrics(tmp_path / "unusable.jsonl")] == [1, 2, 3]
    assert [line["workers"]["0"] for line in read_metrics(tmp_path / "restarts.jsonl")] == [
        f"RuntimeError: lost {i}" for i in (1, 2, 3)
    ]
    assert (tmp_path / "best" / "state.safetensors").read_text() == "weights 3"
    assert newest_checkpoint(tmp_path).name == "checkpoint_00000003"


@pytest.mark.parametrize("file", ["metrics.jsonl", "restarts.jsonl"])
def test_after_the_last_retry_the_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    recorder = Recorder(tmp_path, "score", "max", False, max_failures=2)
    with monkeypatch.context() as patch:
        Failing(patch, file, times=3)
        with pytest.raises(OSError) as caught:
            report(recorder, tmp_path, 1)
    for named in (file, str(tmp_path), "3", "No space left on device"):
        assert named in str(caught.value)


def test_half_a_line_of_a_full_disk_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "restarts.jsonl"
    append_lines(path, [{"n": 1}])
    path.write_text(path.read_text() + '{"n": 2, "wor')
    append_lines(path, [{"n": 2}, {"n": 3}])
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'
    path.write_text('{"n"')
    append_lines(path, [{"n": 1}])
    assert path.read_text() == '{"n": 1}\n'


@pytest.mark.parametrize("best", ["score", None])
def test_the_line_of_a_listed_checkpoint_is_written_though_its_process_died_before(tmp_path: Path, best: str | None) -> None:
    """Ray Train lists a checkpoint before it tells us of the report: the run resumes after it, and would never have its line."""
    recorder = Recorder(tmp_path, best, "max", False)
    recorder.after_report(None, [{"step": 1, "loss": 2.0}], None)
    listed = checkpoint(tmp_path / "checkpoint_00000002", "two")
    metrics = {"step": 2, "loss": 1.0, "score": 9.0, "unusable_rows": [[7, "broken"]]}
    (Path(listed.path) / "checkpoint.json").write_text(json.dumps({"format": 3, "config": {}, "metrics": metrics}))
    (Path(listed.path) / "digests.json").unlink()
    seal(Path(listed.path))
    (tmp_path / "newest_checkpoint.json").write_text(json.dumps(["checkpoint_00000002"]))
    for _ in range(2):
        Recorder(tmp_path, best, "max", False).catch_up()
        lines = read_metrics(tmp_path / "metrics.jsonl")
        assert [(line["step"], line["loss"]) for line in lines] == [(1, 2.0), (2, 1.0)] and "unusable_rows" not in lines[1]
        assert read_metrics(tmp_path / "unusable.jsonl") == [{"sample_id": 7, "reason": "broken"}]
    assert (tmp_path / "best").exists() == (best is not None)


@pytest.mark.parametrize("kind", ["state.safetensors", "best.json"])
def test_a_damaged_best_is_named_before_training(tmp_path: Path, kind: str) -> None:
    """The best checkpoint exists nowhere else, so only the user can decide to choose among the rest."""
    Recorder(tmp_path, "score", "max", False).after_report(None, [{"step": 1, "score": 9.0}], checkpoint(tmp_path / "a", "x"))
    file = tmp_path / "best" / kind
    file.write_bytes(file.read_bytes()[:-1] + b"~")
    with refused("checkpoint.best", tmp_path / "best", kind, remedy="delete"):
        Recorder(tmp_path, "score", "max", False).catch_up()
