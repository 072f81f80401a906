"""Ray, started one way for all programs, with every environment variable and `DataContext` setting that matters.

`start()` joins the cluster that RAY_ADDRESS names (as inside `ray job submit`) or starts a local one. Ray's own variables are in
`ray_internals`, with their reasons.
"""

import atexit
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.program import interrupts, ray_data, ray_errors, ray_internals
from pipelines.program.causes import cause_of, of_storage
from pipelines.program.errors import UserError
from pipelines.program.nodes import Bundle, Notices, shortage, waits_for
from pipelines.program.ray_elastic import all_nodes, free_resources

if TYPE_CHECKING:  # the environment below has to be set first
    import psutil
    import ray.data

_ERROR = ("error_key", "error_problem", "error_remedy")  # columns of a block that holds a `UserError`
# Retries of a task whose process or machine dies. Ray Data's default is unlimited, but data may crash a process every time.
RETRIES = 5
_STARTS = 5  # attempts to start a local Ray before the machine counts as too busy
_LOOK = 2.0  # seconds between two checks of the head
_HEAD = 45.0  # seconds without it until it is gone: Ray ends drivers after 60
_ON_HEAD: list[Any] = []  # the task on the head, in a cluster that was joined
_NODE: set["psutil.Process"] = set()  # the local Ray's processes that are children of this one
_LOCAL_HEAD = 5.0  # for a local Ray, whose head is not restarted
HEAD_LOST = 3  # exit code of a program that has lost it: whoever started the program may start the cluster again, and then it
ONE_CPU = Bundle({"CPU": 1.0})  # what a task of Ray Data needs by default

ENVIRONMENT = {name: value for name, (value, _) in ray_internals.VARIABLES.items()} | {
    # Each task tokenizes on the one CPU it was given; no notice about forks.
    "TOKENIZERS_PARALLELISM": "false",
    # transformers' load reports and bars would break the progress display; real errors are raised all the same.
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    # Hosts and networks besides the public web that data may name (http.py): tasks that read need them too.
    "RAYLIGN_PRIVATE_HOSTS": "",
}


# At import, not in `start`: Ray reads many of them when it is imported, which no module does before this one.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")


def start(verbose: bool = False, cpus: int | None = None) -> None:
    """Join or start Ray, once in a process. Raises `UserError` if it does not start.

    Args:
        cpus: logical CPUs of a local Ray, the machine's by default.
    """
    import ray

    if ray.is_initialized():
        gc.collect()  # an earlier program's execution in this process may still hold its actors, and with them CPUs
        return
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if "RAY_ADDRESS" in os.environ:
        # The nodes' daemons were started elsewhere, so they need to be sent our environment.
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
    else:
        # Without an address Ray would attach to any cluster left running on this machine; the dashboard costs a second.
        options |= {"address": "local", "include_dashboard": False, "num_cpus": cpus or os.cpu_count()}
        if not verbose:
            atexit.register(_end)
    _init(options)
    _watch_head("RAY_ADDRESS" not in os.environ)
    if not verbose:
        _divert_native_errors(ray_internals.logs_folder() / "raylign-driver.err")
    configure_data(verbose)
    if "RAY_ADDRESS" in os.environ:
        task = ray.remote(num_cpus=0, resources={ray_internals.HEAD_NODE: 0.001}, max_retries=-1)(_first_dataset)
        _ON_HEAD.append(task.remote())


def _first_dataset() -> None:
    """Execute a dataset, on the head node.

    Ray Data keeps actors for the whole cluster, and makes them where the cluster's first dataset is executed: in a training
    worker, they would hold its node for ever, which then never counts as idle, and take what they know along with a spot node.
    """
    import ray.data

    configure_data()
    list(ray.data.from_items([{"one": 1}]).iter_batches(batch_size=None))


def wait_for_head() -> None:
    """Wait until other processes may execute datasets."""
    import ray

    if _ON_HEAD:
        ray.wait(_ON_HEAD)


