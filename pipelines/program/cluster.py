"""Ray, started one way for all programs, with every environment variable and `DataContext` setting that matters.

`start()` joins the cluster that RAY_ADDRESS names (as inside `ray job submit`) or starts a local one. Ray's own variables, with
their reasons, stand in `ray_internals`.
"""

import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.io.retry import Unreachable
from pipelines.program import interrupts, ray_internals
from pipelines.program.causes import cause_of
from pipelines.program.errors import UserError

if TYPE_CHECKING:  # the environment below has to be set first
    import ray.data

_MISTAKE = "mistake"  # column of a block that brings a user's mistake
# Retries of a task whose process or machine dies. Ray Data's default is unlimited, but data may crash a process every time.
RETRIES = 5
_STARTS = 5  # attempts to start a local Ray before the machine counts as too busy
_LOOK = 2.0  # seconds between two checks of the head
_HEAD = 45.0  # seconds without it until it is gone: Ray ends drivers after 60
_LOCAL_HEAD = 5.0  # for a local Ray, whose head is not restarted

ENVIRONMENT = {name: value for name, (value, _) in ray_internals.VARIABLES.items()} | {
    # Each task tokenizes on the one CPU it was given; no notice about forks.
    "TOKENIZERS_PARALLELISM": "false",
    # transformers' load reports and bars would break the progress display; real errors are raised all the same.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Hosts and networks beyond the public web that data may name (http.py): those that read must know them too.
    "RAYLIGN_PRIVATE_HOSTS": "",
}


# At import, not in `start`: Ray reads many of them when it is imported itself, which no module does before this one.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")


def start(verbose: bool = False, cpus: int | None = None, state_api: bool = False) -> None:
    """Join or start Ray, once a process. Raises `UserError` where it does not start.

    `cpus`: logical CPUs of a local Ray, the machine's by default.

    `state_api`: Ray Train asks it whether a run that was stopped from outside still lives, before it gives the run's CPUs back.
    """
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if "RAY_ADDRESS" in os.environ:
        # The nodes' daemons were started elsewhere, so our environment has to be sent.
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    else:
        # Without an address Ray would attach to any cluster left running on this machine; the dashboard costs a second.
        options |= {"address": "local", "include_dashboard": state_api, "num_cpus": cpus or os.cpu_count()}
    _init(options)
    _watch_head("RAY_ADDRESS" not in os.environ)
    if not verbose:
        _divert_native_errors(ray_internals.logs_folder() / "raylign-driver.err")
    configure_data(verbose)


def _init(options: dict[str, Any]) -> None:
    """`ray.init`, retried if our own node did not start in time.

    A Ray node shuts itself down if its agents take more than 15 s to start, which only means that the machine is busy.
    """
    import ray

    import psutil  # isort: skip  comes with ray

    before = set(psutil.Process().children())
    for _ in range(_STARTS):
        try:
            ray.init(**options)
        except SystemExit as ended:  # Ray's own handler of SIGTERM, which it sets first of all
            if ended.code != signal.SIGTERM:
                raise
            interrupts.came(signal.SIGTERM)
        except Exception as error:  # Ray raises no more specific error
            if "RAY_ADDRESS" in os.environ:
                raise UserError(
                    f"RAY_ADDRESS: the cluster at {os.environ['RAY_ADDRESS']} cannot be joined: {cause_of(error)}; start it, or "
                    "unset RAY_ADDRESS for a Ray of this program's own"
                ) from error
            for left in set(psutil.Process().children()) - before:
                left.kill()
                left.wait()
            if ray_internals.NOT_UP_IN_TIME not in str(error).lower():
                raise UserError(f"Ray: it did not start on this machine: {cause_of(error)}; --verbose shows more") from error
            continue
        interrupts.retake()
        return
    raise UserError(
        f"Ray: its processes were not up in time on this machine, {_STARTS} times; end what else runs here, or try again later"
    )


def own_machine() -> tuple[int, int] | None:
    """CPUs and GPUs of the Ray that this process will start; None where it joins one, or did already."""
    import ray
    import torch

    if "RAY_ADDRESS" in os.environ or ray.is_initialized():
        return None
    return os.cpu_count() or 1, torch.cuda.device_count()


