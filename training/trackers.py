"""W&B, MLflow and trackio for a single run (`loggers`): the lines of metrics.jsonl, sent while the run goes on.

Each tracker has a thread of the program's own process, which has the user's environment and reads the file that the run writes
anyway. So whatever a tracker does, the run goes on: one that fails or hangs is told once, and tried again; what it missed is sent
then, or by the next start. `trackers.json` in the run's folder has the run's id, the same at each start and on each machine, and
the last step that was sent to each tracker. A killed process may not have sent what it noted, so each start asks the tracker.

TensorBoard's events are written by the run itself (metrics_log.py), and a sweep's trials are tracked by Ray Tune's callbacks.
"""

import json
import math
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.program.causes import cause_of
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from training.checkpoint_registry import put
from training.config import TrainSettings
from training.metrics_file import read_metrics
from training.run_store import kept

FILE = "trackers.json"
_POLL = 2.0  # seconds
_LONGEST_WAIT = 60.0  # between two tries of a tracker that fails
_LAST, _LAST_OF_FAILED = 60.0, 10.0  # seconds that the end of a run waits for its trackers
_KEEP = 30.0  # seconds between two copies of the file in a store
_PROJECT = "raylign"
_NOT_NUMBERS = ("step", "time")


@dataclass(frozen=True)
class Run:
    """What a tracker is told of a run."""

    id: str
    name: str
    config: dict[str, Any]
    folder: Path


class Tracker(ABC):
    """One run in one tracker. Its methods may raise anything, and may hang."""

    def __init__(self, run: Run):
        self.run = run

    @abstractmethod
    def open(self) -> tuple[str, int]:
        """Find the run by its id, or create it. Returns where it is, for people, and its last step; -1 if it has none."""

    @abstractmethod
    def log(self, numbers: dict[str, float], step: int, seconds: float) -> None:
        """Send the numbers of a step, and the time since 1970."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Send what is left."""


