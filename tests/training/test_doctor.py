"""What hangs is named and ended: workers and reading tasks under SIGSTOP in a real run, and workers that hang in other ways."""

import os
import re
import signal
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from program import Program, _title
from recording_run import consumed_in

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Worker
from pipelines.program.display import Display
from tests.patience import PATIENCE, wait_until
from tests.training.squares import BATCH, prepared_by_hand
from training import doctor, process_states, pulse
from training.checkpoint_registry import newest_step
from training.metrics_file import read_metrics
from training.sessions import SESSIONS
from training.status import status_of

pytestmark = pytest.mark.e2e

CONFIG: dict[str, Any] = {
    "name": "run",
    "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]},
    "text_tower": {"name": "bag", "width": 16, "max_tokens": 8},
    "embed_dim": 16,
    "epochs": 1000,
    "global_batch_size": BATCH,
    "log_every": 1,
    "evaluation": {"every_epochs": 1000},
    "checkpoint": {"every_steps": 2},
    "resources": {"num_workers": 2, "cpus_per_worker": 0.5, "patience_minutes": 0.4, "max_failures": -1},
    "tensorboard": False,
}


@pytest.fixture
def squares(tmp_path: Path) -> Prepared:
    return prepared_by_hand(tmp_path / "squares", "squares")


def stalls(run: Path) -> list[str]:
    """What was said to hang."""
    return [line["text"] for line in read_metrics(run / SESSIONS) if line["event"] == "stall"]


def test_stopped_processes_of_a_run_are_named_and_ended(squares: Prepared, tmp_path: Path) -> None:
    """A worker, and what reads for it: the run resumes from its last checkpoint, and all who tell of it tell the same.

    Without Ray Train's controller it ends.
    """
    config, run = tmp_path / "run.yaml", tmp_path / "runs" / "run"
    config.write_text(yaml.safe_dump(CONFIG | {"storage": str(run.parent), "data": {"path": str(squares.path)}}))
    program = Program(config, "4", run=(str(Path(__file__).parent / "recording_run.py"),))

    def steps() -> list[int]:
        assert program.process.poll() is None, program.text()
        return [line["step"] for line in read_metrics(run / "metrics.jsonl")]

    try:
        waits = consumed_in(run.parent, run.name) / "waits-1"
        wait_until(lambda: newest_step(run) == 4 and waits.exists(), program.text)  # where it waits
        reading = [child for child in program.family() if _title(child).startswith(process_states._TASKS)]
        stopped = [program.workers()[1], *reading]
        for process in stopped:
            process.suspend()
        (consumed_in(run.parent, run.name) / "go").touch()
        wait_until(lambda: not any(process.is_running() for process in stopped), program.text)
        wait_until(lambda: steps()[-1] > 8, program.text)
        costs = status_of(run).costs
        (text,) = (stall["text"] for stall in costs["stalls"] if f"process {stopped[0].pid} is stopped" in stall["text"])
        assert reading and all(f"process {process.pid}" in text for process in stopped)
        assert text.count("stopped") == len(stopped) and len(re.findall(r"worker \d of 2", text)) == 1
        assert "recording_run.py:" in text, "where its stack is"
        assert text in [restart["cause"] for restart in costs["restarts"]] and text in program.text()
        assert steps() == list(range(1, len(steps()) + 1))

        (controller,) = (one for one in program.family() if _title(one).startswith(process_states._CONTROLLER))
        controller.suspend()
        assert program.process.wait(PATIENCE) == 2
        said = stalls(run)[-1]
        assert f"process {controller.pid}) on" in said and f"training stopped: {said}" in program.text()
    finally:
        program.kill()


# Workers that hang in other ways


@ray.remote(num_cpus=0)
class Hanging:
    """A worker of two that says what it does, and hangs."""

    def in_a_step(self, folder: Path, rank: int) -> None:
        """The first waits for the second in an exchange, to which that one does not come."""
        from training import distributed

        with (
            pulse.Pulse(folder, Worker(rank, 2, torch.device("cpu"), 1.0)),
            distributed.gloo(f"{folder}/gloo", rank, 2, PATIENCE),
        ):
            pulse.at("read", 7)
            pulse.at("step")
            distributed.total(torch.ones(1))
            if rank:
                self._never_comes()
            distributed.total(torch.ones(1))

    def in_an_upload(self, folder: Path, rank: int) -> None:
        """The first uploads to a store that does not answer, while both train on."""

        def upload() -> None:
            with pulse.Beside(7) as beside:
                beside.at("upload")
                self._never_comes()

        with pulse.Pulse(folder, Worker(rank, 2, torch.device("cpu"), 1.0)):
            pulse.at("report", 7)
            if not rank:
                threading.Thread(target=upload, daemon=True).start()
            for step in count(8):
                pulse.at("read", step)
                time.sleep(0.1)

    def in_a_read(self, folder: Path) -> str:
        """Its only task is stopped the first time."""

        def read() -> str:
            if not (folder / "stopped").exists():
                (folder / "stopped").write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            return "read"

        with pulse.Pulse(folder, Worker(0, 1, torch.device("cpu"), 1.0)):
            pulse.at("read", 7)
            return ray.get(ray.remote(num_cpus=0, name="MapBatches(read)")(read).remote())

    def _never_comes(self) -> None:
        time.sleep(10 * PATIENCE)


@pytest.mark.parametrize(("where", "rank", "doing"), [("in_a_step", 1, "step"), ("in_an_upload", 0, "upload")])
def test_the_worker_that_the_others_wait_for_is_named_and_ended(
    ray_session: None, tmp_path: Path, where: str, rank: int, doing: str
) -> None:
    workers = [Hanging.remote() for _ in range(2)]
    hanging = [getattr(worker, where).remote(tmp_path, i) for i, worker in enumerate(workers)]
    wait_until(lambda: [one["stage"] != "start" for one in pulse.pulses(tmp_path)] == [True, True])  # a start may take longer
    with doctor.Doctor(tmp_path, 5.0, Display(quiet=True)) as watching:
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(hanging[rank], timeout=PATIENCE)
        said = stalls(tmp_path)[-1]
        assert watching.cause == pulse.told_why(tmp_path) == said and not pulse.told_why(tmp_path)
    assert f"worker {rank} of 2" in said and f"worker {1 - rank} " not in said
    assert f" {doctor._DOES[doing]} after step 7" in said and "_never_comes" in said and "stopped" not in said
    for worker in workers:
        ray.kill(worker)


def test_a_stopped_reading_task_is_ended_and_no_worker(ray_session: None, tmp_path: Path) -> None:
    """Ray starts it again, and nothing is lost."""
    worker = Hanging.remote()
    read = worker.in_a_read.remote(tmp_path)
    wait_until(lambda: (tmp_path / "stopped").exists())
    with doctor.Doctor(tmp_path, 20.0, Display(quiet=True)) as watching:  # in which its process starts again
        assert ray.get(read, timeout=PATIENCE) == "read"
        said = stalls(tmp_path)[-1]
        assert not watching.cause and not pulse.told_why(tmp_path)
    pid = (tmp_path / "stopped").read_text()
    assert "worker 0 of 1" in said and doctor._DOES["read"] in said and f"process {pid}" in said and said.count("stopped") == 1
    ray.kill(worker)
