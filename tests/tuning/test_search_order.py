"""The schedule: one set of trials whatever ends first and however often the driver dies, and the best points by validation."""

import contextlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.training.test_report import prepare_by_hand
from tests.tuning.trainer import Judge, Run, failed, finished, listed, rough, run, schedule_of, settings, smooth
from tuning import sweep as driver
from tuning.config import SweepSettings
from tuning.plan import SweepPlan
from tuning.results import write_about
from tuning.search_order import Schedule
from tuning.trials import Outcome, Trial

CELLS = ["clip, adamw", "clip, sgd", "vicreg, adamw", "vicreg, sgd"]
SWEEPS: dict[str, dict[str, Any]] = {
    "tpe": {},
    "tpe-parallel": {"sampler": {"name": "tpe", "startup": 2, "parallel": 2}},
    "tpe-cost": {"sampler": {"name": "tpe", "startup": 2, "cost": "seconds"}},
    "random": {"sampler": {"name": "random"}, "trials": 3},
    "grid": {
        "space": {"optimizer.lr": {"low": 1e-3, "high": 1, "log": True, "points": 4}},
        "sampler": {"name": "grid"},
        "trials": None,
    },
    "seeds": {"space": {}, "trials": None},
    "min": {"mode": "min"},
}


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], Path]:
    """A function that makes another empty folder."""
    count = iter(range(10**6))

    def make() -> Path:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return folder

    return make


def best_by_hand(ran: Run, sweep: SweepSettings) -> dict[str, int]:
    """Each cell's best point, from what was trained: another way to the same answer."""
    sign = 1 if sweep.mode == "max" else -1
    found: dict[str, tuple[float, int]] = {}
    for name, about in ran.trials().items():
        outcome = ran.ended[name]
        if about["phase"] == "search" and outcome.status == "finished":
            value = sign * (outcome.metrics["m/a"] + outcome.metrics["m/b"])
            found[about["cell"]] = max(found.get(about["cell"], (-math.inf, 0)), (value, -about["point"]))
    return {cell: -point for cell, (_, point) in found.items()}


# One set of trials


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("judge", [smooth, rough], ids=["smooth", "rough"])
def test_whatever_ends_first_the_same_trials_are_trained(fresh: Callable[[], Path], name: str, judge: Judge) -> None:
    sweep = settings(**SWEEPS[name])
    alone, schedule = run(sweep, fresh(), judge)
    assert schedule.done and len(alone.handed) == len(alone.ended)
    assert len(alone.ended) >= (8 if name == "seeds" else 20)
    for order, at_once in enumerate((2, 3, 4, 50)):
        other, schedule = run(sweep, fresh(), judge, at_once, order)
        assert schedule.done and other.trials() == alone.trials()


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("judge", [smooth, rough], ids=["smooth", "rough"])
def test_killed_at_any_moment_it_resumes_to_the_same_trials(fresh: Callable[[], Path], name: str, judge: Judge) -> None:
    """No trial that has ended is trained again (`Run.session` asserts it), and none is left out."""
    sweep = settings(**SWEEPS[name])
    whole, _ = run(sweep, fresh(), judge)
    sessions = 0
    for order in range(4):
        draw, folder = random.Random(order), fresh()
        ran, done = Run(folder, judge), False
        while not done:
            ends = draw.choice([0, 1, 1, 2, 5])
            done = ran.session(schedule_of(sweep, folder), draw.randrange(1, 5), draw.randrange(100), ends).done
            sessions += 1
        assert ran.trials() == whole.trials()
        # Who comes back has seen all of them.
        again = schedule_of(sweep, folder)
        assert again.next() is None and again.done and again.outcomes == ran.ended
        assert {name: vars(trial) for name, trial in again.seen.items()} == whole.trials()
    assert sessions > 12


def test_a_trial_that_was_begun_is_handed_out_again_with_what_was_recorded(fresh: Callable[[], Path]) -> None:
    """It resumes from its checkpoint, so its parameters must be those it began with, whatever a sampler would say today."""
    folder, sweep = fresh(), settings()
    ran = Run(folder, smooth)
    ran.session(schedule_of(sweep, folder), 2, ends=0)
    path = folder / "trials" / "clip-adamw-p0" / "trial.json"
    noted = json.loads(path.read_text())
    noted["params"]["optimizer.lr"], noted["asked"]["optimizer.lr"] = 0.0123, 0.01234567
    path.write_text(json.dumps(noted))
    again = schedule_of(sweep, folder).next()
    assert again is not None and again.name == "clip-adamw-p0"
    assert again.params == ran.handed[0].params | {"optimizer.lr": 0.0123}
    assert again.asked == ran.handed[0].asked | {"optimizer.lr": 0.01234567}


