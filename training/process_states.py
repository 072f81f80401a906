"""What the operating system knows of a run's processes, on any node: whether one is stopped, and where it is.

A task looks on each node. The stack of a process that cannot tell its own is read from outside by py-spy, which comes with Ray's
default installation and needs the permission to trace; without it there is none.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.program.ray_internals import JOB_VARIABLE, NO_JOB, NODE_VARIABLE

import psutil  # isort: skip  comes with ray

PATIENCE = 30.0  # seconds for a node to answer, which has to start a process for it
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_TASKS = ("ray::IDLE", "ray::MapBatches(")  # titles of processes that read, or will
_CONTROLLER = "ray::TrainController"
_FRAME = re.compile(r"^ {4}(.+)$")


@dataclass(frozen=True)
class Process:
    """A process on a node; `began`, in seconds since 1970, tells it from a later one with its number."""

    node: str
    address: str
    pid: int
    began: float
    state: str  # psutil's word
    title: str
    ours: bool  # certainly of this job, which another may share the node with
    stack: tuple[str, ...]  # the innermost frame first

    @property
    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self.state in _STOPPED

    @property
    def controls(self) -> bool:
        """Whether it is Ray Train's controller, without which a run cannot go on."""
        return self.title.startswith(_CONTROLLER)


def examined(nodes: Mapping[str, str], known: Collection[tuple[str, int]], patience: float) -> tuple[list[Process], list[str]]:
    """Of this job's processes on these nodes those that are stopped, and the known ones; and nodes that do not answer.

    Args:
        nodes: addresses by id.
        known: nodes and numbers of processes.
        patience: seconds for nodes to answer.
    """
    job = ray.get_runtime_context().get_job_id()
    tasks = {}
    for node, address in nodes.items():
        tasks[_on(node, _look).remote(node, address, job, [pid for at, pid in known if at == node])] = node
    done, left = ray.wait([*tasks], num_returns=len(tasks), timeout=patience) if tasks else ([], [])
    found: list[Process] = []
    mute = [tasks[task] for task in left]
    for task in done:
        try:
            found += ray.get(task)
        except ray.exceptions.RayError:  # the node has gone
            mute.append(tasks[task])
    for task in left:
        ray.cancel(task, force=True)
    return found, mute


def end(processes: Sequence[Process]) -> None:
    """Kill processes: Ray starts tasks again, and Ray Train the workers."""
    ray.wait([_on(one.node, _kill).remote(one) for one in processes], num_returns=len(processes), timeout=PATIENCE)


def _on(node: str, work: Any) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    own = {"env_vars": {"RAYLIGN_EXAMINES": "1"}}  # else Ray may give it one of the processes that are stopped
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy, runtime_env=own)(work)


def _look(node: str, address: str, job: str, pids: list[int]) -> list[Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is somebody else's
            environment, state = process.environ(), process.status()
            # Jobs of another Ray on this machine have the same numbers.
            if environment.get(NODE_VARIABLE) == os.environ.get(NODE_VARIABLE) and process.pid != os.getpid():
                title = " ".join(process.cmdline()).strip()
                of = environment.get(JOB_VARIABLE)
                ours = process.pid in pids or of == job or (of == NO_JOB and title.startswith((*_TASKS, _CONTROLLER)))
                if process.pid in pids or (state in _STOPPED and of in (job, NO_JOB)):
                    stack = _stack(process.pid, state)
                    found.append(Process(node, address, process.pid, process.create_time(), state, title, ours, stack))
    return found


def _stack(pid: int, state: str) -> tuple[str, ...]:
    """Of the thread that trains, or else of the main thread."""
    tool = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if tool is None:
        return ()
    # It stops a process while it reads; one that is stopped already it could not.
    command = [tool, "dump", "--pid", str(pid), *(["--nonblocking"] if state in _STOPPED else [])]
    with suppress(OSError, subprocess.SubprocessError):
        return _frames(subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout)
    return ()


def _frames(dump: str) -> tuple[str, ...]:
    """From py-spy's text the frames of the thread that runs our code, or of the first one."""
    threads = [
        tuple(match[1] for line in thread.splitlines() if (match := _FRAME.match(line))) for thread in dump.split("\nThread ")[1:]
    ]
    return next((frames for frames in threads if any("train_worker" in frame for frame in frames)), (threads or [()])[0])


def _kill(process: Process) -> None:
    with suppress(psutil.Error):
        now = psutil.Process(process.pid)
        if abs(now.create_time() - process.began) < 1:
            now.kill()
