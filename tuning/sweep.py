"""Runs a sweep on the driver: check everything, store features once, run the schedule with Ray Tune, write the report.

The same call again resumes: the trials' folders are the state (`tuning.trials`), and the schedule is repeated.
"""

import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.io import storage
from pipelines.program import interrupts, path_keys
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.ray_internals import let_trials_wait
from pipelines.program.settings import difference
from training.config import TrainSettings
from training.run import only_one
from training.run_store import emptied, ray_options
from training.working_copy import working_copy
from tuning.config import SweepSettings
from tuning.plan import SweepPlan
from tuning.results import about_of, baselines_and_sizes, write_about, write_tables
from tuning.search_order import Schedule
from tuning.trials import Trial, pull, read_json, score_of

if TYPE_CHECKING:
    from training.resources import Cluster

_UNDER_WAY = "those under way are kept at their newest checkpoints"


def sweep(settings: SweepSettings, display: Display, command: str) -> None:
    """Run what is left of a sweep, and write its tables and report. `command`: the command that resumes it, for the report."""
    plan = SweepPlan(settings)
    if isinstance(plan.place, Path):
        _sweep(plan, command, display)
        return
    with working_copy(plan.place, display, "sweep", pull):
        _sweep(plan, command, display)


def _sweep(plan: SweepPlan, command: str, display: Display) -> None:
    settings, place = plan.settings, plan.folder.path
    path_keys.check_folder(place, "storage")
    path_keys.check_kind(place, "sweep", "name")
    if settings.overwrite and place.exists():
        _start(plan, _check(plan), display)  # neither a mistake nor a cluster that does not start may delete an existing sweep
        with only_one(place, display):
            emptied(place)
            shutil.rmtree(place)
    before = read_json(place / "sweep.json")
    if before is not None:
        changed = _changed(before["identity"], json.loads(json.dumps(plan.identity())))
        if changed:
            raise UserError(
                "name",
                f"{place} holds a sweep with other settings ({'; '.join(changed[:4])})",
                "add only values of the grid, trials or seeds to it, or pass another name=, or overwrite=true",
            )
    schedule = Schedule(settings, plan.cells, plan.trees(), plan.score, plan.folder)
    first = schedule.next()
    if first is None and before is not None:
        display.line(
            f"{plan.place}: finished before; add seeds, trials or cells, or start again with another name= or overwrite=true"
        )
        _conclude(plan, schedule, before, display)
        return
    if (place / path_keys.LOCK).exists():
        display.line(f"{plan.place}: resuming, {_ended(plan, schedule)}")
    with only_one(place, display), interrupts.keeping(lambda: f"{_ended(plan, schedule)}, {_UNDER_WAY}"):
        _run(plan, schedule, first, before, command, display)


def _ended(plan: SweepPlan, schedule: Schedule) -> str:
    """How much of a sweep is done."""
    ended = len(list(plan.folder.path.glob("trials/*/outcome.json")))
    return f"{ended} of {sum(schedule.planned.values())} trials have ended"


def _check(plan: SweepPlan) -> list[TrainSettings]:
    """An example trial of each cell. Raises `UserError` for anything that would fail in them, and if they do not fit."""
    from training.dry_run import check_towers
    from training.plan import pretrained_towers, tower_cache
    from training.resources import expected_cluster
    from training.weight_sources import check_sources
    from tuning.resources import booking_of, trials_at_a_time

    examples = [plan.build(plan.example(cell)) for cell in plan.cells]
    _ = plan.score  # raises if it is not a metric of the runs
    if plan.settings.scheduler.name == "hyperband" and not all(booking_of(e).inline for e in examples):
        raise UserError(
            "scheduler.name",
            "'hyperband' pauses trials, and these would start Ray Train again at each rung",
            "choose scheduler.name=asha",
        )
    if (size := expected_cluster()) is not None:
        trials_at_a_time(examples, size, plan.settings.concurrency)
    with plan.keys_of_runs():
        for example in examples:
            check_sources(example)
        towers: dict[str, Any] = {}  # by dataset, key and identity: cells often share them
        for example in examples:
            cache = tower_cache(plan.prepared[str(example.data.path)])
            for tower in pretrained_towers(example).values():
                towers[json.dumps([str(cache), tower.key, tower.identity])] = tower, cache
        for tower, cache in towers.values():
            check_towers([tower], cache)
    return examples


def _start(plan: SweepPlan, examples: Sequence[TrainSettings], display: Display) -> "tuple[Cluster, int]":
    """Start Ray, once: the cluster, and how many trials it runs at a time. Raises `UserError` if it has no room for one."""
    from pipelines.program import cluster  # Ray is imported once the sweep is known to be right
    from training.resources import check_driver, current_cluster
    from tuning.resources import trials_at_a_time

    cluster.start(display.verbose)
    for example in examples:
        check_driver(example.resources, "overrides.resources")
    size = current_cluster()
    return size, trials_at_a_time(examples, size, plan.settings.concurrency)