def test_the_sampler_is_told_of_costs_and_of_curves(fresh: Callable[[], Path]) -> None:
    """Trials that differ in these alone lead to other points, where a sampler asks for them."""

    def points(judge: Judge, **sampler: Any) -> list[dict[str, Any]]:
        sweep = settings(grid={}, sampler={"name": "tpe", "startup": 2} | sampler, trials=8)
        return [trial.params for trial in run(sweep, fresh(), judge)[0].handed if trial.phase == "search"]

    def quick(trial: Trial) -> Outcome:
        return finished(trial.point, seconds=1.0 + trial.point)

    def slow(trial: Trial) -> Outcome:
        return finished(trial.point, seconds=10.0 - trial.point)

    assert points(quick, cost="seconds") != points(slow, cost="seconds")
    assert points(quick) == points(slow)

    def stopped(trial: Trial) -> Outcome:
        return STOPPED if trial.point == 1 else finished(trial.point)

    def broken(trial: Trial) -> Outcome:
        return FAILED if trial.point == 1 else finished(trial.point)

    assert points(stopped) != points(broken)


# What is planned


def test_cells_take_turns_and_the_seeds_of_a_cell_come_first(fresh: Callable[[], Path]) -> None:
    ran, _ = run(listed([1, 2], grid={"a": ["x", "y", "z"]}, seeds=[5, 7]), fresh(), lambda t: finished(t.params["k"]))
    assert ran.names() == [
        *("x-p0", "y-p0", "z-p0", "x-p1"),
        *("x-p1-seed5", "x-p1-seed7", "y-p1"),
        *("y-p1-seed5", "y-p1-seed7", "z-p1"),
        *("z-p1-seed5", "z-p1-seed7"),
    ]


def test_a_cell_that_waits_does_not_hold_up_the_others(fresh: Callable[[], Path]) -> None:
    """Two points are open from the start, each later one waits: with two cells, five at once find four to do."""
    schedule = schedule_of(settings(grid={"objective.name": ["clip", "vicreg"]}, trials=4), fresh())
    names = [trial.name for _ in range(4) if (trial := schedule.next()) is not None]
    assert names == ["clip-p0", "vicreg-p0", "clip-p1", "vicreg-p1"]
    assert schedule.next() is None and not schedule.done
    schedule.ended("vicreg-p0", finished(1))
    assert schedule.next() is None
    schedule.ended("vicreg-p1", finished(1))
    trial = schedule.next()
    assert trial is not None and trial.name == "vicreg-p2"
    assert schedule.next() is None


def test_the_seeds_runs_are_of_the_best_points_parameters(fresh: Callable[[], Path]) -> None:
    for changes in SWEEPS.values():
        sweep = settings(**changes, search_seed=9)
        ran, schedule = run(sweep, fresh(), rough if sweep.space else smooth)
        searched = {(t.cell, t.point): t for t in ran.handed if t.phase == "search"}
        finals = [t for t in ran.handed if t.phase == "final"]
        best = best_by_hand(ran, sweep) if sweep.space else dict.fromkeys(CELLS, 0)
        assert set(best) == set(CELLS)
        assert sorted((t.cell, t.point, t.seed) for t in finals) == sorted((c, p, s) for c, p in best.items() for s in (0, 1))
        assert all(trial.seed == 9 for trial in searched.values())
        if sweep.space:
            assert all(final.params == searched[final.cell, final.point].params for final in finals)
        assert schedule.planned["final"] == 8


def test_without_a_space_there_are_seeds_only(fresh: Callable[[], Path]) -> None:
    sweep = settings(grid={}, space={}, trials=None, seeds=[3, 1])
    schedule = schedule_of(sweep, fresh())
    assert schedule.planned == {"search": 0, "final": 2} and not schedule.done
    ran, schedule = run(sweep, fresh())
    assert [(t.name, t.cell, t.phase, t.point, t.seed, t.params) for t in ran.handed] == [
        ("all-p0-seed3", "all", "final", 0, 3, {}),
        ("all-p0-seed1", "all", "final", 0, 1, {}),
    ]
    assert schedule.counts() == {"all": (0, 0, 2, 2)} and schedule.best_scores() == {}


def test_planned_counts_are_of_all_cells(fresh: Callable[[], Path]) -> None:
    assert schedule_of(settings(), fresh()).planned == {"search": 20, "final": 8}
    conditional = {
        "k": {"choices": [1, 2, 3]},
        "optimizer.momentum": {"low": 0, "high": 0.9, "points": 2, "when": {"optimizer.name": "sgd"}},
    }
    sweep = settings(space=conditional, sampler={"name": "grid"}, trials=None, seeds=[0, 1, 2])
    assert schedule_of(sweep, fresh()).planned == {"search": 2 * (3 + 6), "final": 12}


