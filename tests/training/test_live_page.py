"""The page of a run that goes on: it follows metrics.jsonl, says as of when it is, and is left alone once the run has ended."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.display import Display
from tests.patience import PATIENCE
from tests.training.squares import STEPS
from training import live_page
from training.metrics_file import append_lines, read_metrics
from training.plan import Plan


def until(holds: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_the_page_follows_the_run_and_ends_with_it(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_page, "_POLL", 0.02)
    monkeypatch.setattr(live_page, "_SHARE", 1.0)
    plan, lines, file = plan_of(), read_metrics(straight[0] / "metrics.jsonl"), tmp_path / "report.html"
    first, last = lines[: STEPS // 2], lines[STEPS // 2 :]

    def says(*words: str) -> bool:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return all(word in text for word in words)

    (tmp_path / "report.html.partial-killed").write_text("half of a")
    reload = 'http-equiv="refresh"'
    with pytest.raises(KeyError), live_page.live_page(plan, tmp_path, Display(quiet=True)):
        append_lines(tmp_path / "metrics.jsonl", first)
        until(lambda: says("As of step 6,", reload, 'id="curves"', "R@1"))
        append_lines(tmp_path / "metrics.jsonl", last)
        until(lambda: says("As of step 12,", reload))
        raise KeyError
    assert says("As of step 12,") and not says(reload)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    with live_page.live_page(plan, tmp_path, Display(quiet=True)):
        until(lambda: says(reload))
    file.write_text("the page at the end")
    time.sleep(0.2)
    assert file.read_text() == "the page at the end"


def test_a_page_that_cannot_be_written_harms_no_run(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def fails(*_: Any) -> str:
        tried.append(True)
        raise ValueError

    monkeypatch.setattr(live_page, "_POLL", 0.02)
    monkeypatch.setattr(live_page, "live", fails)
    with live_page.live_page(plan_of(), tmp_path, Display(quiet=True)):
        append_lines(tmp_path / "metrics.jsonl", read_metrics(straight[0] / "metrics.jsonl"))
        until(lambda: bool(tried))
    assert not (tmp_path / "report.html").exists()
