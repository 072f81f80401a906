"""A run in one process: whatever interrupts it, it ends as if nothing had.

Real locked towers, tiny and untrained, on datasets of a few coloured squares. No Ray.
"""

from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.training.inline_runs import assert_equal_runs, curve, steps, train
from tests.training.squares import BATCH, BEST, EPOCHS, STEPS, Poison
from training import in_process
from training.metrics_file import read_metrics
from training.plan import Plan
from training.stopping import Stopped


def test_a_run_writes_its_curve_and_returns_the_loops_result(straight: tuple[Path, dict[str, Any]]) -> None:
    folder, result = straight
    assert (result["step"], result["samples"]) == (STEPS, STEPS * BATCH) and result["device"].startswith("CPU")
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in lines] == [pytest.approx(step / 3) for step in range(1, STEPS + 1)]
    assert [line["step"] for line in lines if BEST in line] == [6, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["seconds"] >= before["seconds"] for before, line in pairwise(lines))


@pytest.mark.parametrize("until", range(1, STEPS + 1))
def test_an_interrupted_run_ends_the_same(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path, until: int
) -> None:
    """After any report. It resumes from the last checkpoint, of an even step, and the lines after that step are repeated."""
    folder, result = straight
    assert train(plan_of(), tmp_path, until) == (None, list(range(1, until + 1)))
    saved = until - until % 2
    assert steps(tmp_path) == [step for step in (saved - 2, saved) if step > 0]
    assert train(plan_of(), tmp_path) == (result, list(range(saved + 1, STEPS + 1)))
    assert_equal_runs(tmp_path, folder)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that asks the next run to stop before its n-th step, counted from its start."""

    def at(step: int) -> None:
        questions = iter(range(1, 1000))
        monkeypatch.setattr(in_process, "Asked", lambda folder: nullcontext(lambda: next(questions) >= step))

    return at


@pytest.mark.parametrize("until", [1, 2, 3, 6, 9])
def test_a_run_that_is_asked_to_stop_saves_the_step_and_later_ends_the_same(
    plan_of: Callable[..., Plan],
    straight: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    ask: Callable[[int], None],
    poison: Poison,
    until: int,
) -> None:
    """Whether a checkpoint is due there or not."""
    folder, result = straight
    ask(until)
    with pytest.raises(Stopped) as stopped:
        train(plan_of(), tmp_path)
    assert stopped.value.step == until == max(steps(tmp_path))
    assert [line["step"] for line in curve(tmp_path)] == list(range(1, until + 1))
    ask(1000)
    assert train(plan_of(), tmp_path) == (result, list(range(until + 1, STEPS + 1)))
    assert_equal_runs(tmp_path, folder)
    # A line and a checkpoint are written even if neither is due for long, but not at a step that is skipped.
    rare = {"log_every": 100, "checkpoint__every_steps": None, "evaluation__every_epochs": EPOCHS}
    poison(until)
    ask(until)
    other = tmp_path / "rare"
    with pytest.raises(Stopped):
        train(plan_of(**rare), other)
    assert steps(other) == [until + 1] == [line["step"] for line in curve(other)]


def test_a_run_that_is_asked_in_its_last_step_ends(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path, ask: Callable[[int], None]
) -> None:
    ask(STEPS)
    assert train(plan_of(), tmp_path)[0] == straight[1]


def test_a_run_that_dies_again_and_again_ends_the_same(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, result = straight
    for until in (1, 3, 3, 4, 7, 11, 12):
        train(plan_of(), tmp_path, until)
    assert train(plan_of(), tmp_path) == (result, [])
    assert_equal_runs(tmp_path, folder)


def test_a_finished_run_is_not_trained_again(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train(plan_of(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(plan_of(), tmp_path) == (straight[1], [])
    assert (tmp_path / "metrics.jsonl").read_text() == before
