"""Runs of the real program: any number of workers gives one curve, and a killed run resumes where it was.

What is killed or stopped runs in a process of its own; what nobody disturbs, in this one.
"""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from program import Program
from recording_run import consumed_in

from tests.in_process import run_command, succeed
from tests.patience import PATIENCE, wait_until
from tests.stopped import assert_stopped
from training.checkpoint_registry import newest_checkpoint
from training.tensor_tree import load_tree

import psutil  # isort: skip  comes with ray

pytestmark = pytest.mark.e2e

STEPS_PER_EPOCH = 7  # 118 pairs in batches of 16
EPOCHS = 3
STEPS = STEPS_PER_EPOCH * EPOCHS
KILLED_AT = STEPS_PER_EPOCH + 2  # in the middle of the second epoch

CONFIG: dict[str, Any] = {
    "image_tower": {"name": "conv", "image_size": 32, "channels": [16, 32, 64]},
    "text_tower": {"name": "bag", "width": 64, "max_tokens": 16},
    "embed_dim": 32,
    "optimizer": {"name": "adamw", "lr": 3e-4},
    "epochs": EPOCHS,
    "global_batch_size": 16,
    "log_every": 1,
    "evaluation": {"every_epochs": 2, "templates": ["a picture of {}"]},
    "checkpoint": {"every_steps": 2},
    "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def data(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 small emojis."""
    output = tmp_path_factory.mktemp("data") / "tiny"
    overrides = ["source.limit=160", "image.size=48", f"output={output}"]
    succeed("pipelines", "pipelines/configs/openmoji.yaml", *overrides)
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


Start = Callable[..., Program]
ConfigOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def config_of(data: Path, folder: Path) -> ConfigOf:
    """A function that writes the config of a run with this name."""

    def write(name: str) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(CONFIG | {"name": name, "storage": str(folder), "data": {"path": str(data)}}))
        return path

    return write


@pytest.fixture(scope="module")
def start(config_of: ConfigOf) -> Iterator[Start]:
    """A function that starts a run which waits after so many steps. The same name gives the same command."""
    programs = []
    holding = (str(Path(__file__).parent / "recording_run.py"),)

    def start(name: str, *overrides: str, steps: int = KILLED_AT) -> Program:
        programs.append(Program(config_of(name), str(steps), *overrides, run=holding))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


@pytest.fixture(scope="module")
def uninterrupted(config_of: ConfigOf, folder: Path) -> list[dict[str, Any]]:
    """The history of an undisturbed run with one worker."""
    succeed("training", str(config_of("one")))
    return history(folder / "one")