def _init(options: dict[str, Any]) -> None:
    """`ray.init`, retried if our own node did not start in time.

    A Ray node shuts itself down if its agents take more than 15 s to start, which only means that the machine is busy.
    """
    import ray

    import psutil  # isort: skip  comes with ray

    before, ready = set(psutil.Process().children()), False
    for _ in range(_STARTS):
        try:
            joins = "RAY_ADDRESS" in os.environ
            with nullcontext() if joins else ray_internals.small_node(logs=options.get("log_to_driver", False)):
                ray.init(**options)
            ready = True
        except SystemExit as ended:  # Ray's own handler of SIGTERM, which it sets first of all
            if ended.code != signal.SIGTERM:
                raise
            interrupts.came(signal.SIGTERM)
        except Exception as error:  # Ray raises no more specific error
            if "RAY_ADDRESS" in os.environ:
                problem = f"the cluster at {os.environ['RAY_ADDRESS']} cannot be joined: {cause_of(error)}"
                raise UserError("RAY_ADDRESS", problem, "start it, or unset RAY_ADDRESS to start a local Ray") from error
            if ray_internals.NOT_UP_IN_TIME not in str(error).lower():
                problem = f"did not start on this machine: {cause_of(error)}"
                raise UserError("Ray", problem, "run with --verbose to see more") from error
            continue
        finally:
            begun = set(psutil.Process().children()) - before
            if ready:
                _NODE.update(begun)
            else:
                _kill(begun)
        interrupts.retake()
        return
    problem = f"its processes did not start in time on this machine, {_STARTS} times"
    raise UserError("Ray", problem, "stop other programs on this machine, or try again later")


def own_machine() -> tuple[int, int] | None:
    """CPUs and GPUs of the local Ray that this process will start; None if it joins a cluster, or Ray has started."""
    import torch

    ray = sys.modules.get("ray")  # imported only to start it
    if "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized()):
        return None
    return os.cpu_count() or 1, torch.cuda.device_count()


def _end() -> None:
    """Stop a local Ray as the program ends. Ray does so later, after a wait for logs to be printed."""
    import ray

    if ray.is_initialized():
        ray.shutdown()


def stop() -> None:
    """Leave the cluster; a local Ray is stopped completely. Other child processes of this one stay."""
    ray = sys.modules.get("ray")
    if ray is None:
        return
    ours = _with_children(_NODE)
    if ray.is_initialized():
        ray.shutdown()
    _kill(ours)
    _NODE.clear()


def _with_children(processes: set["psutil.Process"]) -> set["psutil.Process"]:
    import psutil  # isort: skip  comes with ray

    family = set(processes)
    for process in processes:
        with suppress(psutil.Error):  # it has ended
            family.update(process.children(recursive=True))
    return family


def _kill(processes: set["psutil.Process"]) -> None:
    import psutil  # isort: skip  comes with ray

    for process in _with_children(processes):
        with suppress(psutil.Error):
            process.kill()
    for process in processes:
        process.wait()


