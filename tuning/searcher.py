"""The interface to Ray Tune: a searcher that hands out the schedule's trials and records their outcomes, and callbacks."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from pipelines.program.ray_internals import empty_trial
from training.config import TrainSettings
from training.placement import give_back
from training.stopping import ask, forget
from tuning.config import SweepSettings
from tuning.resources import booking_of
from tuning.search_order import Schedule
from tuning.trials import Folder, Outcome, Trial


class ScheduleSearcher(Searcher):
    """Suggests the schedule's trials to Tune, and records how they end.

    Args:
        build: makes the training config of a trial.
        at_once: maximum number of running trials; None: as many as Tune starts.
        errors: why trials died, by Tune's id.
        first: a trial that was already taken from the schedule.
        owed: whether the next place belongs to another job.
    """

    def __init__(
        self,
        settings: SweepSettings,
        schedule: Schedule,
        folder: Folder,
        build: Callable[[Trial], TrainSettings],
        score: Sequence[str],
        at_once: int | None,
        errors: dict[str, str],
        first: Trial | None,
        owed: Callable[[], bool] = lambda: False,
    ):
        super().__init__(metric="score", mode=settings.mode)
        self._settings, self._schedule, self._folder, self._build = settings, schedule, folder, build
        self._score, self._at_once, self._errors = list(score), at_once, errors
        self._first, self._owed = first, owed
        self._begun: dict[str, float] = {}
        self.out: dict[str, Trial] = {}  # by Tune's id
        self.seconds: list[float] = []  # duration of each trial that ended in this session
        self.stopping = False  # running trials are asked to stop, and no more are handed out

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial's config; None: not now."""
        if self.stopping or (self._at_once is not None and len(self.out) >= self._at_once):
            return None
        if self._owed():
            return None
        trial, self._first = self._first or self._schedule.next(), None
        if trial is None:
            return Searcher.FINISHED if self._schedule.done else None
        self._folder.begin(trial)
        forget(self._folder.place(trial.name))
        self.out[trial_id], self._begun[trial_id] = trial, time.monotonic()
        settings = self._build(trial)
        booking = booking_of(settings)
        return {
            "name": trial.name,
            "cell": trial.cell,
            "phase": trial.phase,
            "tree": settings.model_dump(mode="json"),
            "inline": booking.inline,
            "data_cpus": max(1.0, booking.data_cpus),
            "bundle": dict(booking.actor().resources),
            "labels": dict(booking.actor().labels),
            "score": self._score,
            "logged": bool(self._settings.loggers),
            "items": trial.phase == "final",
            "place": str(self._folder.place(trial.name)),
        }

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """A trial that ended by itself has written its outcome; otherwise it was stopped, or its process died."""
        trial = self.out.pop(trial_id)
        self._folder.hear(trial.name)
        outcome = self._folder.ended(trial.name)
        if outcome is None:
            give_back(self._folder.place(trial.name))
            if self.stopping and not error:  # it resumes with the sweep
                return
            so_far = self._folder.so_far(trial.name)
            if error:
                outcome = Outcome(**vars(so_far) | {"status": "failed", "reason": self._errors.get(trial_id, "its process died")})
            else:
                reason = f"by {self._settings.scheduler.name} after {so_far.epochs:g} epoch{'' if so_far.epochs == 1 else 's'}"
                outcome = Outcome(**vars(so_far) | {"reason": reason})
            self._folder.end(trial.name, outcome)
        self.seconds.append(time.monotonic() - self._begun.pop(trial_id))
        self._schedule.ended(trial.name, outcome)

    def stop(self) -> None:
        """Ask running trials to save and end, and wait for them; those without a step yet lose nothing."""
        self.stopping, asked = True, set()
        while True:
            out = [trial.name for trial in list(self.out.values())]
            asked |= {name for name in out if ask(self._folder.place(name))}
            if not asked.intersection(out):
                return
            time.sleep(0.2)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles the searcher with its own state; the searcher's state is already on disk."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the trials' folders are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: a resumed sweep repeats its schedule."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to do, as in `save`."""


class Follow(TrialProgressCallback):
    """Replaces Tune's own progress: calls `on_step` in every iteration of its loop, `on_death` with the name of a dead trial.

    `on_step` gets whether all trials that are under way wait for resources. `keep`: whether loggers need the settings of a trial
    that has ended.
    """

    def __init__(self, on_step: Callable[[bool], None], on_death: Callable[[str], None], keep: bool = False):
        super().__init__()
        self._on_step, self._on_death, self._keep = on_step, on_death, keep

    def __getstate__(self) -> dict[str, Any]:
        """Empty, as the searcher's."""
        return {}

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        under_way = [trial.status for trial in trials if not trial.is_finished()]
        self._on_step(bool(under_way) and "RUNNING" not in under_way)

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._on_death(trial.config["name"])

    def on_trial_result(self, *_: Any, **info: Any) -> None:
        """Nothing to print."""

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._let_go(trial)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._let_go(trial)

    def _let_go(self, trial: Any) -> None:
        if not self._keep:
            trial.config = {key: trial.config[key] for key in ("name", "phase")}
            empty_trial(trial)


def loggers(settings: SweepSettings, folder: Path) -> list[Any]:
    """Tune's own logger callbacks, whose packages are installed."""
    callbacks: list[Any] = []
    if "tensorboard" in settings.loggers:
        from ray.tune.logger import TBXLoggerCallback

        callbacks.append(TBXLoggerCallback())
    if "mlflow" in settings.loggers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name=settings.name))
    if "wandb" in settings.loggers:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project="raylign", group=settings.name))
    return callbacks