def lines(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl; the last may still be being written."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def history(run: Path) -> list[dict[str, Any]]:
    """All lines of a finished run, which must have each step once and in order."""
    found = lines(run)
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    assert [line["samples"] for line in found] == [16 * step for step in range(1, STEPS + 1)]
    result = json.loads((run / "result.json").read_text())
    assert (result["step"], result["samples"], result["loss"]) == (STEPS, 16 * STEPS, found[-1]["loss"])
    return found


def assert_same_curve(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", "lr", "temperature"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4), f"{name} at step {ours['step']}"
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
        assert {n for n in ours if "/" in n} == {n for n in theirs if "/" in n}


def wait_to_kill(program: Program, run: Path, step: int = KILLED_AT) -> None:
    """Wait until metrics.jsonl has the steps before this one; no others follow."""

    def reached() -> bool:
        assert program.process.poll() is None, f"ended before step {step}:\n{program.text()}"
        found = lines(run)
        return bool(found) and found[-1]["step"] >= step

    wait_until(reached, program.text)


def release(run: Path) -> None:
    """Let a run that waits continue."""
    (consumed_in(run.parent, run.name) / "go").touch()


@dataclass
class Killed:
    """A run in which something was killed after step KILLED_AT."""

    program: Program
    run: Path
    when: float


def assert_resumed(killed: Killed) -> None:
    """It resumed from the newest checkpoint: at most a handful of steps is repeated."""
    for line in history(killed.run):
        if line["step"] <= KILLED_AT - 5:
            assert line["time"] <= killed.when, "began from the start"
        elif line["step"] > KILLED_AT:
            assert line["time"] > killed.when


def assert_same_weights(run: Path, other: Path) -> None:
    """The final weights are equal to the last bit."""
    ours, theirs = (load_tree(r / f"checkpoint_{STEPS:08d}", "state")["encoder"] for r in (run, other))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


def test_one_worker_learns(uninterrupted: list[dict[str, Any]]) -> None:
    """Otherwise equal curves would mean little."""
    losses = [line["loss"] for line in uninterrupted]
    assert sum(losses[-5:]) < sum(losses[:5]) - 1
    assert len({round(loss, 5) for loss in losses}) == STEPS


@pytest.fixture(scope="module")
def two_workers(start: Start, folder: Path) -> Killed:
    """Two workers, one of which is killed in the middle of the second epoch."""
    program, run = start("two", "resources.num_workers=2"), folder / "two"
    wait_to_kill(program, run)
    workers = program.workers()
    assert len(workers) == 2
    workers[0].kill()
    killed = Killed(program, run, time.time())
    release(run)
    assert program.wait() == 0, program.text()
    assert not any(worker.is_running() for worker in workers), "both start anew"
    return killed


def test_two_workers_give_the_curve_of_one(two_workers: Killed, uninterrupted: list[dict[str, Any]]) -> None:
    """From the first step on: for more than an epoch before the kill."""
    before = [line for line in history(two_workers.run) if line["time"] <= two_workers.when]
    assert len(before) >= KILLED_AT - 5
    assert_same_curve(before, uninterrupted[: len(before)])
    assert_same_curve(history(two_workers.run), uninterrupted)


def test_killed_worker(two_workers: Killed, uninterrupted: list[dict[str, Any]]) -> None:
    """The run resumes by itself from the last checkpoint, and says so."""
    assert_resumed(two_workers)
    assert_same_curve(history(two_workers.run), uninterrupted)
    assert len((two_workers.run / "restarts.jsonl").read_text().splitlines()) == 1
    assert "worker lost" in two_workers.program.text()
    (line,) = map(json.loads, (two_workers.run / "restarts.jsonl").read_text().splitlines())
    # Which of the two Ray saw first is chance, but the surviving worker is not blamed.
    assert (
        re.match("worker [01]: its process died|a worker was lost", line["cause"]) and line["cause"] in two_workers.program.text()
    )
    assert "Traceback" not in two_workers.program.text()


@pytest.fixture(scope="module")
def two_undisturbed(config_of: ConfigOf, folder: Path) -> Path:
    """The folder of an undisturbed run with two workers."""
    succeed("training", str(config_of("two-undisturbed")), "resources.num_workers=2")
    return folder / "two-undisturbed"


def test_two_workers_end_with_the_weights_of_two_undisturbed_ones(two_workers: Killed, two_undisturbed: Path) -> None:
    assert_same_weights(two_workers.run, two_undisturbed)


LEG = 6  # steps of each start; checkpoints are due at even steps, so not where a run is asked to stop


def test_stopped_killed_and_damaged_the_same_command_ends_with_the_undisturbed_weights(
    start: Start, folder: Path, two_undisturbed: Path
) -> None:
    """Ctrl-C, kill -9 of the program and SIGTERM in the middle of epochs, then one bit of the newest checkpoint is flipped."""
    run, options = folder / "again", ("resources.num_workers=2",)
    again = f"python -m training {folder / 'again.yaml'} {options[0]}"

    def started(done: int | None) -> tuple[Program, int]:
        """A start that waits after LEG steps, and the step from which it resumed; `done`: where known before."""
        program = start("again", *options, steps=LEG)
        if done is None:
            wait_until(lambda: bool(resumed_from(program)), program.text)
        first = resumed_from(program) if done is None else done
        wait_to_kill(program, run, first + LEG)
        return program, first

    def ask(number: signal.Signals, done: int | None) -> int:
        """Ask it to stop; all workers save the same step, which is returned."""
        program, first = started(done)
        assert resumed_from(program) == first
        family = program.family()
        program.process.send_signal(number)
        assert program.wait() == 128 + number, program.text()
        step = first + LEG + 1  # they were asked in the step after
        kept = run / f"checkpoint_{step:08d}"
        assert newest_checkpoint(run) == kept and json.loads((kept / "checkpoint.json").read_text())["step"] == step
        assert_stopped(program.text().splitlines()[-1], number, again, f"step {step} is kept in {kept}")
        assert lines(run)[-1]["step"] == step and not (run / "result.json").exists()
        assert "Traceback" not in program.text() and not (run / "restarts.jsonl").exists()
        assert not psutil.wait_procs(family, timeout=PATIENCE)[1], "nothing of its Ray stays"
        return step

    asked = ask(signal.SIGINT, 0)
    program, _ = started(asked)
    program.family()
    program.process.kill()
    when = time.time()
    assert program.wait() == -signal.SIGKILL
    newest = ask(signal.SIGTERM, None)
    kept_times = {line["step"]: line["time"] for line in lines(run)}
    assert all(time_ <= when for step, time_ in kept_times.items() if step <= asked + LEG - 4), "began from its last checkpoint"

    weights = run / f"checkpoint_{newest:08d}" / "state.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    began, command = time.time(), ("training", str(folder / "again.yaml"), *options)
    printed = succeed(*command)
    for name in (f"checkpoint_{newest:08d}", "state.safetensors", f"checkpoint_{newest - 1:08d}"):
        assert name in printed
    assert [line["step"] for line in history(run) if line["time"] > began] == list(range(newest, STEPS + 1))
    assert_same_weights(run, two_undisturbed)

    files = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert f"at step {STEPS}" in succeed(*command)
    code, printed = run_command(*command, "optimizer.lr=0.1")
    assert code == 2 and len(printed.splitlines()) == 1
    assert "error: name: " in printed and "optimizer" in printed and "overwrite=true" in printed
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == files, "neither touches what is done"


def resumed_from(program: Program) -> int:
    """The step from which a start says that it resumes; 0 if it does not."""
    said = re.search(rf"step (\d+) of {STEPS}", program.text())
    return int(said[1]) if said else 0
