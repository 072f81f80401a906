"""The bar of a run that resumes: from its checkpoint, never at a step of the start before, which may have come further."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipelines.program.display import Display
from tests.patience import wait_until
from training import ray_train
from training.plan import Plan


class Shown:
    """In the place of a display: what the bar was told, and the lines above it."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.lines: list[str] = []

    @contextmanager
    def task(self, title: str, total: int) -> Iterator["Shown"]:
        yield self

    def update(self, done: int, note: str = "") -> None:
        self.steps.append(done)

    def line(self, text: str) -> None:
        self.lines.append(text)


def write(run: Path, *steps: int, when: float, workers: int = 1) -> None:
    of = [{"step": step, "time": when, "loss": 1.0, "samples_per_second": 1.0, "data_wait": 0.0} for step in steps]
    of = [line | {"workers": workers} for line in of]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in of))


@pytest.mark.parametrize(("saved", "first"), [(50, 50), (None, 0)])
def test_the_bar_shows_no_step_of_a_dead_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: int | None, first: int
) -> None:
    monkeypatch.setattr(ray_train, "newest_step", lambda run: saved)
    write(tmp_path, 40, 50, 57, when=1.0)
    (tmp_path / "restarts.jsonl").write_text(json.dumps({"time": 1.0, "cause": "of the dead start", "workers": {}}) + "\n")
    shown = Shown()
    follower: Any = ray_train._Follower(tmp_path, cast(Plan, SimpleNamespace(total_steps=100)), cast(Display, shown))
    with follower:
        wait_until(lambda: bool(shown.steps))
        with (tmp_path / "restarts.jsonl").open("a") as file:
            file.write(json.dumps({"time": 2.0, "cause": "worker 1: its node was lost", "workers": {"0": "GLHF!"}}) + "\n")
        wait_until(lambda: bool(shown.lines))
        assert shown.steps == [first]
        write(tmp_path, 40, 50, 57, when=2.0)  # the same step again, by the living
        wait_until(lambda: len(shown.steps) > 1)
    assert shown.steps == [first, 57]
    (line,) = shown.lines
    assert line.endswith(": worker 1: its node was lost")


def test_another_number_of_workers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "newest_step", lambda run: None)
    shown = Shown()
    follower: Any = ray_train._Follower(tmp_path, cast(Plan, SimpleNamespace(total_steps=100)), cast(Display, shown))
    with follower:
        wait_until(lambda: bool(shown.steps))  # what is there before that is of an earlier start
        for step, workers in enumerate((2, 2, 5, 5, 3), 1):
            write(tmp_path, step, when=step, workers=workers)
            wait_until(lambda step=step: shown.steps[-1:] == [step])
    assert len(shown.lines) == 2 and all("5" in line for line in shown.lines)
    assert "2" in shown.lines[0] and "3" in shown.lines[1]
