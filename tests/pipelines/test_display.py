"""Without a terminal: plain lines, each on its own; with --quiet nothing."""

from types import SimpleNamespace

import pytest

from pipelines.program.display import Display


def test_plain_lines_in_a_log_file(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr("pipelines.program.display.time", SimpleNamespace(monotonic=lambda: now.seconds))
    display = Display()
    display.line("[bold] is no markup here")
    with display.task("read", 3) as task:
        task.update(1, "early")
        now.seconds += 4.9
        task.update(1, "also early")
        now.seconds += 0.1
        task.update(2, "in time")
        task.update(3, "0 rejected")
    display.detail("only with --verbose")
    display.table("scores", ["score", "value"], [["top1", "12.3"], ["top5", "45.6"]])
    out = capsys.readouterr().out
    assert (
        out.startswith("[bold] is no markup here\nread 2/3 in time\nread 3/3 0 rejected\nscores")
        and "\x1b" not in out
        and "\r" not in out
    )
    assert "only" not in out
    assert [line.split() for line in out.rstrip().split("\n")[-2:]] == [["top1", "12.3"], ["top5", "45.6"]]


def test_long_lines_are_not_broken(capsys: pytest.CaptureFixture) -> None:
    Display().line("x" * 500)
    assert capsys.readouterr().out == "x" * 500 + "\n"


def test_names_in_a_piped_table_are_whole(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width of the terminal behind the pipe: who searches the output for a metric finds it."""
    monkeypatch.setenv("COLUMNS", "40")
    name = "retrieval/a_dataset_with_a_rather_long_name/image_to_text_recall@10"
    Display().table("scores", ["score, %", "value", "n"], [[name, "12.3", "1,000"], ["top1", "4.5", "7"]])
    assert [line.split() for line in capsys.readouterr().out.splitlines()[-2:]] == [[name, "12.3", "1,000"], ["top1", "4.5", "7"]]


def test_quiet_is_quiet_and_verbose_tells_more(capsys: pytest.CaptureFixture) -> None:
    quiet = Display(quiet=True)
    quiet.line("a")
    quiet.table("t", ["a"], [["b"]])
    with quiet.task("read", 1) as task:
        task.update(1)
    assert capsys.readouterr().out == ""
    Display(verbose=True).detail("more")
    assert capsys.readouterr().out == "more\n"
