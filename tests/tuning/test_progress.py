"""What a running sweep says where there is no terminal."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.program.display import Display
from tests.tuning.trainer import schedule_of, settings
from tuning import progress


def test_a_line_is_repeated_when_it_changes_or_after_a_while(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    schedule = schedule_of(settings(), tmp_path)
    first, second = schedule.next(), schedule.next()
    assert first and second
    board, said = progress.Board("sweep", schedule, 2, Display()), []
    for seconds, running in ((5, [first]), (11, [first]), (22, [first]), (33, [first, second]), (44, [first, second]), (160, [])):
        now[0] = seconds
        board.update(running, [])
        said.append(capsys.readouterr().out.partition("trials")[2].strip(", \n"))
    assert said == ["", "1 running", "", "2 running", "", ""]
    for seconds, again in ((240, False), (300, True)):  # the same as at 160
        now[0] = seconds
        board.update([], [])
        assert bool(capsys.readouterr().out) == again
