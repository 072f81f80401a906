"""The programs from outside: exit codes, one-line errors, --help and --show. `run_program` itself runs in this process."""

import argparse
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray.exceptions
import yaml

from pipelines.io.retry import Unreachable
from pipelines.prepare.config import PrepareSettings
from pipelines.program.cli import Parser, run_page, run_program
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import load
from tests.patience import PATIENCE
from tests.stopped import assert_stopped
from training.config import TrainSettings

ROOT = Path(__file__).parent.parent.parent
CONFIG = "source: {name: openmoji, limit: 5}\noutput: data/o\n"


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG)
    return str(file)


def program(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=PATIENCE)


def test_a_mistake_is_one_line_and_exit_code_2() -> None:
    ended = program("pipelines", "nofile.yaml")
    assert ended.returncode == 2 and ended.stdout == "pipelines: loading\n"
    assert ended.stderr.startswith("error: nofile.yaml: ") and ended.stderr.count("\n") == 1
    assert "pipelines/configs/openmoji.yaml" in ended.stderr


@pytest.mark.parametrize(("package", "model"), [("pipelines", PrepareSettings), ("training", TrainSettings)])
def test_help_names_the_program_its_configs_and_every_key(package: str, model: type) -> None:
    ended = program(package, "--help")
    assert ended.returncode == 0 and ended.stderr == ""
    assert f"python -m {package}" in ended.stdout and f"{package}/configs/openmoji.yaml" in ended.stdout
    lines = [line.strip() for line in ended.stdout.split("\n")]
    assert {str(path.relative_to(ROOT)) for path in (ROOT / package / "configs").rglob("*.yaml")} <= set(lines)
    for key in model.model_fields:
        assert any(line.startswith(f"{key}:") for line in lines), key
    nested = {"pipelines": ["unpaired:", "background:"], "training": ["temperature:", "warmup_steps:", "data_cpus:"]}[package]
    assert all(any(line.startswith(key) for line in lines) for key in nested)


