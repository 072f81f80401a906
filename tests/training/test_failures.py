"""Which worker failures are worth a restart, and that Ray Train does not restart after the others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
import torch

from pipelines.io.retry import Unreachable
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from tests.refusals import refused
from training.config import ResourceSettings
from training.failures import EndAtOnce, is_transient
from training.ray_train import run_workers


def of_a_task(cause: Exception) -> Exception:
    """In the form in which Ray raises a task's error: in a class made of both."""
    return ray.exceptions.RayTaskError("work", "a traceback", cause).as_instanceof_cause()


def of_a_worker(cause: Exception) -> Exception:
    """In the form in which Ray Train passes it to callbacks."""
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return UserExceptionWithTraceback(cause, "a traceback")


def missed() -> Exception:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("worker 1", ray.exceptions.ActorDiedError())


TRANSIENT = [
    ray.exceptions.ActorDiedError(),
    ray.exceptions.NodeDiedError("gone"),
    ray.exceptions.OutOfMemoryError("of the node"),
    ray.exceptions.ObjectLostError("0" * 56, None, ""),  # type: ignore[arg-type]
    OSError(28, "No space left on device"),
    ConnectionResetError("by peer"),
    Unreachable("s3://b"),
    torch.distributed.DistNetworkError("peer"),
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:4123"),
]
RECURRING = [
    UserError("data.path", "the image of sample 3 cannot be used"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x8 and 9x8)"),
    RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one"),
    ValueError("x"),
    KeyError("image"),
    AssertionError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__)
def test_what_is_transient(error: Exception) -> None:
    assert is_transient(error) and is_transient(of_a_worker(error))
    EndAtOnce().after_exception(None, {0: of_a_worker(error), 1: missed()})


@pytest.mark.parametrize("error", RECURRING, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_what_would_recur(error: Exception) -> None:
    """Also if it was raised in a task, and if the other workers only lost their connections."""
    for wrapped in (error, of_a_worker(error), of_a_task(error), of_a_worker(of_a_task(error))):
        assert not is_transient(wrapped)
        with pytest.raises(type(error)) as caught:
            EndAtOnce().after_exception(None, {0: of_a_worker(TRANSIENT[-1]), 1: missed(), 2: wrapped})
        assert str(caught.value) == str(error)


# Through Ray Train


@pytest.mark.e2e
@pytest.mark.parametrize(("error", "tries"), [(ValueError("a column is missing\nand more"), 1), (OSError("disk"), 2)], ids=str)
def test_ray_train_tries_again_only_what_is_transient(ray_session: None, tmp_path: Path, error: Exception, tries: int) -> None:
    def failing(config: dict[str, Any]) -> dict[str, Any]:
        """Runs in a worker: fails each time, and counts."""
        with config["tries"].open("a") as file:
            file.write("tried\n")
        raise config["error"]

    config = {"tries": tmp_path / "tries", "error": error, "data_cpus": 0.0, "plan": SimpleNamespace(uses_tasks=False)}
    with refused("", type(error).__name__, remedy="--verbose"):
        run_workers(failing, config, ResourceSettings(max_failures=1), tmp_path / "run", Display(quiet=True))
    assert config["tries"].read_text().count("tried") == tries
