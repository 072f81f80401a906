"""Runs a run's workers with Ray Train, while the display follows the metrics."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train

from pipelines.program import cluster, interrupts, ray_internals
from pipelines.program.causes import cause_of, innermost
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.ray_elastic import FAILURE, LOST_NODE, NOTICE, watch_nodes
from training.checkpoint_registry import newest_step
from training.config import ResourceSettings
from training.doctor import Doctor
from training.failures import NoRestartError, Restarts
from training.loop import completed
from training.metrics_file import read_metrics
from training.metrics_log import Recorder
from training.placement import Watch, most_that_fit, room
from training.plan import Plan
from training.ray_worker import train_worker
from training.resources import bundles
from training.run_store import place_of, ray_options, store_of
from training.sessions import RESTARTS
from training.stopping import ask, forget

_GRACE = 60.0  # seconds for which the workers that stay may go on with a checkpoint when a node was taken away
_RESUMES = "--verbose shows all, the same command resumes from the last checkpoint"
_INTERRUPTED = {NOTICE: "a node will be lost", LOST_NODE: "node lost", FAILURE: "worker lost"}


def fit(
    plan: Plan, folder: Path, data_cpus: float, display: Display, callbacks: Sequence[ray.train.UserCallback] = ()
) -> dict[str, Any]:
    """Train with Ray Train, while the display reads metrics.jsonl; `callbacks`: further receivers of reports.

    The folder is new, or `checkpoint_registry.settle` was called on it.

    Raises `Stopped` if the run was asked to stop, by a signal or through `training.stopping.ask`; else as `loop.completed` does.
    """
    settings, wanted = plan.settings, plan.settings.resources
    tensorboard = settings.tensorboard
    if tensorboard and find_spec("tensorboard") is None:
        remedy = "pip install 'raylign[tensorboard]', or pass tensorboard=false"
        raise UserError("tensorboard", "the package is not installed", remedy)
    if tensorboard is None:
        tensorboard = find_spec("tensorboard") is not None
    recorder = Recorder(folder, settings.checkpoint.best, settings.checkpoint.mode, tensorboard, wanted.max_failures)
    recorder.catch_up()
    config = {"plan": plan, "data_cpus": data_cpus, "folder": folder, "store": store_of(folder)}
    keep = ray.train.CheckpointConfig(num_to_keep=settings.checkpoint.keep)
    forget(place_of(folder))
    with _Follower(folder, plan, display), interrupts.asking(partial(_stop_workers, folder)):
        restarts = Restarts(wanted.max_failures, recorder.note_restart)
        returned = run_workers(
            train_worker, config, wanted, folder, display, restarts, callbacks=[recorder, *callbacks], checkpoint_config=keep
        )
    return completed(returned)


def _stop_workers(folder: Path) -> None:
    """Ask the workers to stop, and wait until they have; return at once if no step is running, since nothing would be lost."""
    if ask(place_of(folder)):
        threading.Event().wait()


def run_workers(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    config: dict[str, Any],
    wanted: ResourceSettings,
    folder: Path,
    display: Display,
    restarts: Restarts | None = None,
    callbacks: Sequence[ray.train.UserCallback] = (),
    **options: Any,
) -> dict[str, Any]:
    """Call a function on all workers of a run, and return its result; Ray Train keeps its state in `folder`.

    Args:
        config: the function's argument, with the run's `plan` and `data_cpus`, which are reserved if tasks read for the workers.
        restarts: None if nothing notes them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    restarts = restarts or Restarts(wanted.max_failures)
    data_cpus = config["data_cpus"] if config["plan"].uses_tasks else 0.0
    beside, worker = bundles(data_cpus, wanted.data_labels), wanted.worker
    trainer = ray_internals.trainer(
        function,
        partial(most_that_fit, worker=worker, beside=beside, most=wanted.most_workers),
        beside,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=wanted.num_workers,
            use_gpu=wanted.use_gpu,
            resources_per_worker=dict(worker.resources),
            label_selector=dict(worker.labels) or None,
        ),
        run_config=ray.train.RunConfig(
            **ray_options(place_of(folder)),
            # `restarts` counts. A checkpoint begun before a node is taken away is finished without it.
            failure_config=ray.train.FailureConfig(
                max_failures=-1, relax_collectives_on_preemption=True, preemption_grace_s=_GRACE
            ),
            logging_config=ray.train.LoggingConfig(log_level="INFO" if display.verbose else "ERROR"),
            callbacks=[restarts, *callbacks, room(beside, folder), watch_nodes(restarts)],
            **options,
        ),
    )
    cluster.wait_for_head()
    patience = None if wanted.patience_minutes is None else 60 * wanted.patience_minutes
    doctor = Doctor(folder, patience, display)
    try:
        with Watch(folder, display), doctor:
            return trainer.fit().return_value
    except ray.exceptions.RayActorError:  # the controller
        if display.verbose or not doctor.cause:
            raise
        raise UserError("", f"training stopped: {doctor.cause}", _RESUMES) from None
    except (ray.train.TrainingFailedError, RuntimeError) as error:
        if display.verbose:
            raise
        root = innermost(error)
        cause = doctor.cause or (str(root) if isinstance(root, NoRestartError) else cause_of(root))
        raise UserError("", f"training stopped: {cause}", _RESUMES) from None


def _progress(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl, for the display."""
    if line["step"] == 0:
        return "scored before the first step"
    loss = f"loss {line['loss']:.3f}" if "loss" in line else "step skipped"
    skipped = f"  {line['skipped']:,} skipped" if line.get("skipped") else ""
    return f"{loss}  {line['samples_per_second']:,.0f} samples/s  data wait {line['data_wait']:.0%}{skipped}"


class _Follower:
    """A context in which a thread shows progress from metrics.jsonl, while Ray Train blocks the main thread."""

    def __init__(self, folder: Path, plan: Plan, display: Display):
        self._path, self._plan, self._display = folder / "metrics.jsonl", plan, display
        self._first = newest_step(folder) or 0
        self._restarts = folder / RESTARTS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        restarts = len(read_metrics(self._restarts))
        before = read_metrics(self._path)[-1:]  # by an earlier start, which may have gone beyond its last checkpoint
        with self._display.task("train", self._plan.total_steps) as task:
            task.update(self._first, "starting workers")
            shown, workers = -1, None
            while True:
                ended = self._stop.wait(0.5)
                try:
                    lines, losses = read_metrics(self._path), read_metrics(self._restarts)
                except OSError:  # a disk error, which the writer reports
                    if ended:
                        return
                    continue
                for line in losses[restarts:]:
                    what = _INTERRUPTED[line.get("kind", FAILURE)]
                    self._display.line(f"{what}, resuming from the last checkpoint: {line['cause']}")
                restarts = len(losses)
                if lines and lines[-1:] != before and lines[-1]["step"] != shown:
                    line = lines[-1]
                    shown = line["step"]
                    if workers not in (None, line.get("workers")):
                        self._display.line(f"training goes on with {line['workers']} instead of {workers} workers")
                    workers = line.get("workers")
                    task.update(shown, _progress(line))
                if ended:
                    return
