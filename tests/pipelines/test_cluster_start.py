"""A local Ray that does not start in time, as on a busy machine, is started again; errors of tasks; the loss of the head."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.data

from pipelines.io.retry import Unreachable
from pipelines.program import cluster, nodes
from pipelines.program.errors import UserError
from pipelines.program.nodes import Bundle
from tests.patience import PATIENCE, wait_until
from tests.refusals import refused
from tests.stopped import assert_stopped
from tests.training.program import listen

import psutil  # isort: skip  comes with ray

ROOT = Path(__file__).parents[2]
SLOW = Exception("The current node timed out during startup. This could happen because some of the raylet failed to startup")


class Slow:
    """In the place of `ray.init`: leaves a process and fails, so many times."""

    def __init__(self, times: int, error: Exception):
        self.times, self.error = times, error
        self.left: list[subprocess.Popen] = []

    def __call__(self, **_: object) -> None:
        if len(self.left) < self.times:
            self.left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]))
            raise self.error


def started(monkeypatch: pytest.MonkeyPatch, times: int, error: Exception = SLOW) -> Slow:
    slow = Slow(times, error)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # by which a test that is not marked ray finds none
    monkeypatch.setattr(ray, "init", slow)
    return slow


def test_a_slow_start_is_tried_again_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = started(monkeypatch, 2)
    cluster._init({})
    assert len(slow.left) == 2 and not any(psutil.pid_exists(process.pid) for process in slow.left)


def test_a_machine_that_is_too_busy_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = started(monkeypatch, 100)
    with refused("Ray", 5):
        cluster._init({})
    assert len(slow.left) == 5


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_what_else_goes_wrong_is_not_tried_again_and_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    slow = started(monkeypatch, 100, RuntimeError("Failed to start GCS.\nLast lines: ..."))
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    key, remedy = ("Ray", "--verbose") if address is None else ("RAY_ADDRESS", "unset RAY_ADDRESS")
    with refused(key, address or "", "RuntimeError: Failed to start GCS. Last lines: ...", remedy=remedy):
        cluster._init({})
    assert len(slow.left) == 1
    slow.left[0].kill()
    slow.left[0].wait()


def test_every_words_of_a_start_that_took_too_long_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says it in three ways."""
    for error in (
        TimeoutError("Timed out after 60 seconds while waiting"),
        RuntimeError("Timed out waiting for node info for 1f"),
    ):
        slow = started(monkeypatch, 1, error)
        cluster._init({})
        assert len(slow.left) == 1


def test_who_stops_ray_leaves_other_processes_alone() -> None:
    """`cat` answers as long as it lives."""
    other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    cluster.stop()
    assert other.communicate("alive") == ("alive", None)


# --- errors of tasks ---


@pytest.mark.parametrize(
    ("error", "key", "problem", "remedy"),
    [
        (UserError("source.path", "no 'x'", "give a folder"), "source.path", "no 'x'", "give a folder"),
        (Unreachable("s3://b: given up"), "", "s3://b: given up", "again"),
        (OSError(28, "No space left on device", "/data/x"), "", "No space left on device: '/data/x'", "room"),
    ],
)
def test_an_error_in_a_task_arrives_with_its_parts(error: Exception, key: str, problem: str, remedy: str) -> None:
    def work(_: dict) -> dict:
        raise error

    block = {name: np.asarray(column) for name, column in cluster.errors_as_blocks(work)({}).items()}
    dataset: Any = SimpleNamespace(iter_batches=lambda **_: [block])
    with refused(key, problem, remedy=remedy):
        list(cluster.blocks(dataset))


def test_a_task_that_died_names_its_image_or_the_memory() -> None:
    image = UserError("data.path", "the image of sample 3", "remove the file")
    for culprit, key, remedy in ((lambda: image, "data.path", "remove the file"), (lambda: None, "Ray", "memory")):
        with refused(key, remedy=remedy), cluster.deaths_as_errors("", culprit):
            raise ray.exceptions.WorkerCrashedError


