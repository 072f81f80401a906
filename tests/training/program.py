"""A program under test in a process of its own, that can be killed with all that it started."""

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
    """In a child: Ctrl-C as at a terminal, also where the tests themselves run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Program:
    """`python -m training CONFIG.yaml ...`, or other arguments of Python's."""

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
        found = psutil.Process(self.process.pid).children(recursive=True)
        self._family |= {child.pid: child for child in found}
        return found

    def workers(self) -> list[psutil.Process]:
        """Its Ray Train workers."""
        return [child for child in self.family() if _title(child).startswith("ray::RayTrainWorker")]

    def kill(self) -> None:
        """End the program, and what it left behind: a driver that is killed cannot take its Ray down with it."""
        if self.process.poll() is None:
            self.family()
            self.process.kill()
            self.process.wait()
        for child in self._family.values():
            if child.is_running():  # compares start times too: no other process that got the number
                child.kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