# The best point


def choose(fresh: Callable[[], Path], outcomes: list[Outcome], **changes: Any) -> tuple[list[int], Schedule]:
    """Points of the seeds' runs in a cell whose search trials end like this; the seeds' runs always score better, or worse."""

    def judge(trial: Trial) -> Outcome:
        return outcomes[trial.params["k"]] if trial.phase == "search" else finished(-1e3 if trial.point else 1e3)

    sweep = listed(list(range(len(outcomes))), **changes)
    found = [run(sweep, fresh(), judge, at_once, order=at_once) for at_once in (1, 4)]
    points = [sorted(t.point for t in ran.handed if t.phase == "final") for ran, _ in found]
    assert points[0] == points[1] and all(schedule.done for _, schedule in found)
    return points[0], found[0][1]


STOPPED = Outcome("stopped", "by asha", metrics={"m/a": 99.0, "m/b": 99.0})
FAILED = failed("lost")


@pytest.mark.parametrize(
    ("outcomes", "mode", "point"),
    [
        ([finished(1), finished(3), finished(2)], "max", 1),
        ([finished(1), finished(3), finished(2)], "min", 0),
        # Equals: the lowest point, so that it does not matter which came first.
        ([finished(1), finished(3), finished(3), finished(3)], "max", 1),
        ([finished(2), finished(3), finished(2)], "min", 0),
        # Others may have scored better before they were stopped or failed; they are no results.
        ([STOPPED, finished(1), FAILED], "max", 1),
        # A metric that is missing, or no number, makes no best point.
        ([Outcome("finished", metrics={"m/a": 90.0}), finished(1)], "max", 1),
        ([Outcome("finished", metrics={"m/a": math.nan, "m/b": 1}), finished(1)], "min", 1),
        ([Outcome("finished", metrics={"m/a": math.inf, "m/b": 1}), finished(1)], "max", 1),
        ([finished(0), finished(-5)], "max", 0),
    ],
)
def test_the_best_point_is_the_finished_one_with_the_best_validation_score(
    fresh: Callable[[], Path], outcomes: list[Outcome], mode: str, point: int
) -> None:
    points, schedule = choose(fresh, outcomes, mode=mode)
    assert points == [point, point]
    assert schedule.best_scores() == {"all": (outcomes[point].metrics["m/a"] + outcomes[point].metrics["m/b"]) / 2}
    # What the test split says comes too late to choose by.
    assert schedule.test_scores() == {"all": [-1e3 if point else 1e3] * 2}


@pytest.mark.parametrize("outcomes", [[FAILED, FAILED], [STOPPED], [FAILED, STOPPED, Outcome("finished")]])
def test_a_cell_without_a_result_has_no_seeds_and_the_sweep_ends(fresh: Callable[[], Path], outcomes: list[Outcome]) -> None:
    points, schedule = choose(fresh, outcomes)
    assert points == [] and schedule.best_scores() == schedule.test_scores() == {}
    assert schedule.counts() == {"all": (len(outcomes), len(outcomes), 0, 2)}
    assert schedule.planned == {"search": len(outcomes), "final": 2}


def test_counts_and_scores_on_the_way(fresh: Callable[[], Path]) -> None:
    sweep = listed([1, 2], grid={"a": ["x", "y"]}, seeds=[0, 1, 2])
    schedule = schedule_of(sweep, fresh())
    assert schedule.counts() == {"x": (0, 2, 0, 3), "y": (0, 2, 0, 3)}
    trials = [schedule.next() for _ in range(4)]
    assert [trial.name for trial in trials if trial] == ["x-p0", "y-p0", "x-p1", "y-p1"] and schedule.next() is None
    schedule.ended("x-p1", finished(4))
    schedule.ended("y-p0", FAILED)
    assert schedule.best_scores() == {"x": 4} and schedule.test_scores() == {}
    assert schedule.counts() == {"x": (1, 2, 0, 3), "y": (1, 2, 0, 3)}
    schedule.ended("x-p0", finished(6))
    assert schedule.best_scores() == {"x": 6}
    finals = [schedule.next() for _ in range(3)]
    assert [trial.name for trial in finals if trial] == ["x-p0-seed0", "x-p0-seed1", "x-p0-seed2"]
    schedule.ended("x-p0-seed0", finished(3))
    schedule.ended("x-p0-seed1", FAILED)
    schedule.ended("x-p0-seed2", finished(7))
    assert schedule.test_scores() == {"x": [3, 7]} and schedule.counts()["x"] == (2, 2, 3, 3)
    assert schedule.best_scores() == {"x": 6} and not schedule.done
    assert schedule.pick({"p": 1.0, "q": 2.0, "r": 2.0}) == "q"
    schedule.ended("y-p1", FAILED)
    assert schedule.done and schedule.next() is None


