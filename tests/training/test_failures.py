"""Which worker failures are worth a restart, how often, and that Ray Train does not restart after the others."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
import torch

from pipelines.io.retry import Unreachable
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.ray_elastic import FAILURE, LOST_NODE, NOTICE
from tests.refusals import refused
from training.config import ResourceSettings
from training.failures import NoRestartError, Restarts, is_transient
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
    Restarts(1)(FAILURE, None, {0: of_a_worker(error), 1: missed()})


@pytest.mark.parametrize("error", RECURRING, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_what_would_recur(error: Exception) -> None:
    """Also if it was raised in a task, and if the other workers only lost their connections."""
    for wrapped in (error, of_a_worker(error), of_a_task(error), of_a_worker(of_a_task(error))):
        assert not is_transient(wrapped)
        with pytest.raises(type(error)) as caught:
            Restarts(-1)(FAILURE, None, {0: of_a_worker(TRANSIENT[-1]), 1: missed(), 2: wrapped})
        assert str(caught.value) == str(error)


def failed_until_the_end(restarts: Restarts, *failures: tuple[str, int, Exception]) -> int:
    """After how many of these (kind, last step reported before, error) the run ends; 0 if it goes on."""
    for number, (kind, step, error) in enumerate(failures, 1):
        restarts.after_report(None, [{"step": step}], None)
        try:
            restarts(kind, None, {1: of_a_worker(error)})
        except NoRestartError as ended:
            assert str(error) in str(ended)
            return number
    return 0


@pytest.mark.parametrize("most", [0, 1, 5])
def test_only_failures_cost_restarts(most: int) -> None:
    steps = [(FAILURE, step, OSError(f"disk{'a' * step}")) for step in range(most + 2)]
    free = [(LOST_NODE, 3, ray.exceptions.NodeDiedError("gone")), (NOTICE, 3, ValueError("in its wake"))] * 4
    assert failed_until_the_end(Restarts(most), *free, *steps) == len(free) + most + 1
    assert failed_until_the_end(Restarts(-1), *free, *steps * 9) == 0


def test_a_loop_of_failures_ends_the_run() -> None:
    """The same three times, whatever its numbers are and whatever was lost in between, and no step further."""

    def closed(port: int) -> Exception:
        return RuntimeError(f"[/gloo/pair.cc:534] Connection closed by peer [10.0.0.{port}]:{port}123")

    lost = LOST_NODE, 7, ray.exceptions.NodeDiedError("gone")
    same = [(FAILURE, 7, closed(port)) for port in (1, 2, 3)]
    assert failed_until_the_end(Restarts(-1), same[0], lost, *same[1:]) == 4
    assert failed_until_the_end(Restarts(-1), *same[:2], (FAILURE, 8, closed(4)), *same[:2]) == 0, "it came further"
    assert failed_until_the_end(Restarts(-1), *same[:2], (FAILURE, 7, OSError("disk")), *same[:2]) == 0
    assert failed_until_the_end(Restarts(2), *same) == 3


# Through Ray Train


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("error", "most", "tries"), [(ValueError("a column is missing\nand more"), 1, 1), (OSError("disk"), -1, 3)], ids=str
)
def test_ray_train_tries_again_only_what_is_transient(
    ray_session: None, tmp_path: Path, error: Exception, most: int, tries: int
) -> None:
    def failing(config: dict[str, Any]) -> dict[str, Any]:
        """Runs in a worker: fails each time, counts, and tells its runtime environment (ray_internals.trainer)."""
        with config["tries"].open("a") as file:
            file.write(f"tried {dict(ray.get_runtime_context().runtime_env)}\n")
        raise config["error"]

    config = {"tries": tmp_path / "tries", "error": error, "data_cpus": 0.0, "plan": SimpleNamespace(uses_tasks=False)}
    with refused("", type(error).__name__, remedy="--verbose"):
        run_workers(failing, config, ResourceSettings(max_failures=most), tmp_path / "run", Display(quiet=True))
    assert config["tries"].read_text() == "tried {}\n" * tries, "each in a process without a runtime environment"
