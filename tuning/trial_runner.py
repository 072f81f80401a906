"""Runs one trial in its Tune actor: a training run until it finishes, is stopped or fails, with reports to Tune.

Any failure in training is an outcome with a reason, recorded by the trial itself. Only a process that dies records nothing: Tune
starts it again, and it resumes from its newest checkpoint.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.features.pool import Pool
from pipelines.io.retry import is_remote
from pipelines.program.causes import cause_of
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from training.checkpoint_registry import settle
from training.config import TrainSettings
from training.diagnosis import diagnose
from training.dry_run import check_build
from training.held_out import HELD_OUT
from training.in_process import fit_inline
from training.loop import DivergenceError
from training.metrics_file import read_metrics
from training.plan import keep_towers, plan_of
from training.ray_train import fit
from training.run import result_of
from training.run_store import fetched, finished, kept
from training.stopping import Stopped
from training.working_copy import settled, trials_copy
from tuning.held_out_items import FILE, write_items
from tuning.trials import Outcome, end, ended, evaluations, outcome_of, score_of, write_result

QUIET = Display(quiet=True)


def run_trial(config: dict[str, Any]) -> None:
    """Run a trial.

    `config`: name, tree (a whole training config), inline, data_cpus, score, logged, items, place (its folder or URI).
    """
    place = config["place"]
    with trials_copy(place) if is_remote(place) else _alone(Path(place)) as folder:
        if ended(folder) is not None:  # the previous process finished it after all
            return
        try:
            outcome = _train(config, folder)
        except Stopped:  # the whole sweep stops; without an outcome the trial resumes with it
            return
        except Exception as error:
            lines = read_metrics(folder / "metrics.jsonl")
            outcome, found = _failure(error, lines), [asdict(finding) for finding in diagnose(lines, config["tree"])]
            outcome = replace(outcome, reason=outcome.reason.replace(str(folder), place), findings=found)
        finished(folder)
        # A run that was stopped from outside may fail after the sweep has recorded the stop.
        fetched(folder, "outcome.json")
        if ended(folder) is None:
            end(folder, outcome)


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Lock the trial: after a driver is killed, its trials run for some more seconds, and the next driver restarts them."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        yield folder


def _train(config: dict[str, Any], place: Path) -> Outcome:
    settings = validate(TrainSettings, config["tree"], config["name"])
    damaged: list[str] = []
    checkpoint = settle(place, damaged.append)
    settled(place)
    # Features that the sweep has cached are found; others in this process: the cluster's CPUs belong to the trials that run.
    plan = plan_of(settings, Pool(0, settings.resources.use_gpu), QUIET, place, checkpoint)
    if config["items"]:  # a final run, which stays
        keep_towers(plan, place)

    def report(line: dict[str, Any]) -> None:
        if values := values_for_tune(line, config, settings.epochs):
            tune.report(values)

    if config["inline"]:
        returned = fit_inline(plan, place, report)
    else:
        check_build(plan)
        returned = fit(plan, place, config["data_cpus"], QUIET, [_Report(config, settings.epochs)])
    fetched(place, HELD_OUT, *(scored.file for scored in plan.scored))
    lines = read_metrics(place / "metrics.jsonl")
    outcome = outcome_of("finished", "; ".join(damaged), lines)
    result = result_of(plan, place, returned, {"training": outcome.seconds})
    write_result(place, result)
    if config["items"]:
        write_items(place, [(scored.images.prepared, scored.data, np.load(place / scored.file)) for scored in plan.scored])
    kept(place, "tensorboard", FILE)
    # The stored result, not the last line of metrics.jsonl: that can be lost if a driver dies.
    told = {"metrics": result["metrics"], "train_samples": result["dataset"]["train_samples"], "findings": result["findings"]}
    return Outcome(**vars(outcome) | told)


class _Report(TuneReportCallback):
    """Passes evaluations of a Ray Train run from its controller to the trial that started it."""

    def __init__(self, config: dict[str, Any], epochs: int):
        super().__init__()
        self._config, self._epochs = {name: config[name] for name in ("score", "logged")}, epochs

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None) -> None:
        if values := values_for_tune(metrics[0], self._config, self._epochs):
            super().after_report(run_context, [values], None)


def values_for_tune(line: dict[str, Any], config: dict[str, Any], epochs: int) -> dict[str, Any]:
    """The values of an evaluation for Tune, its schedulers and loggers; empty for other lines.

    Tune's driver keeps statistics of all that it hears, of every trial, so without loggers it hears only what schedulers need.
    """
    scored = evaluations([line])
    if not scored:
        return {}
    # MLflow does not allow @ in names.
    values = {name.replace("@", "_at_"): value for name, value in scored[0].items() if config["logged"] or name == "epoch"}
    return values | {"score": score_of(scored[0], config["score"]), "last": line["epoch"] >= epochs}


def _failure(error: Exception, lines: list[dict[str, Any]]) -> Outcome:
    """A readable reason: what happened and, if known, the remedy."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        reason = text
    elif isinstance(error, torch.OutOfMemoryError | MemoryError):
        reason = f"out of memory: {text[:200]}; a smaller global_batch_size, or a larger accumulate, needs less"
    else:
        reason = cause_of(error)
    return outcome_of("failed", reason, lines, isinstance(error, DivergenceError))
