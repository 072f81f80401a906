"""A program under test in a process of its own, which can be killed with all processes that it started."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ray  # noqa: F401  brings psutil along

from tests.patience import PATIENCE

import psutil  # isort: skip

ROOT = Path(__file__).parents[2]


def listen() -> None:
    """Called in a child: accept Ctrl-C as at a terminal, even if the tests run in the background, where it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """`python -m training CONFIG.yaml ...`, or Python with other arguments."""

    def __init__(self, config: Path, *overrides: str, run: Sequence[str] = ("-m", "training")):
        self.output = config.with_name(f"output-{time.time_ns()}.txt")
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *run, str(config), *overrides],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=listen,
            )
        self._family: dict[int, psutil.Process] = {}

    def text(self) -> str:
        return self.output.read_text()

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(PATIENCE)

    def family(self) -> list[psutil.Process]:
        """The program's Ray processes."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self._family |= {child.pid: child for child in children}
        return children

    def workers(self) -> list[psutil.Process]:
        """Its Ray Train workers."""
        return [child for child in self.family() if _title(child).startswith("ray::RayTrainWorker")]

    def kill(self) -> None:
        """End the program and the Ray that it started: a killed driver cannot end it."""
        if self.process.poll() is None:
            self.family()
            self.process.kill()
            self.process.wait()
        for child in self._family.values():
            if child.is_running():  # also compares start times, so a new process with the same number is safe
                child.kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