# Extension


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"grid": {"objective.name": ["clip", "vicreg"], "optimizer.name": ["adamw"]}}, {}),
        ({"grid": {"objective.name": ["vicreg"], "optimizer.name": ["sgd", "adamw"]}}, {}),
        ({"trials": 3}, {}),
        ({"seeds": [1]}, {}),
        ({"seeds": [1], "trials": 2, "grid": {"objective.name": ["clip"], "optimizer.name": ["adamw", "sgd"]}}, {}),
        ({"seeds": [0, 1]}, {"seeds": [0, 1, 2, 3]}),
    ],
    ids=["optimizers", "cells", "trials", "seeds", "all", "more-seeds"],
)
@pytest.mark.parametrize("judge", [smooth, rough], ids=["smooth", "rough"])
def test_an_extended_sweep_trains_what_is_new_and_ends_as_if_it_had_been_that_large(
    fresh: Callable[[], Path], first: dict, then: dict, judge: Judge
) -> None:
    folder = fresh()
    small, large = settings(**first), settings(**then)
    before, schedule = run(small, folder, judge, 3)
    assert schedule.done
    ran = Run(folder, judge, ended=dict(before.ended))  # none of these may be trained again
    schedule = ran.session(schedule_of(large, folder), 3, order=5)
    whole, reference = run(large, fresh(), judge)
    assert schedule.done and ran.handed
    assert {name: vars(trial) for name, trial in schedule.seen.items()} == whole.trials()
    assert schedule.outcomes == whole.ended
    assert (schedule.counts(), schedule.best_scores()) == (reference.counts(), reference.best_scores())
    assert {cell: sorted(v) for cell, v in schedule.test_scores().items()} == {
        cell: sorted(v) for cell, v in reference.test_scores().items()
    }


def test_a_better_point_of_an_extended_search_gets_seeds_of_its_own(fresh: Callable[[], Path]) -> None:
    """The seeds' runs of the point that was best before stay on disk, and count no more."""

    def sweep(trials: int) -> SweepSettings:
        return settings(grid={}, space={"k": {"low": 0, "high": 1}}, sampler={"name": "random"}, trials=trials)

    def judge(trial: Trial) -> Outcome:
        return finished(trial.point)

    folder = fresh()
    run(sweep(2), folder, judge)
    ran, schedule = run(sweep(3), folder, judge)
    assert ran.names() == ["all-p2", "all-p2-seed0", "all-p2-seed1"]
    assert schedule.test_scores() == {"all": [2, 2]} and schedule.counts() == {"all": (3, 3, 2, 2)}
    assert "all-p1-seed0" not in schedule.seen and (folder / "trials" / "all-p1-seed0" / "outcome.json").exists()


def test_a_value_that_changes_under_its_name_does_not_keep_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell is called by the name in its value alone. Refused or trained anew: but no result may stand beside another value."""
    prepared = prepare_by_hand(tmp_path / "data", [["a red square"], ["a blue square"]])
    base = tmp_path / "base.yaml"
    base.write_text(
        f"name: x\ndata: {{path: {prepared.path}}}\nimage_tower: {{name: conv}}\ntext_tower: {{name: bag}}\n"
        "epochs: 1\nglobal_batch_size: 2\n"
    )

    def sweep_of(temperature: float) -> SweepSettings:
        clip = {"name": "clip", "temperature": temperature}
        tree = {"name": "s", "storage": str(tmp_path), "base": str(base), "grid": {"objective": [clip]}}
        return validate(SweepSettings, tree, "sweep.yaml")

    ran: list[Trial | None] = []
    monkeypatch.setattr(driver, "_run", lambda plan, schedule, first, *rest: ran.append(first))
    monkeypatch.setattr(driver, "_conclude", lambda *rest: None)
    quiet = Display(quiet=True)
    driver.sweep(sweep_of(0.07), quiet, "")
    assert [trial.name for trial in ran if trial] == ["clip-p0-seed0"]
    folder = SweepPlan(sweep_of(0.07)).folder
    write_about(folder, {"identity": SweepPlan(sweep_of(0.07)).identity()})
    folder.begin(ran[0])
    folder.end("clip-p0-seed0", finished(1))
    driver.sweep(sweep_of(0.07), quiet, "")
    assert len(ran) == 1  # the same again has nothing left to run
    with contextlib.suppress(UserError):
        driver.sweep(sweep_of(0.02), quiet, "")
        assert len(ran) == 2, "the result at 0.07 is taken for one at 0.02"
