"""The first cause in words, from exceptions as Ray hands them on; whoever only lost the connection is not blamed."""

import pickle

import pytest
import ray.exceptions
import torch
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from pipelines.program.causes import cause_of, first_cause
from pipelines.program.errors import UserError

# As torch's gloo says it: the line that says something comes first, or last.
CLOSED = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:46107")
GLHF = RuntimeError("Gloo connectFullMesh failed with [pair.cc:144] GLHF! \nRank 0 may have failed.\nGLHF!")
KILLED = "The process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."


def died(text: str) -> Exception:
    """As Ray Train finds a worker whose process is gone."""
    return WorkerHealthCheckFailedError(
        "A worker health check failed.\nWorker info: ...", ray.exceptions.RayActorError("a", text)
    )


def raised(error: Exception) -> Exception:
    """As Ray Train hands on what a worker's function raised."""
    return UserExceptionWithTraceback(error, "Traceback (most recent call last):\n  ...\nsomething else at its end")


def task(error: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("f", f"Traceback ...\n{type(error).__name__}: {error}", error, "ray::f", 1, "10.0.0.1")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("the first line\nthe second"), "ValueError: the first line the second"),
        (KeyError(), "KeyError"),
        (UserError("key", "what is wrong", "the way out"), "key: what is wrong; the way out"),
        (raised(ValueError("no such column")), "ValueError: no such column"),
        (task(ValueError("no such column")), "ValueError: no such column"),
        (task(ValueError("no such column")).as_instanceof_cause(), "ValueError: no such column"),
        (ControllerError(raised(ValueError("inside"))), "ValueError: inside"),
        (WorkerGroupError("...", {0: raised(CLOSED), 1: raised(ValueError("inside"))}), "ValueError: inside"),
        (MemoryError("3 GiB"), "out of memory: 3 GiB"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nSee ..."), "out of memory: CUDA out of memory. Tried 2 GiB."),
        (died(KILLED), "its process died"),
        (died("Task was killed due to the node running low on memory."), "the node ran low on memory"),
        (died("The actor died because its node has died. Node Id: 1f"), "its node was lost"),
        (ray.exceptions.WorkerCrashedError(), "its process died"),
        (ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory"), "the node ran low on memory"),
        (ray.exceptions.RuntimeEnvSetupError("no package pandsa"), "its process could not be set up"),
        (ray.exceptions.ActorDiedError(task(ModuleNotFoundError("No module named 'x'"))), "No module named 'x'"),
    ],
)
def test_a_cause_in_words(error: Exception, told: str) -> None:
    cause = cause_of(error)
    assert cause.startswith(told) or ("could not be set up" in cause and told in cause)
    assert "\n" not in cause and "Traceback" not in cause
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "memory" not in told and "died" not in told:
        assert "memory" not in cause, "nobody is told of memory where it is not that"


def test_what_is_long_keeps_its_beginning() -> None:
    assert cause_of(ValueError("what matters " + "x" * 10_000)).startswith("ValueError: what matters x")
    assert len(cause_of(ValueError("x" * 10_000))) < 500


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ({0: raised(CLOSED), 1: died(KILLED)}, "worker 1: its process died"),
        ({0: died(KILLED), 1: raised(CLOSED), 2: raised(GLHF)}, "worker 0: its process died"),
        ({0: raised(GLHF), 1: raised(ValueError("bad row")), 2: raised(CLOSED)}, "worker 1: ValueError: bad row (2 others"),
        ({0: died(KILLED), 3: raised(ValueError("bad row"))}, "worker 3: ValueError: bad row (1 other failed with it)"),
        ({2: raised(torch.OutOfMemoryError("CUDA out of memory. Tried")), 0: raised(CLOSED)}, "worker 2: out of memory: CUDA"),
        ({1: raised(torch.distributed.DistBackendError("timed out"))}, "a worker was lost, or the network between workers"),
        ({0: raised(CLOSED), 1: raised(GLHF)}, "a worker was lost, or the network between workers: worker 0 lost its connection"),
    ],
)
def test_of_workers_the_one_that_began_it(failures: dict[int, Exception], told: str) -> None:
    cause = first_cause(failures)
    assert cause.startswith(told) and "\n" not in cause
    assert pickle.loads(pickle.dumps(cause)) == cause


def test_ray_hands_workers_failures_on_in_these_wrappers() -> None:
    """What the wrappers are called inside is Ray's own affair; this fails where it changes."""
    error = pickle.loads(pickle.dumps(WorkerGroupError("text", {1: died(KILLED)})))
    assert first_cause(error.worker_failures).startswith("worker 1: its process died")