def test_show_prints_what_loads_again(config: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def never(settings: PrepareSettings, display: Display) -> None:
        raise AssertionError("--show must not act")

    given = ["image.size=64", "splits={val: 0.2, test: 0.1}", "source.tags=2"]
    assert run_program("pipelines", "p", PrepareSettings, never, [config, *given, "--show"]) == 0
    shown = capsys.readouterr().out
    file = tmp_path / "shown.yaml"
    file.write_text(shown)
    settings = load(PrepareSettings, file)
    assert settings == load(PrepareSettings, config, {"image.size": 64, "splits": {"val": 0.2, "test": 0.1}, "source.tags": 2})
    # Defaults are filled in, and the order of the keys is the help's.
    assert list(yaml.safe_load(shown)) == list(PrepareSettings.model_fields)


def test_flags_and_overrides_may_stand_in_any_order(config: str) -> None:
    seen: list[tuple[int, bool]] = []

    def action(settings: PrepareSettings, display: Display) -> None:
        seen.append((settings.image.size, display.quiet))

    assert run_program("pipelines", "p", PrepareSettings, action, ["--quiet", config, "image.size=32"]) == 0
    assert run_program("pipelines", "p", PrepareSettings, action, [config, "image.size=32", "--quiet"]) == 0
    assert run_program("pipelines", "p", PrepareSettings, action, [config, "--quiet", "image.size=32"]) == 0
    assert seen == [(32, True)] * 3


def test_a_traceback_only_with_verbose(config: str, capsys: pytest.CaptureFixture) -> None:
    def fail(settings: PrepareSettings, display: Display) -> None:
        raise UserError("key", "what is wrong", "the way out")

    assert run_program("pipelines", "p", PrepareSettings, fail, [config]) == 2
    assert capsys.readouterr().err == "error: key: what is wrong; the way out\n"
    assert run_program("pipelines", "p", PrepareSettings, fail, [config, "--verbose"]) == 2
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("error: key: what is wrong; the way out\n")


def test_an_interruption_has_its_own_code_and_a_bug_is_not_hidden(config: str, capsys: pytest.CaptureFixture) -> None:
    def interrupt(settings: PrepareSettings, display: Display) -> None:
        raise KeyboardInterrupt

    def crash(settings: PrepareSettings, display: Display) -> None:
        raise ZeroDivisionError

    assert run_program("pipelines", "p", PrepareSettings, interrupt, [config]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert_stopped(line, signal.SIGINT, f"python -m pipelines {config}")
    with pytest.raises(ZeroDivisionError):
        run_program("pipelines", "p", PrepareSettings, crash, [config])


def test_what_ray_loses_is_told_in_one_line_and_a_bug_in_its_tasks_is_not_hidden(
    config: str, capsys: pytest.CaptureFixture
) -> None:
    def act(error: Exception) -> Callable[[PrepareSettings, Display], None]:
        def lose(settings: PrepareSettings, display: Display) -> None:
            raise error

        return lose

    lost = ray.exceptions.ActorDiedError()
    for error in (lost, ray.exceptions.RayTaskError("f", "Traceback ...", lost, "ray::f", 1, "10.0.0.1")):
        assert run_program("pipelines", "p", PrepareSettings, act(error), [config]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: Ray: its process died") and "--verbose" in printed and printed.count("\n") == 1
    with pytest.raises(ray.exceptions.ActorDiedError):
        run_program("pipelines", "p", PrepareSettings, act(lost), [config, "--verbose"])
    bug = ray.exceptions.RayTaskError("f", "Traceback ...", ZeroDivisionError(), "ray::f", 1, "10.0.0.1")
    with pytest.raises(ZeroDivisionError):
        run_program("pipelines", "p", PrepareSettings, act(bug.as_instanceof_cause()), [config])


@pytest.mark.parametrize("in_a_task", [False, True])
@pytest.mark.parametrize(
    "error",
    [Unreachable("s3://b/x: given up"), OSError(errno.ENOSPC, "No space left", "/d/x"), OSError(errno.EIO, "I/O", "/d/x")],
)
def test_a_store_or_disk_that_fails_is_told_in_one_line_and_other_errors_are_not_hidden(
    config: str, capsys: pytest.CaptureFixture, error: OSError, in_a_task: bool
) -> None:
    """On the driver, and in a task of which Ray hands it on."""

    def act(error: Exception) -> int:
        def fail(settings: PrepareSettings, display: Display) -> None:
            raise ray.exceptions.RayTaskError("f", "Traceback", error, "ray::f", 1, "10.0.0.1") if in_a_task else error

        return run_program("pipelines", "p", PrepareSettings, fail, [config])

    assert act(error) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1 and "same command" in printed
    assert (error.filename or "s3://b/x") in printed
    with pytest.raises((FileNotFoundError, ray.exceptions.RayTaskError)):
        act(FileNotFoundError(errno.ENOENT, "No such file", "/d/x"))


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C is heard as at a terminal, even if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_writing_a_page_again_stops_and_fails_as_the_programs_do(
    number: signal.Signals, listening: None, capsys: pytest.CaptureFixture
) -> None:
    def page(act: Callable[[], None]) -> int:
        def write(options: argparse.Namespace) -> Path:
            act()
            return Path(options.run) / "report.html"

        parser = Parser(prog="python -m pages")
        parser.add_argument("run")
        return run_page(parser, write, ["runs/a b"])

    def stop() -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    def fill() -> None:
        raise OSError(errno.ENOSPC, "No space left", "/d/x")

    assert page(stop) == 128 + number
    (line,) = capsys.readouterr().err.splitlines()
    assert_stopped(line, number, "python -m pages 'runs/a b'")
    assert page(fill) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "/d/x" in line
    with pytest.raises(ZeroDivisionError):
        page(lambda: 1 // 0)
    assert page(lambda: None) == 0


@pytest.mark.parametrize("arguments", [[], ["--nonsense", "c.yaml"]])
def test_wrong_arguments_point_to_the_help(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        run_program("pipelines", "p", PrepareSettings, lambda settings, display: None, arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "python -m pipelines --help" in error and error.count("\n") == 1