def _run(
    plan: SweepPlan, schedule: Schedule, first: Trial | None, before: Mapping[str, Any] | None, command: str, display: Display
) -> None:
    """Start Ray, run all trials and write the results."""
    settings, started = plan.settings, time.monotonic()
    examples = _check(plan)
    from tuning.resources import booking_of
    from tuning.searcher import loggers

    callbacks = loggers(settings, plan.folder.path)
    size, at_once = _start(plan, examples, display)
    words = f"{at_once} at a time, each {booking_of(examples[0]).words()}, of {size.cpus:g} CPUs and {size.gpus:g} GPUs"
    planned = schedule.planned
    for warning in plan.warnings:
        display.line(f"warning: {warning}")
    display.line(
        f"{settings.name}: {len(plan.cells)} cells; {planned['search']} trials to search, {planned['final']} with seeds; {words}"
    )
    _cache_features(plan, size, display)
    about = about_of(settings, plan.cells, plan.trees(), plan.score) | {
        "command": command,
        "identity": plan.identity(),
        "metrics": plan.shown,
        "planned": planned,
        "resources": words,
        "budget": _budget(settings, examples[0]),
        "datasets": plan.datasets,
        "sessions": 1 + (before["sessions"] if before else 0),
    }
    spent = before["seconds"] if before else 0.0

    def standing(state: str) -> dict[str, Any]:
        return about | {"state": state, "seconds": round(spent + time.monotonic() - started, 1)}

    write_about(plan.folder, standing("running") | baselines_and_sizes(plan.folder, []))
    plan.folder.keep()
    _tune(plan, schedule, first, at_once, callbacks, lambda: _write(plan, schedule, standing("running")), display)
    if not schedule.done:
        raise UserError(
            str(plan.place), "Ray Tune stopped before all trials ended", "the same command resumes, --verbose shows more"
        )
    _conclude(plan, schedule, standing("finished"), display)


def _tune(
    plan: SweepPlan, schedule: Schedule, first: Trial | None, at_once: int, callbacks: list[Any], write: Any, display: Display
) -> None:
    """Run the schedule's trials with Ray Tune. `write`: writes the current tables and report."""
    from ray import tune

    from pipelines.program.nodes import Bundle, Notices, shortage, waits_for
    from pipelines.program.ray_elastic import all_nodes, free_resources
    from training.placement import WaitNotice, give_back
    from tuning.early_stopping import SearchOnly, build_scheduler
    from tuning.fair_share import Share
    from tuning.progress import Board, Refresher
    from tuning.resources import booking_of
    from tuning.searcher import Follow, ScheduleSearcher
    from tuning.trainable import run_trial

    settings = plan.settings
    examples = [plan.build(plan.example(cell)) for cell in plan.cells]
    all_inline = all(booking_of(e).inline for e in examples)
    errors: dict[str, str] = {}
    notices: dict[str, WaitNotice] = defaultdict(WaitNotice)  # by trial
    wait, booking = Notices(), booking_of(examples[0])
    share = Share(Bundle({"CPU": booking.cpus + booking.data_cpus, "GPU": booking.gpus}, booking.labels))
    hyperband = settings.scheduler.name == "hyperband"
    limit = None if hyperband else at_once
    if hyperband:  # a bracket consists of the trials that Tune has: give it the whole search
        let_trials_wait(schedule.planned["search"])
    searcher = ScheduleSearcher(settings, schedule, plan.folder, plan.build, plan.score, limit, errors, first, share.owed)
    inner = build_scheduler(settings.scheduler, settings.mode, max(e.epochs for e in examples))
    scheduler = SearchOnly(inner, errors, share.owed)
    ended = [name for name in schedule.outcomes if schedule.seen[name].phase == "search"]
    scheduler.remind({name: [c | {"score": score_of(c, plan.score)} for c in plan.folder.curve(name)] for name in ended})

    def name(trial: Any) -> str:
        return trial.config["name"]

    with Board(settings.name, schedule, at_once, display) as board, Refresher(write, display) as refresher:

        def on_step(all_wait: bool) -> None:
            if (waited := wait.due(all_wait)) is not None:
                display.line(waits_for(shortage([booking.actor()], free_resources(None), all_nodes()), waited))
            board.update(list(searcher.out.values()), searcher.seconds)
            refresher.hear(len(schedule.outcomes))
            for trial in [] if all_inline else searcher.out.values():
                if notice := notices[trial.name].due(plan.folder.place(trial.name)):
                    display.line(f"{trial.name}: {notice}")

        def on_death(trial: str) -> None:
            give_back(plan.folder.place(trial))
            display.line(f"{trial}: its process died; resuming from its newest checkpoint")

        def placed(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            labels = {"bundle_label_selector": [config["labels"]]} if config["labels"] else {}
            return tune.PlacementGroupFactory([config["bundle"]], **labels)

        tuner = tune.Tuner(
            tune.with_resources(run_trial, placed),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=sum(schedule.planned.values()),
                # The thread of a trial that waits for a Ray Train run cannot be stopped.
                reuse_actors=all_inline,
                trial_name_creator=name,
                trial_dirname_creator=name,
            ),
            run_config=tune.RunConfig(
                **ray_options(storage.join(plan.place, "tune", f"session-{time.strftime('%Y%m%d-%H%M%S')}")),
                verbose=0,
                callbacks=[Follow(on_step, on_death, keep=bool(settings.loggers)), *callbacks],
                failure_config=tune.FailureConfig(max_failures=settings.retries),
            ),
        )
        with interrupts.asking(searcher.stop):
            tuner.fit()


