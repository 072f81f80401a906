"""A sweep that is asked to stop: trials under way save and end without an outcome, and none is handed out any more. No Ray."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.exceptions
from ray.tune.experiment import Trial as TuneTrial

from tests.patience import PATIENCE, wait_until
from tests.tuning.trainer import SCORE, finished, schedule_of, settings
from training.config import TrainSettings
from tuning import searcher as module
from tuning.early_stopping import _death
from tuning.resources import Booking
from tuning.searcher import ScheduleSearcher
from tuning.trials import Folder


@pytest.fixture
def searcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScheduleSearcher:
    """With three trials out; what trials are configured to be is no matter here."""
    monkeypatch.setattr(module, "booking_of", lambda _: Booking(inline=True, workers=1, cpus=1, data_cpus=1, gpus=0))
    monkeypatch.setattr(module, "give_back", lambda _: None)
    config = cast(TrainSettings, SimpleNamespace(model_dump=lambda mode: {}))
    sweep = settings()
    searcher = ScheduleSearcher(sweep, schedule_of(sweep, tmp_path), Folder(tmp_path), lambda _: config, SCORE, 4, {}, None)
    assert all(isinstance(searcher.suggest(name), dict) for name in ("a", "b", "c"))
    return searcher


def test_trials_that_train_are_waited_for_and_resume_with_the_next_start(
    searcher: ScheduleSearcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = Folder(tmp_path), {key: trial.name for key, trial in searcher.out.items()}
    training, asked = {folder.of(names["a"]), folder.of(names["b"])}, []

    def ask(run: Path) -> bool:
        asked.append(run)
        return run in training

    monkeypatch.setattr(module, "ask", ask)
    thread = threading.Thread(target=searcher.stop)
    thread.start()
    wait_until(lambda: len(set(asked)) == 3)
    assert searcher.suggest("d") is None and thread.is_alive()
    training.clear()  # its steps have ended, but the trial has not yet
    before = len(asked)
    wait_until(lambda: len(asked) > before + 6)
    assert thread.is_alive()
    searcher.on_trial_complete("a")
    folder.end(names["b"], finished(1.0))  # it was in its last step
    searcher.on_trial_complete("b")
    thread.join(PATIENCE)
    assert not thread.is_alive() and set(searcher.out) == {"c"}, "nobody waits for a trial that trains no step yet"
    assert folder.ended(names["a"]) is None and folder.ended(names["b"]) is not None
    again = schedule_of(settings(), tmp_path)
    handed = {cast(Any, again.next()).name for _ in range(2)}
    assert handed == {names["a"], names["c"]}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ray.exceptions.RayActorError("a", "killed by SIGKILL by OOM killer due to high memory usage"),
            "its process died: killed",
        ),
        (
            ray.exceptions.RayActorError("a", "Task was killed due to the node running low on memory"),
            "the node ran low on memory",
        ),
        (ray.exceptions.RuntimeEnvSetupError("no pandsa"), "its process could not be set up: Failed to set up"),
        (
            ray.exceptions.RayTaskError("f", "Traceback\nValueError: no", ValueError("no"), "ray::f", 1, "10.0.0.1"),
            "ValueError: no",
        ),
        (None, "its process died"),
    ],
)
def test_a_trial_without_a_word_of_its_own_is_told_by_its_first_cause(error: Exception | None, told: str, tmp_path: Path) -> None:
    (tmp_path / "error").write_bytes(ray.cloudpickle.dumps(error))
    file = None if error is None else str(tmp_path / "error")
    trial = SimpleNamespace(pickled_error_file=file, run_metadata=SimpleNamespace(num_failures=2))
    reason = _death(cast(TuneTrial, trial))
    assert reason.startswith(told) and reason.endswith("(2 times)")
    assert "memory" not in reason or "memory" in str(error), "a mistake of setting up is none of memory"
