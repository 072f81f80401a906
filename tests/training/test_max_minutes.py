"""`max_minutes`: when a run ends whose time is limited, over all its sessions; by a clock of the test's own."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.inline_runs import curve, last, steps, train
from tests.training.squares import BATCH, BEST, STEPS
from training import loop
from training.metrics_file import read_metrics
from training.plan import Plan


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock on which a step takes half a minute, and nothing else takes time."""
    now = SimpleNamespace(seconds=1000.0)
    step = loop.train_step

    def slow(*arguments: Any) -> Any:
        now.seconds += 30
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", slow)
    monkeypatch.setattr("training.cadence.time", SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=lambda: now.seconds))
    return now


@pytest.mark.parametrize(("minutes", "end"), [(0.01, 3), (1.5, 3), (1.51, 6), (2.9, 6), (4, 9), (5.5, 12), (100, 12)])
def test_a_run_ends_at_the_first_evaluation_after_its_time(
    plan_of: Callable[..., Plan], tmp_path: Path, clock: SimpleNamespace, minutes: float, end: int
) -> None:
    """Evaluations are at steps 3, 6, 9 and 12, after 1.5, 3, 4.5 and 6 minutes."""
    plan = plan_of(max_minutes=minutes, evaluation__every_epochs=1)
    result, reported = train(plan, tmp_path)
    assert result is not None and (result["step"], result["samples"]) == (end, end * BATCH)
    lines = curve(tmp_path)
    assert reported == [line["step"] for line in lines] == list(range(1, end + 1)) and BEST in lines[-1]
    assert "images" in last(tmp_path)[1] and steps(tmp_path)[-1] == end
    # The next start finds it ended, however much later.
    clock.seconds += 10**6
    assert train(plan, tmp_path) == (result, []) and curve(tmp_path) == lines


def test_a_resumed_run_has_only_the_time_that_is_left(
    plan_of: Callable[..., Plan], tmp_path: Path, clock: SimpleNamespace
) -> None:
    """It dies between steps 4 and 5 and resumes an hour later: it ends at the step where it would have ended."""
    plan = plan_of(max_minutes=4, evaluation__every_epochs=1)
    assert train(plan, tmp_path, until=5)[0] is None
    clock.seconds += 3600
    result, reported = train(plan, tmp_path)
    assert result is not None and result["step"] == 9 and reported == [5, 6, 7, 8, 9]


def test_seconds_of_training_add_up_over_all_sessions(
    plan_of: Callable[..., Plan], tmp_path: Path, clock: SimpleNamespace
) -> None:
    """Half a minute a step; neither time between sessions nor steps that were lost with a session count."""
    for until in (1, 5, 8, None):
        train(plan_of(), tmp_path, until)
        clock.seconds += 12345
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines] == [30 * step for step in range(1, STEPS + 1)]
