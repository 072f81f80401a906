"""Early stopping of search trials with Ray Tune's schedulers. Final runs are never stopped; a restart restores the state.

A scheduler compares all trials of the search, whatever their cell, so all trials of a cell may be stopped.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule, TrialScheduler

from pipelines.program import ray_internals
from pipelines.program.causes import cause_of
from tuning.config import AshaSettings, HyperbandSettings, MedianSettings, NoScheduler


def build_scheduler(
    settings: NoScheduler | AshaSettings | MedianSettings | HyperbandSettings, mode: str, epochs: int
) -> TrialScheduler:
    """Tune's scheduler over the reported `score`. `epochs`: of a trial that is not stopped."""
    common: dict[str, Any] = {"time_attr": "epoch", "metric": "score", "mode": mode}
    if isinstance(settings, AshaSettings):
        grace = min(settings.grace_epochs, epochs)
        return ASHAScheduler(**common, max_t=epochs, grace_period=grace, reduction_factor=settings.reduction_factor)
    if isinstance(settings, MedianSettings):
        return MedianStoppingRule(**common, grace_period=settings.grace_epochs, min_samples_required=settings.min_trials)
    if isinstance(settings, HyperbandSettings):
        return HyperBandScheduler(**common, max_t=epochs, reduction_factor=settings.reduction_factor)
    return FIFOScheduler()


class SearchOnly(TrialScheduler):
    """Applies a scheduler to search trials only. A trial's last result does not stop it: the trial is complete."""

    def __init__(self, inner: TrialScheduler, errors: dict[str, str], owed: Callable[[], bool] = lambda: False):
        """`owed`: whether the place of a trial that ends belongs to another job (`tuning.fair_share`)."""
        super().__init__()
        self._inner, self._errors, self._owed = inner, errors, owed

    def remind(self, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Pass on the results of trials that ended before a restart, by name, so that later trials are compared with them too.

        Not for HyperBand, whose brackets contain running trials only.
        """
        if isinstance(self._inner, HyperBandScheduler):
            return
        for name, lines in curves.items():
            ray_internals.remind(self._inner, name, lines)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        if _searched(trial):
            self._inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        if not _searched(trial):
            return TrialScheduler.CONTINUE
        decision = self._inner.on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if result.get("last") else decision

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        # The only place where Tune shows the exception before it calls the searcher.
        self._errors[trial.trial_id] = _death(trial)
        if _searched(trial):
            self._inner.on_trial_error(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        # The median rule would look for the score of a trial that failed before it had one.
        if _searched(trial) and ("score" in result or not isinstance(self._inner, MedianStoppingRule)):
            self._inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        if _searched(trial):
            self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Final runs first: they complete a cell."""
        if self._owed():
            ray_internals.drop_idle_actors(tune_controller)
        waiting = [t for t in tune_controller.get_trials() if t.status == Trial.PENDING and not _searched(t)]
        return waiting[0] if waiting else self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return self._inner.debug_string()

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the curves on disk are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore: see `remind`."""


def _searched(trial: Trial) -> bool:
    return trial.config["phase"] == "search"


def _death(trial: Trial) -> str:
    """The reason in words. A trial that raises records its own reason, so this one's process died or never started."""
    error, times = ray_internals.failure_of(trial)
    cause = "its process died" if error is None else cause_of(error)
    return f"{cause} ({times} times)" if times > 1 else cause
