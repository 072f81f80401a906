"""Signals to real processes: what is printed, the exit code, and what a second one does. No Ray."""

import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.io import storage
from pipelines.prepare import prepare as preparing
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.shards import Part, rows_file
from pipelines.program import interrupts
from pipelines.program.display import Display
from pipelines.program.path_keys import Place
from tests.patience import PATIENCE
from tests.stopped import assert_stopped
from tests.training.program import listen

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from pipelines.program import interrupts
interrupts.install()
def wait(word):
    print(word, flush=True)
    while True: time.sleep(0.01)
if PLACE == "imports": wait("up")
from pipelines.program.cli import run_program
from pipelines.prepare.config import PrepareSettings
def act(settings, display):
    if PLACE == "work":
        with interrupts.keeping(lambda: "too much said"), interrupts.keeping(lambda: "7 of 9 parts are kept"):
            wait("up")
    if PLACE == "over":
        return
    asked = []
    def ask():
        asked.append(True)
        print("asked", flush=True)
        if PLACE != "returns": time.sleep(1000)
    interrupts.PATIENCE = 0.2 if PLACE == "hangs" else 1000
    step = 5
    with interrupts.keeping(lambda: f"step {step} is kept"), interrupts.asking(ask):
        print("up", flush=True)
        while not (asked and PLACE == "saves"): time.sleep(0.01)
        step = 6
    raise ZeroDivisionError
code = run_program("pipelines", "", PrepareSettings, act)
if PLACE == "over": wait("up")
sys.exit(code)
"""


Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the program that waits at a place, and return when it does."""
    (tmp_path / "c.yaml").write_text("source: {name: openmoji, limit: 5}\noutput: data/o\n")
    processes: list[subprocess.Popen] = []

    def start(place: str, *arguments: str, background: bool = False) -> subprocess.Popen:
        command = [sys.executable, "-c", f"PLACE = {place!r}\n{PROGRAM}", str(tmp_path / "c.yaml"), *arguments]
        before = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN) and None) if background else listen
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=ROOT, preexec_fn=before, start_new_session=True, **pipes))  # type: ignore[call-overload]
        assert processes[-1].stdout.readline() == "up\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    """The exit code, and what it told on standard error."""
    _, told = process.communicate(timeout=PATIENCE)
    return process.returncode, told.splitlines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_program_with_one_line_of_what_is_kept_and_how_to_resume(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("work", "image.size=32", "overwrite=true")
    process.send_signal(number)
    code, (line,) = ended(process)
    assert code == 128 + number
    assert_stopped(line, number, f"python -m pipelines {tmp_path}/c.yaml image.size=32", "7 of 9 parts")


def test_what_a_config_would_overwrite_is_kept_too(start: Start, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text((tmp_path / "c.yaml").read_text() + "overwrite: true\n")
    process = start("work")
    process.terminate()
    assert_stopped(ended(process)[1][0], signal.SIGTERM, f"python -m pipelines {tmp_path}/c.yaml overwrite=false")


def test_while_a_program_imports_and_when_it_is_done_there_is_nothing_to_keep(start: Start) -> None:
    process = start("imports")
    process.terminate()
    assert ended(process) == (143, ["SIGTERM: stopped before anything was done"])
    process = start("over")
    process.terminate()
    assert ended(process) == (143, [])


@pytest.mark.parametrize(("place", "step"), [("saves", 6), ("returns", 5), ("hangs", 5)])
def test_who_wants_to_be_asked_ends_by_itself_or_is_interrupted(start: Start, tmp_path: Path, place: str, step: int) -> None:
    """Where what was asked comes to its end, where there is nothing to wait for, and where nothing comes of it."""
    process = start(place)
    process.send_signal(signal.SIGINT)
    code, (first, last) = ended(process)
    assert code == 130 and first.startswith("SIGINT: ")
    assert_stopped(last, signal.SIGINT, f"python -m pipelines {tmp_path}/c.yaml", f"step {step} ")


def test_a_signal_sent_twice_at_once_counts_once_and_a_second_one_ends_the_program_at_once(start: Start) -> None:
    """`timeout` sends its signal to the program and to the program's group."""
    process = start("waits")
    process.terminate()
    process.terminate()
    assert process.stdout.readline() == "asked\n" and process.poll() is None
    assert not select.select([process.stdout], [], [], 0.6)[0] and process.poll() is None
    process.send_signal(signal.SIGINT)
    code, told = ended(process)
    assert code == 130 and len(told) == 1, "no word about what is kept: it did not look"


def test_what_was_started_in_the_background_leaves_ctrl_c_to_others(start: Start) -> None:
    process = start("work", background=True)
    process.send_signal(signal.SIGINT)
    process.terminate()
    assert ended(process)[0] == 143


def test_a_stopped_preparing_counts_all_parts_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that tasks wrote and the program had not heard of yet: the next start finds them."""
    tree = {"source": {"name": "folder", "path": str(tmp_path)}, "output": str(tmp_path / "out")}
    parts = [Part(index, (), 2, 0, 1.0) for index in range(3)]

    def read(parts: list[Part], content: Place, _: PrepareSettings) -> Iterator[Any]:
        for part in parts[:2]:
            with storage.written(rows_file(content, part)) as path:
                path.touch()
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(preparing, "read_parts", read)
    monkeypatch.setattr(preparing.cluster, "start", lambda *_: None)
    with pytest.raises(interrupts.Interrupted, match=r"^2 of 3\b"):
        preparing._read(parts, tmp_path / "out" / "content", PrepareSettings.model_validate(tree), Display(quiet=True))