def stop() -> None:
    """Leave the cluster; a local Ray, or one that was still starting, is stopped completely."""
    ray = sys.modules.get("ray")
    if ray is None:
        return
    import psutil  # isort: skip  comes with ray

    ours = psutil.Process().children(recursive=True)
    if ray.is_initialized():
        ray.shutdown()
    for left in ours:
        with suppress(psutil.Error):
            left.kill()


def _watch_head(local: bool) -> None:
    """End the program with a message if the cluster's head is gone for good: Ray itself would end it silently a minute later.

    Ray reconnects to a head that is restarted in time, for example one with an external store of its state.
    """
    import ray

    address = ray.get_runtime_context().gcs_address
    patience = _LOCAL_HEAD if local else _HEAD

    def watch() -> None:
        missed = 0.0
        while missed < patience:
            begun = time.monotonic()
            time.sleep(_LOOK)
            if not ray.is_initialized():
                return
            answers = _answers(address)
            if not missed and not answers and not local:
                interrupts.say(f"Ray's head at {address} does not answer; waiting up to {patience:.0f} s for it")
            missed = 0.0 if answers else missed + time.monotonic() - begun
        if ray.is_initialized():
            way = "the same command goes on" if local else "start the cluster again, and the same command goes on"
            interrupts.say(f"error: Ray: the head at {address} is gone, and with it all that ran; {way} from what is done")
            os._exit(2)

    threading.Thread(target=watch, daemon=True).start()


def _answers(address: str) -> bool:
    """Whether the address accepts connections."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def telling(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`work` for a task of Ray Data: a `UserError`, or a store that does not answer, becomes a block that reports it.

    Ray would log a failed task at length.
    """

    @functools.wraps(work)
    def tell(*arguments: Any) -> dict[str, Any]:
        try:
            return work(*arguments)
        except (UserError, Unreachable) as error:
            return {_MISTAKE: [str(error)]}

    return tell


def blocks(dataset: "ray.data.Dataset", culprit: Callable[[], str] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a dataset of `telling` tasks, as they arrive. Raises the `UserError` of the first that failed.

    `culprit` as of `deaths_told`.
    """
    with deaths_told("the same command goes on with what is missing", culprit):
        for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            if _MISTAKE in block:
                raise UserError(str(block[_MISTAKE][0]))
            yield block


@contextmanager
def deaths_told(advice: str, culprit: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn a task whose process died repeatedly into a `UserError` with a remedy.

    `culprit`: finds the image that crashed it; a clause that names key and image, empty if it was not an image.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    try:
        yield
    except (NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError) as error:
        if found := culprit() if culprit else "":
            raise UserError(f"{found}; mend or remove the file, or prepare again with verify=all, which leaves it out") from None
        cause = str(error).strip().partition("\n")[0]
        raise UserError(
            f"Ray: a task's process ended, {RETRIES + 1} times: {cause}; see whether the machine is short of memory; {advice}"
        ) from None


def _divert_native_errors(path: Path) -> None:
    """Redirect file descriptor 2, to which Ray's C++ core writes harmless notices, to a file next to Ray's own logs.

    Python's `sys.stderr`, and with it every traceback, stays on the terminal.
    """
    try:
        if sys.stderr.fileno() != 2 or not path.parent.is_dir():
            return
    except (OSError, ValueError):  # captured, as in a test
        return
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    with path.open("a") as file:
        os.dup2(file.fileno(), 2)


def configure_data(verbose: bool = False) -> None:
    """Ray Data's settings in this process. Workers and controllers call it too: a `DataContext` does not travel."""
    import ray.data

    # Here, as Ray sets a filter of its own at import.
    warnings.filterwarnings("ignore", message=ray_internals.OPTIONS_WARNING)
    context = ray.data.DataContext.get_current()
    # Batches come in the order they were asked for, not as tasks happen to finish: the order is part of the result.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    if not verbose:
        context.print_on_execution_start = False
        for name in ("ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