def test_data_tasks_say_what_they_wait_for_while_other_jobs_have_all_cpus(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    @ray.remote(num_cpus=2)
    class Other:
        """What another job runs."""

        def here(self) -> bool:
            return True

    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    monkeypatch.setattr(nodes, "_FIRST", 0.5)
    other = Other.remote()
    assert ray.get(other.here.remote())

    def end_when_told_twice(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            ray.kill(other)

    lines: list[str] = []
    monkeypatch.setattr(cluster.interrupts, "say", end_when_told_twice)
    data = ray.data.from_items([{"x": 1}]).map_batches(cluster.errors_as_blocks(lambda batch: batch), batch_size=1)
    task = Bundle({"CPU": 1.0}, {"market": "!spot"})
    assert [block["x"].tolist() for block in cluster.blocks(data, task=task)] == [[1]]
    assert len(lines) == 2 and all(f"1 x {task}: 0 free of 2; pending" in line for line in lines)
    # With room, nothing is said.
    assert [block["x"].tolist() for block in cluster.blocks(data)] == [[1]]
    assert len(lines) == 2


def test_an_actor_that_could_not_be_set_up_is_told_by_its_cause_and_is_none_of_memory() -> None:
    """An encoder that cannot be built there: Ray reports a dead actor, which is not a death."""
    raised = ValueError("no GPU of this kind")
    cause = ray.exceptions.RayTaskError("f", "Traceback ...\nValueError: no GPU of this kind", raised, "ray::f", 1, "10.0.0.1")

    def culprit() -> None:
        raise AssertionError("no image is at fault")

    with (
        refused("Ray", "ValueError: no GPU of this kind", remedy="it goes on") as caught,
        cluster.deaths_as_errors("it goes on", culprit),
    ):
        raise ray.exceptions.ActorDiedError(cause)
    assert "memory" not in str(caught.value)
    with refused("Ray", "its process died", remedy="memory"), cluster.deaths_as_errors(""):
        raise ray.exceptions.ActorDiedError


# --- the cluster's head ---


class Gone(BaseException):
    """The program has ended itself."""


Watch = Callable[[bool, Iterator[bool | None]], float]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watch a head whose answers are given (None: the program has left the cluster), by a clock that nothing else moves.

    Returns the seconds until the program ended itself, inf where it did not.
    """
    clock, last = {"now": 0.0}, {"answer": True}

    def sleep(seconds: float) -> None:
        clock["now"] += seconds

    def ended(code: int) -> None:
        assert code == 3
        raise Gone

    class Now:
        """In the place of a thread."""

        def __init__(self, target: Callable[[], None], daemon: bool):
            assert daemon, "it keeps no program from ending"
            self.start = target

    def watch(local: bool, answers: Iterator[bool | None]) -> float:
        def initialized() -> bool:
            last["answer"] = next(answers)
            return last["answer"] is not None

        monkeypatch.setattr(ray, "is_initialized", initialized)
        clock["now"] = 0.0
        try:
            cluster._watch_head(local)
        except Gone:
            return clock["now"]
        return float("inf")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.setattr(cluster, "_answers", lambda address: last["answer"])
    monkeypatch.setattr(cluster, "threading", SimpleNamespace(Thread=Now))
    monkeypatch.setattr(cluster, "time", SimpleNamespace(monotonic=lambda: clock["now"], sleep=sleep))
    monkeypatch.setattr(cluster, "os", SimpleNamespace(_exit=ended))
    return watch


def test_a_head_that_comes_back_is_waited_for_and_one_that_does_not_ends_the_program(
    watch: Watch, capfd: pytest.CaptureFixture
) -> None:
    """Before Ray does so itself, without a word, after 60 s."""
    away = [False] * 15  # 30 s
    seconds = watch(False, chain([True], away, [True], away, [True], repeat(False)))
    assert 66 + 40 < seconds < 66 + 60
    *waits, last = capfd.readouterr().err.splitlines()
    assert len(waits) == 3 and all("10.0.0.1:6379" in wait and "45 s" in wait for wait in waits)
    assert last.startswith("error: Ray: ") and "10.0.0.1:6379" in last and "start the cluster" in last


def test_a_head_of_ones_own_that_is_gone_is_not_waited_for(watch: Watch, capfd: pytest.CaptureFixture) -> None:
    assert 10 < watch(True, chain([True] * 5, repeat(False))) < 20
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith("error: Ray: ") and "10.0.0.1:6379" in said and "start the cluster" not in said


@pytest.mark.parametrize("local", [True, False])
def test_a_program_that_leaves_its_cluster_is_not_ended(watch: Watch, local: bool, capfd: pytest.CaptureFixture) -> None:
    """The head of a Ray of its own may be gone before the program has left it."""
    for away in (0, 3 if local else 23):
        assert watch(local, chain([True] * 5, [False] * away, repeat(None))) == float("inf")
    assert "error" not in capfd.readouterr().err


PROGRAM = """
import sys
from pipelines.io.retry import Unreachable
from pipelines.program import cluster
from pipelines.program.errors import UserError
from pipelines.program.cli import run_program
from pipelines.prepare.config import PrepareSettings
def act(settings, display):
    cluster.start(cpus=1)
    import ray, time
    print("up", ray.get_runtime_context().gcs_address, flush=True)
    ray.get(ray.remote(lambda: time.sleep(10000)).remote())
sys.exit(run_program("pipelines", "", PrepareSettings, act))
"""


@pytest.mark.e2e
def test_signals_while_ray_starts_and_the_loss_of_its_head_are_told_in_one_line(tmp_path: Path) -> None:
    """No processes stay, and the exit code says what it was."""
    (tmp_path / "c.yaml").write_text("source: {name: openmoji, limit: 5}\noutput: data/o\n")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "c.yaml")]

    def start() -> psutil.Popen:
        return psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=listen)

    def heads(program: psutil.Popen) -> list[psutil.Process]:
        return [child for child in program.children() if child.name() == "gcs_server"]

    for number in (signal.SIGTERM, signal.SIGINT):
        program = start()
        wait_until(lambda: bool(heads(program)) or program.poll() is not None)  # noqa: B023 - asked at once
        family = program.children(recursive=True)
        program.send_signal(number)
        _, told = program.communicate(timeout=PATIENCE)
        assert program.returncode == 128 + number, told
        (line,) = told.splitlines()
        assert_stopped(line, number, f"python -m pipelines {tmp_path}/c.yaml")
        assert not psutil.wait_procs(family, timeout=PATIENCE)[1]

    program = start()
    address = program.stdout.readline().split()[1]
    (head,) = heads(program)
    head.kill()
    _, told = program.communicate(timeout=PATIENCE)
    assert program.returncode == 3 and told.startswith("error: Ray: ") and told.count("\n") == 1
    assert address in told and "same command" in told