def _watch_head(local: bool) -> None:
    """End the program with a message if the cluster's head is lost for good: Ray would end it a minute later without a word.

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
            remedy = "run the same command again" if local else "start the cluster and run the same command again"
            interrupts.say(
                f"error: Ray: the head at {address} is lost, with all that ran; {remedy}: it resumes from what is done"
            )
            os._exit(HEAD_LOST)

    threading.Thread(target=watch, daemon=True).start()


def _answers(address: str) -> bool:
    """Whether the address accepts connections."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def errors_as_blocks(work: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """`work` for a task of Ray Data: if a `UserError` is raised, or a store or disk fails, the result is a block that says so.

    Ray would log a failed task at length.
    """

    @functools.wraps(work)
    def run(*arguments: Any) -> dict[str, Any]:
        try:
            return work(*arguments)
        except UserError as error:
            parts = error.key, error.problem, error.remedy
        except OSError as error:
            if (told := of_storage(error)) is None:
                raise
            parts = told.key, told.problem, told.remedy
        return {name: [part] for name, part in zip(_ERROR, parts, strict=True)}

    return run


def wait_for_room(task: Bundle) -> None:
    """Wait, in a cluster that others use too, until there is room for one task of the work that is submitted next.

    An empty task waits for it, and what it waits for is said again and again; afterwards, the program itself may be what takes
    all CPUs. A cluster that grows does so for that task.
    """
    import ray

    if "RAY_ADDRESS" not in os.environ or not ray.is_initialized():
        return
    options = {"num_cpus": task.resources.get("CPU", 0), "num_gpus": task.resources.get("GPU", 0)}
    waits = ray.remote(**options, label_selector=dict(task.labels) or None, max_retries=-1)(_nothing).remote()
    notices = Notices()
    while not ray.wait([waits], timeout=0.5)[0]:
        seconds = notices.due(True)
        if seconds is not None:
            interrupts.say(waits_for(shortage([task], free_resources(None), all_nodes()), seconds))
    ray.get(waits)


def _nothing() -> None:
    """A task."""


def blocks(
    dataset: "ray.data.Dataset", culprit: Callable[[], UserError | None] | None = None, task: Bundle = ONE_CPU
) -> Iterator[dict[str, np.ndarray]]:
    """The blocks of a dataset of `errors_as_blocks` tasks, as they arrive. Raises the `UserError` of the first that failed.

    Args:
        culprit: see `deaths_as_errors`.
        task: what one of its tasks needs.
    """
    wait_for_room(task)
    with deaths_as_errors("the same command resumes with what is missing", culprit):
        for block in dataset.iter_batches(batch_size=None, batch_format="numpy"):
            if _ERROR[0] in block:
                raise UserError(*(str(block[name][0]) for name in _ERROR))
            yield block


@contextmanager
def deaths_as_errors(remedy: str, culprit: Callable[[], UserError | None] | None = None) -> Iterator[None]:
    """Inside the block, a task whose process died repeatedly raises a `UserError`.

    Args:
        remedy: what else to do, besides looking at the machine's memory.
        culprit: finds the image that crashed the task; its error is raised instead. None if it was not an image.
    """
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    try:
        yield
    except (NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError) as error:
        _release(error)
        if ray_errors.failed_at_start(error):  # an exception, of an encoder for example, and no death
            raise UserError("Ray", f"a task failed: {cause_of(error)}", f"correct that; {remedy}") from None
        if image_error := culprit() if culprit else None:
            raise image_error from None
        problem = f"a task failed {RETRIES + 1} times: {cause_of(error)}"
        raise UserError("Ray", problem, f"check whether the machine is short of memory; {remedy}") from None
    except Exception as error:
        _release(error)
        raise


def _release(error: BaseException) -> None:
    """Drop what the frames of a failed execution hold.

    Its actors keep their CPUs while anything refers to them, and an error lives on in a notebook or in the error raised next:
    without this, the next program in the same process would wait for CPUs for ever.
    """
    chain, seen = [error], set[int]()
    while chain:
        one = chain.pop()
        if id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                for outer, _ in traceback.walk_stack(frame):  # Ray cuts tracebacks short, but a frame refers to its callers
                    with suppress(RuntimeError):  # it is running
                        outer.clear()
            chain += [earlier for earlier in (one.__cause__, one.__context__) if earlier is not None]
    gc.collect()  # an execution refers to itself


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
    """Set Ray Data's options in this process. Workers and controllers call it too: a `DataContext` stays in its process."""
    import ray.data

    # Here, as Ray sets its own filter when it is imported.
    warnings.filterwarnings("ignore", message=ray_data.OPTIONS_WARNING)
    context = ray.data.DataContext.get_current()
    # Batches arrive in the order of the input, not as tasks happen to finish: the order is part of the result.
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    context.custom_execution_callback_classes = [ray_data.paced()]
    if not verbose:
        context.print_on_execution_start = False
        for name in ("ray.data", "ray.train", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