class Wandb(Tracker):
    """WANDB_PROJECT, WANDB_MODE, WANDB_ENTITY and W&B's other variables are its own to read."""

    def open(self) -> tuple[str, int]:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=self.run.id,
            name=self.run.name,
            config=self.run.config,
            dir=str(self.run.folder),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Offline, what it had is in folders of earlier starts, the last of it perhaps lost by a kill: this one gets all of it.
        if self._run.offline:
            return f"offline, in {self._run.dir.removesuffix('/files')}", -1
        return str(self._run.url), self._run.step - 1

    def log(self, numbers: dict[str, float], step: int, seconds: float) -> None:
        self._run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow(Tracker):
    """At MLFLOW_TRACKING_URI, else in a database beside the runs; in the experiment MLFLOW_EXPERIMENT_NAME."""

    def open(self) -> tuple[str, int]:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.run.folder.parent.absolute() / 'mlflow.db'}"
        self._client = client = MlflowClient(place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = client.search_runs([number], f"tags.`raylign.id` = '{self.run.id}'")
        last = -1
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            # Each line has it.
            last = max((metric.step for metric in client.get_metric_history(self._id, "samples_per_second")), default=-1)
        else:
            made = client.create_run(number, run_name=self.run.name, tags={"raylign.id": self.run.id})
            self._id = made.info.run_id
            params = [Param(key, value[:500]) for key, value in _flat(self.run.config).items()]
            for start in range(0, len(params), 100):  # as many as MLflow takes at a time
                client.log_batch(self._id, params=params[start : start + 100])
        return f"{place}, run {self._id}", last

    def log(self, numbers: dict[str, float], step: int, seconds: float) -> None:
        from mlflow.entities import Metric

        # MLflow does not allow @ in names.
        metrics = [Metric(name.replace("@", "_at_"), value, int(1000 * seconds), step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class Trackio(Tracker):
    """TRACKIO_PROJECT, TRACKIO_SPACE_ID, TRACKIO_DIR and trackio's other variables are its own to read."""

    def open(self) -> tuple[str, int]:
        import trackio

        project, name = os.environ.get("TRACKIO_PROJECT", _PROJECT), f"{self.run.name}-{self.run.id}"
        quiet: dict[str, Any] = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        self._run = trackio.init(project, name=name, config=_flat(self.run.config), resume="allow", **quiet)
        # It buffers for half a second, which a kill loses, and looks up the last step that it has. Not documented: its default
        # for a step that is not given.
        return f"trackio show --project {project}", getattr(self._run, "_next_step", 0) - 1

    def log(self, numbers: dict[str, float], step: int, seconds: float) -> None:
        self._run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish()


_KINDS: dict[str, type[Tracker]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


def check_trackers(settings: TrainSettings) -> None:
    """Raises `UserError` if a tracker's package is not installed, or it would have to ask for what nobody can answer."""
    for name in settings.loggers:
        if find_spec(name) is None:
            # trackio's requirements contradict ours, so it is no extra.
            how = "pip install --no-deps trackio, see docs/trackers.md" if name == "trackio" else f"pip install 'raylign[{name}]'"
            remedy = f"{how}, or leave it out"
            raise UserError("loggers", f"'{name}' needs the package {name}, which is not installed", remedy)
    if "mlflow" in settings.loggers and isinstance(settings.storage, str) and not os.environ.get("MLFLOW_TRACKING_URI"):
        problem = "'mlflow' writes into a database on a disk, unless it is told of a server"
        raise UserError("loggers", problem, "set MLFLOW_TRACKING_URI, give a folder as storage, or leave it out")
    if "wandb" in settings.loggers:
        import wandb

        about = wandb.setup().settings
        if about.mode not in ("offline", "disabled", "dryrun") and wandb.api.api_key is None:
            problem = "'wandb' has no API key, and would ask for one"
            raise UserError("loggers", problem, "run wandb login, set WANDB_API_KEY or WANDB_MODE=offline, or leave it out")


@contextmanager
def tracked(settings: TrainSettings, folder: Path, display: Display, over: bool = False) -> Iterator[None]:
    """A context in which the run's metrics.jsonl is sent to its trackers; at its end what is left is.

    `over`: of a run that finished before, only to those that lack some of it.
    """
    if not settings.loggers:
        yield
        return
    state = _State(folder)
    names = settings.loggers if not over else tuple(name for name in settings.loggers if state.lacks(name))
    run = Run(state.id, settings.name, settings.model_dump(mode="json"), folder)
    followers = [_Follower(name, _KINDS[name](run), state, display) for name in names]
    for follower in followers:
        follower.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        for follower in followers:
            follower.end(failed)
        until = time.monotonic() + (_LAST_OF_FAILED if failed else _LAST)
        for follower in followers:
            follower.wait(until)
        state.keep()


class _State:
    """The content of `trackers.json`."""

    def __init__(self, folder: Path):
        self._folder, self._lock, self._kept = folder, threading.Lock(), time.monotonic()
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            self.id, self.sent = str(content["id"]), {str(name): int(step) for name, step in content["sent"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self.id, self.sent = secrets.token_hex(4), {}
            self._write()
            self.keep()

    def note(self, name: str, step: int) -> None:
        """A tracker has all up to a step."""
        with self._lock:
            self.sent[name] = step
            self._write()
            if time.monotonic() - self._kept > _KEEP:
                self.keep()

    def lacks(self, name: str) -> bool:
        """Whether a tracker lacks a line of the run."""
        return any(line["step"] > self.sent.get(name, -1) for line in read_metrics(self._folder / "metrics.jsonl"))

    def keep(self) -> None:
        """Put it into the store, if the run is in one."""
        kept(self._folder, FILE)
        self._kept = time.monotonic()

    def _write(self) -> None:
        put(self._folder / FILE, json.dumps({"id": self.id, "sent": self.sent}))


class _Follower(threading.Thread):
    """Sends lines to one tracker."""

    def __init__(self, name: str, tracker: Tracker, state: _State, display: Display):
        super().__init__(name=f"tracker-{name}", daemon=True)
        self._called, self._tracker, self._state, self._display = name, tracker, state, display
        self._path = tracker.run.folder / "metrics.jsonl"
        self._ended, self._failed, self._open = threading.Event(), False, False
        self._told = self._done = False

    def run(self) -> None:
        """Until the run has ended, and all is sent or cannot be."""
        wait = 0.0
        while True:
            ended = self._ended.wait(wait)
            try:
                self._send()
                if ended:
                    self._tracker.close(self._failed)
                    self._done = True
                    return
                wait = _POLL
            except Exception as error:  # each tracker raises its own errors
                self._tell(f"{cause_of(error)}; the run goes on, and what it misses is sent later")
                if ended:
                    return
                wait = min(_LONGEST_WAIT, 2 * wait + _POLL)

    def end(self, failed: bool) -> None:
        """Send the last lines, and stop."""
        self._failed = failed
        self._ended.set()

    def wait(self, until: float) -> None:
        """Wait for the last lines to be sent, but not beyond a time (monotonic)."""
        self.join(max(0.0, until - time.monotonic()))
        if not self._done:
            self._told = False
            self._tell("does not have all metrics of the run; the same command sends the others")

    def _send(self) -> None:
        if not self._open:
            place, last = self._tracker.open()
            self._open = True
            self._state.note(self._called, last)
            self._display.line(f"{self._called}: {place}")
        before = after = self._state.sent.get(self._called, -1)
        try:
            for line in read_metrics(self._path):
                if line["step"] > after:
                    self._tracker.log(_numbers(line), line["step"], line.get("time", time.time()))
                    after = line["step"]
        finally:
            if after > before:
                self._state.note(self._called, after)

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            self._display.line(f"warning: {self._called}: {what}")


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line; a loss that is not finite is left out, since not all trackers take it."""
    return {
        name: value
        for name, value in line.items()
        if name not in _NOT_NUMBERS and isinstance(value, int | float) and math.isfinite(value)
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted keys and their values as text."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": str(value)}
    return found
