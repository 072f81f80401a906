"""A local Ray that is not up in time, as on a busy machine, is started again; what was left of it ends."""

import subprocess
import sys

import pytest
import ray

from pipelines import cluster
from pipelines.settings import UserError

import psutil  # isort: skip  comes with ray

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
    monkeypatch.setattr(ray, "init", slow)
    return slow


def test_a_slow_start_is_tried_again_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = started(monkeypatch, 2)
    cluster._init({})
    assert len(slow.left) == 2 and not any(psutil.pid_exists(process.pid) for process in slow.left)


def test_a_machine_that_is_too_busy_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = started(monkeypatch, 100)
    with pytest.raises(UserError, match=r"^Ray: its processes were not up in time on this machine, 5 times; end what else runs"):
        cluster._init({})
    assert len(slow.left) == 5


def test_what_else_goes_wrong_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = started(monkeypatch, 100, ConnectionError("no cluster at 10.0.0.1:6379"))
    with pytest.raises(ConnectionError, match="no cluster"):
        cluster._init({})
    slow.left[0].kill()
    assert len(slow.left) == 1
