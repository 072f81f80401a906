"""metrics.jsonl is one run's history whatever was restarted, and `best` is always a whole checkpoint."""

import json
from pathlib import Path

import pytest
import ray.train

from training.checkpoint import keep_snapshot, mend_snapshot, newest_checkpoint
from training.metrics_log import MetricsLog, Recorder, read_metrics


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
    """Workers went on from step 10; the lines of 20 and 30 belong to a history that did not happen."""
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
def test_a_line_cut_short_by_a_kill_is_forgotten_and_swallows_nothing(tmp_path: Path, step: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 1.0}\n{"step": 20, "lo')
    assert steps(path) == [(10, 1.0)]
    log = MetricsLog(path)
    log.append({"step": step, "loss": 3.0})
    assert steps(path) == [(10, 1.0)] * (step > 10) + [(step, 3.0)]


def checkpoint(folder: Path, content: str) -> ray.train.Checkpoint:
    folder.mkdir()
    (folder / "state.pt").write_text(content)
    return ray.train.Checkpoint.from_directory(str(folder))


@pytest.mark.parametrize(
    ("mode", "values", "best"), [("max", [5.0, 4.0, 6.0, 6.0], [0, 2]), ("min", [5.0, 4.0, 4.0, 6.0], [0, 1])]
)
def test_the_best_checkpoint_is_copied(tmp_path: Path, mode: str, values: list[float], best: list[int]) -> None:
    """As good as before is not better."""
    recorder = Recorder(tmp_path, "score", mode, tensorboard=False)
    kept = None
    for number, value in enumerate(values):
        metrics = {"step": number, "loss": 1.0, "score": value}
        recorder.after_report(None, [metrics], checkpoint(tmp_path / f"checkpoint_{number}", f"weights {number}"))
        kept = number if number in best else kept
        assert (tmp_path / "best" / "state.pt").read_text() == f"weights {kept}"
        assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == kept
    assert not list(tmp_path.glob("best.*"))
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]


def test_the_best_of_an_earlier_process_counts(tmp_path: Path) -> None:
    first, second = (Recorder(tmp_path, "score", "max", tensorboard=False) for _ in range(2))
    first.after_report(None, [{"step": 1, "score": 9.0}], checkpoint(tmp_path / "a", "good"))
    second.after_report(None, [{"step": 2, "score": 8.0}], checkpoint(tmp_path / "b", "worse"))
    second.after_report(None, [{"step": 3, "loss": 8.0}], checkpoint(tmp_path / "c", "not scored"))
    second.after_report(None, [{"step": 4, "score": 10.0}], None)
    assert (tmp_path / "best" / "state.pt").read_text() == "good"


@pytest.mark.parametrize("left", ["best.partial", "best.old"])
def test_what_a_kill_left_behind_does_not_stop_the_next_copy(tmp_path: Path, left: str) -> None:
    recorder = Recorder(tmp_path, "score", "max", tensorboard=False)
    recorder.after_report(None, [{"step": 1, "score": 1.0}], checkpoint(tmp_path / "a", "one"))
    (tmp_path / left).mkdir()
    (tmp_path / left / "state.pt").write_text("half")
    recorder.after_report(None, [{"step": 2, "score": 2.0}], checkpoint(tmp_path / "b", "two"))
    assert (tmp_path / "best" / "state.pt").read_text() == "two" and not (tmp_path / left).exists()


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
    recorder.after_exception(None, {0: closed, 1: ValueError("what happened\nGLHF!")})
    (line,) = read_metrics(tmp_path / "restarts.jsonl")
    assert line["cause"] == "worker 1: ValueError: what happened GLHF! (1 other failed with it)"
    assert line["workers"].keys() == {"0", "1"} and "Connection closed by peer" in line["workers"]["0"]


def test_a_list_of_checkpoints_that_was_cut_off_is_mended(tmp_path: Path) -> None:
    """Ray Train writes it in place; killed meanwhile, it could never go on from it."""
    snapshot = tmp_path / "checkpoint_manager_snapshot.json"

    def listed(name: str) -> str:
        return json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": name}})

    mend_snapshot(tmp_path)
    assert list(tmp_path.iterdir()) == [], "a run that begins"
    snapshot.write_text("")
    mend_snapshot(tmp_path)
    assert not snapshot.exists(), "the very first list was cut off: the run starts again"
    snapshot.write_text(listed("checkpoint_1"))
    assert keep_snapshot(tmp_path)
    for rest in ("", listed("checkpoint_2")[:20]):
        snapshot.write_text(rest)
        assert not keep_snapshot(tmp_path), "half a list replaces none"
        assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_1"
        mend_snapshot(tmp_path)
        assert snapshot.read_text() == listed("checkpoint_1")
    snapshot.write_text(listed("checkpoint_3"))
    mend_snapshot(tmp_path)
    snapshot.write_text("{")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint_3", "a whole one counts, even if it was never copied before"