def _cache_features(plan: SweepPlan, size: Any, display: Display) -> None:
    """Compute features of locked towers, once for all trials, on the whole cluster."""
    from pipelines.features.feature_store import Pool
    from training.plan import plan_of

    for config in plan.groups():
        gpu = config.resources.use_gpu
        labels = config.resources.worker_labels if gpu else config.resources.data_labels
        plan_of(config, Pool(max(1, int(size.gpus if gpu else size.cpus)), gpu, labels=labels), display)


def _write(plan: SweepPlan, schedule: Schedule, about: Mapping[str, Any]) -> str:
    """Write all tables and the current report. Returns its first sentence."""
    from tuning.reporting import write_report  # imports scipy

    trials = list(schedule.seen.values())
    for trial in trials:
        if trial.name not in schedule.outcomes:
            plan.folder.hear(trial.name)
    write_tables(
        plan.folder, plan.settings, plan.cells, trials, {t.name: plan.overrides(t) for t in trials}, plan.score, plan.test_split
    )
    write_about(plan.folder, dict(about) | baselines_and_sizes(plan.folder, trials))
    answer = write_report(plan.folder.path)
    plan.folder.keep()
    return answer


def _conclude(plan: SweepPlan, schedule: Schedule, about: Mapping[str, Any], display: Display) -> None:
    """Write the final tables and report, and print the result. Raises `UserError` if no trial finished."""
    from tuning.reporting.sweep_data import read as read_sweep

    plan.folder.clear()
    answer = _write(plan, schedule, dict(about) | {"state": "finished"})
    place = plan.folder.path
    summary = read_sweep(place).summary
    scores = summary[summary["metric"] == "score"].sort_values("rank")
    rows = [
        [
            str(row["cell"]),
            *(_figure(row[key], form) for key, form in (("rank", ".0f"), ("n", ".0f"), ("mean", ".1f"), ("sd", ".1f"))),
        ]
        for _, row in scores.iterrows()
    ]
    display.table(f"{plan.settings.name}: {about['score']['title']}", ["cell", "rank", "n", "mean", "sd"], rows)
    display.line(answer)
    failed = {name: o.reason for name, o in schedule.outcomes.items() if o.status == "failed"}
    for name, reason in list(failed.items())[:5]:
        display.line(f"failed: {name}: {reason}")
    if len(failed) > 5:
        display.line(f"failed: {len(failed) - 5} more, see {storage.join(plan.place, 'trials.csv')}")
    display.line(f"report: {storage.join(plan.place, 'report.html')}")
    if failed and not any(o.status == "finished" for o in schedule.outcomes.values()):
        raise UserError(
            str(place),
            f"no trial finished; the first failed with: {next(iter(failed.values()))}",
            f"mend the cause and pass another name= or overwrite=true; {place / 'trials.csv'} has all reasons",
        )


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _budget(settings: SweepSettings, example: TrainSettings) -> str:
    if settings.budget.minutes is not None:
        return f"{settings.budget.minutes:g} minutes a trial"
    if settings.budget.samples is not None and "data.fraction" in settings.grid:  # epochs differ between cells
        return f"{settings.budget.samples:,} pairs seen, rounded up to whole epochs"
    return f"{example.epochs} epochs"


def _changed(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Changes that are not allowed. Cells may be added or removed, but not keep their name with another value."""
    both = old["cells"].keys() & new["cells"].keys()
    old, new = ({**tree, "cells": {cell: tree["cells"][cell] for cell in both}} for tree in (old, new))
    return difference(old, new)
