"""Points of a search: a function of sweep, seed, cell, number and the results they depend on; and samplers that learn."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest

from pipelines.program.settings import validate
from tests.refusals import refused
from tuning.config import Dimension, SweepSettings
from tuning.optuna_points import Points, Result, corners

RATE = {"low": 1e-5, "high": 1, "log": True}
HEAT = {"low": 0.005, "high": 0.5, "log": True}
SPACE: dict[str, Any] = {
    "lr": RATE,
    "heat": HEAT,
    "width": {"low": 1, "high": 64, "integer": True, "log": True},
    "head": {"choices": ["linear", "mlp"]},
}
SAMPLERS: list[dict[str, Any]] = [
    {"name": "tpe", "startup": 3},
    {"name": "tpe", "startup": 3, "parallel": 3},
    {"name": "tpe", "startup": 2, "cost": "seconds"},
    {"name": "cmaes", "startup": 3},
    {"name": "cmaes", "startup": 2, "parallel": 2},
    {"name": "random"},
    {"name": "grid"},
]
Point = dict[str, Any]
Answer = tuple[Point, Point]  # the point, and what is to be recorded


def settings(space: Mapping[str, Any], **changes: Any) -> SweepSettings:
    return validate(SweepSettings, {"name": "s", "base": "b.yaml", "space": space} | changes, "sweep.yaml")


def sampled(sampler: Mapping[str, Any], trials: int | None = None, **changes: Any) -> SweepSettings:
    """The space above, under any of the samplers. CMA-ES learns at the end of a generation, so it needs more trials."""
    if sampler["name"] != "grid":
        trials = trials or (24 if sampler["name"] == "cmaes" else 10)
        return settings(SPACE, sampler=sampler, trials=trials, **changes)
    return settings({k: v if "choices" in v else v | {"points": 2} for k, v in SPACE.items()}, sampler=sampler, **changes)


def quality(point: Point) -> float:
    """Smooth, with its top at a learning rate of 2e-3 and a temperature of 0.06; other keys do not matter."""
    return -((math.log10(point["lr"]) + 2.7) ** 2) - 4 * (math.log10(point.get("heat", 0.06)) + 1.2) ** 2


def judge(number: int, point: Point) -> Result:
    """Every kind of end: by the point alone, as training would be."""
    if point["lr"] > 0.2:
        return Result(None, diverged=True)
    if number % 7 == 5:
        return Result(None)
    if number % 7 == 3:
        return Result(None, [(1.0, quality(point) - 1), (2.0, quality(point))])
    return Result((quality(point), float(point.get("width", 1))))


def explore(
    points: Points,
    judge: Callable[[int, Point], Result] = judge,
    at_once: int = 1,
    order: int = 0,
    recorded: Sequence[Point] = (),
) -> list[Answer]:
    """All points, with up to `at_once` under way, which end in an order drawn from `order`."""
    draw = random.Random(order)
    asked: list[Answer] = []
    out: list[int] = []
    while len(asked) < points.total or out:
        if len(out) < at_once and points.ready():
            out.append(len(asked))
            asked.append(points.ask(recorded[len(asked)] if len(asked) < len(recorded) else None))
        else:
            number = out.pop(draw.randrange(len(out)))
            points.tell(number, judge(number, asked[number][0]))
    return asked


def params(answers: Sequence[Answer]) -> list[Point]:
    return [point for point, _ in answers]


# The same points, whatever happens


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_points_do_not_depend_on_the_order_in_which_trials_end(sampler: dict) -> None:
    sweep = sampled(sampler)
    alone = explore(Points(sweep, "c", {}))
    assert len({json.dumps(point) for point in params(alone)}) == len(alone)
    for order, at_once in enumerate((2, 3, 4, 4, 10)):
        assert explore(Points(sweep, "c", {}), at_once=at_once, order=order) == alone


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_a_search_that_goes_on_from_what_was_recorded_tries_the_same_points(sampler: dict) -> None:
    """The record comes back from a JSON file, with any number of the points in it."""
    sweep = sampled(sampler)
    whole = explore(Points(sweep, "c", {}))
    recorded = json.loads(json.dumps([exact for _, exact in whole]))
    for count in (1, 4, 7, len(whole)):
        assert explore(Points(sweep, "c", {}), at_once=2, order=count, recorded=recorded[:count]) == whole


def test_what_was_recorded_is_what_was_tried() -> None:
    """Were it only computed again, another version of the sampler would put results beside points that they are not of."""
    sweep = sampled({"name": "tpe", "startup": 3})
    whole = explore(Points(sweep, "c", {}))
    other = dict(whole[1][1]) | {"lr": 0.0123456}
    again = explore(Points(sweep, "c", {}), recorded=[whole[0][1], other])
    assert again[0] == whole[0] and again[1][0]["lr"] == 0.01235 and again[1][1] == other


@pytest.mark.parametrize("sampler", SAMPLERS[:-1], ids=str)
def test_cells_and_search_seeds_have_points_of_their_own(sampler: dict) -> None:
    def first(cell: str, **changes: Any) -> list[Point]:
        return params(explore(Points(sampled(sampler, 4, **changes), cell, {})))

    ours = first("c")
    assert first("c", name="another", storage="elsewhere", concurrency=3, seeds=[4, 5]) == ours
    for others in (first("d"), first("c", search_seed=1)):
        assert all(mine["lr"] != theirs["lr"] for mine, theirs in zip(ours, others, strict=True))


def test_more_trials_leave_the_first_ones_as_they_are() -> None:
    for sampler in SAMPLERS[:-1]:
        few, many = (explore(Points(sampled(sampler, trials), "c", {})) for trials in (5, 9))
        assert many[:5] == few


# What a point waits for


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
@pytest.mark.parametrize(("startup", "parallel"), [(1, 1), (3, 1), (3, 2), (2, 4), (5, 3)])
def test_a_point_waits_for_exactly_the_results_that_it_is_chosen_from(name: str, startup: int, parallel: int) -> None:
    """After the start, point k is chosen from the results of 0 to k - parallel: told all but one of them, it is not ready."""
    total = 7
    sweep = sampled({"name": name, "startup": startup, "parallel": parallel}, total)

    def needed(number: int) -> set[int]:
        return set(range(number - parallel + 1)) if number >= startup else set()

    for number in range(total):
        before = needed(number - 1)
        free = sorted(set(range(number)) - before)
        for more in (set(few) for size in range(len(free) + 1) for few in combinations(free, size)):
            points, told = Points(sweep, "c", {}), set()
            for k in range(number):
                for j in needed(k) - told:
                    points.tell(j, Result((1.0, 0.0)))
                told |= needed(k)
                points.ask()
            for j in more:
                points.tell(j, Result((1.0, 0.0)))
            assert points.ready() == (needed(number) <= before | more), (number, more)


@pytest.mark.parametrize("sampler", [{"name": "random"}, {"name": "grid"}], ids=str)
def test_points_without_a_past_wait_for_nothing(sampler: dict) -> None:
    points = Points(sampled(sampler, 6), "c", {})
    for _ in range(points.total):
        assert points.ready()
        points.ask()
    assert not points.ready()


@pytest.mark.parametrize("parallel", [1, 2, 3])
def test_a_result_that_a_point_must_not_see_does_not_change_it(parallel: int) -> None:
    """Point 6 at parallel=2 sees 0 to 4; that 5 has ended already, and how well, is chance. With 4 it would be another."""
    number = 6
    sweep = sampled({"name": "tpe", "startup": 3, "parallel": parallel})

    def seventh(changed: int | None, score: float = 0.0) -> Point:
        points, found = Points(sweep, "c", {}), []
        for k in range(number):
            found.append(points.ask()[0])
            if changed == k:
                points.tell(k, Result((score, 0.0)))
            elif k <= number - parallel:
                points.tell(k, Result((quality(found[k]), 0.0)))
        return points.ask()[0]

    usual = seventh(None)
    for hidden in range(number - parallel + 1, number):
        assert seventh(hidden, 1e6) == seventh(hidden, -1e6) == usual
    assert len({str(seventh(number - parallel, score)) for score in (1e6, -1e6)} | {str(usual)}) > 1


# Samplers learn


def smooth(sampler: Mapping[str, Any], seed: int, trials: int = 20) -> list[float]:
    sweep = settings({"lr": RATE, "heat": HEAT}, sampler=sampler, trials=trials, search_seed=seed)
    asked = explore(Points(sweep, "c", {}), lambda number, point: Result((quality(point), 0.0)))
    return [quality(point) for point in params(asked)]


@pytest.mark.parametrize("name", ["tpe", "cmaes"])
def test_a_sampler_that_learns_beats_random_draws(name: str) -> None:
    """Over ten seeds, at twenty points: better best ones, and a better second ten, than draws without a memory."""
    learned, drawn = ([smooth({"name": which}, seed) for seed in range(10)] for which in (name, "random"))
    assert sum(map(max, learned)) > sum(map(max, drawn))
    late = [sum(sum(scores[10:]) for scores in runs) / 100 for runs in (learned, drawn)]
    assert late[0] > 0.8 * late[1]  # both below 0


def test_min_is_max_turned_over() -> None:
    for sampler in ({"name": "tpe", "startup": 3}, {"name": "cmaes", "startup": 3}):
        up = explore(Points(sampled(sampler), "c", {}), lambda number, point: Result((quality(point), 0.0)))
        down = explore(Points(sampled(sampler, mode="min"), "c", {}), lambda number, point: Result((-quality(point), 0.0)))
        wrong = explore(Points(sampled(sampler, mode="min"), "c", {}), lambda number, point: Result((quality(point), 0.0)))
        assert up == down and up != wrong


def hits(end: Callable[[], Result], seed: int) -> int:
    """Of 15 points after the start, how many lie above 1e-2, where every trial ends as `end` says."""
    sweep = settings({"lr": RATE}, trials=20, search_seed=seed)
    asked = explore(Points(sweep, "c", {}), lambda number, point: end() if point["lr"] > 1e-2 else Result((1.0, 0.0)))
    return sum(point["lr"] > 1e-2 for point in params(asked)[5:])


def test_diverged_and_stopped_points_push_away_and_failed_ones_do_not() -> None:
    """Two fifths of the range are bad, so that draws without a memory would hit them 60 times of 150."""
    seeds = range(10)
    assert sum(hits(lambda: Result(None, diverged=True), seed) for seed in seeds) < 40
    assert sum(hits(lambda: Result(None, [(2.0, 50.0)]), seed) for seed in seeds) < 40
    assert sum(hits(lambda: Result(None), seed) for seed in seeds) > 60


def test_a_failed_point_says_nothing_at_all() -> None:
    """Wherever it lay: its machine failed it, not its values. A diverged or stopped one does say where not to look."""

    def later(lr: float, end: Result) -> list[Point]:
        sweep = sampled({"name": "tpe", "startup": 4})
        first = [exact for _, exact in explore(Points(sweep, "c", {}), judge=lambda n, p: Result((quality(p), 0.0)))]
        recorded = [*first[:2], first[2] | {"lr": lr}]
        ends = {2: end}
        asked = explore(Points(sweep, "c", {}), lambda n, p: ends.get(n, Result((quality(p), 0.0))), recorded=recorded)
        return params(asked)[4:]

    assert later(1e-4, Result(None)) == later(1e-2, Result(None))
    for end in (Result(None, diverged=True), Result(None, [(1.0, 0.0)])):
        assert later(1e-4, end) != later(1e-2, end)
        assert later(1e-2, end) != later(1e-2, Result(None))


def test_a_stopped_point_stays_behind_all_that_came_to_their_end() -> None:
    """Its last score may be higher than theirs: it was of fewer epochs, and lost against others at that time."""

    def points(end: Result) -> list[Point]:
        sweep = sampled({"name": "tpe", "startup": 4})
        return params(explore(Points(sweep, "c", {}), lambda n, p: end if n == 1 else Result((quality(p), 0.0))))

    praised, blamed = points(Result(None, [(1.0, 1e6)])), points(Result(None, [(1.0, -1e6)]))
    assert praised == blamed == points(Result(None, diverged=True))


def test_a_cost_is_weighed_against_the_score() -> None:
    """Score and cost grow with the width: for the score alone wide ones are best, against cost the narrow ones are too."""
    space = {"width": {"low": 1, "high": 1000, "integer": True}}

    def widths(cost: str | None, price: float, seed: int = 0) -> list[int]:
        sampler = {"name": "tpe", "cost": cost}
        sweep = settings(space, sampler=sampler, trials=25, search_seed=seed)
        asked = explore(Points(sweep, "c", {}), lambda n, p: Result((float(p["width"]), price * p["width"])))
        return [point["width"] for point in params(asked)[10:]]

    assert widths(None, 1.0) == widths(None, -1.0)
    assert widths("seconds", 1.0) != widths("seconds", -1.0)
    narrow = [sum(sum(w < 500 for w in widths(cost, 1.0, seed)) for seed in range(5)) for cost in (None, "seconds")]
    assert narrow[0] < 15 < 25 < narrow[1]  # of 75


def test_trials_that_did_not_end_well_can_have_a_cost_too() -> None:
    sweep = sampled({"name": "tpe", "startup": 2, "cost": "peak_memory_gib"}, 8)
    ends = [Result(None, diverged=True), Result(None, [(1.0, 3.0)]), Result(None)]
    asked = explore(Points(sweep, "c", {}), lambda n, p: ends[n] if n < 3 else Result((quality(p), 1.0)))
    assert len(asked) == 8


# Ranges, choices, conditions


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s["name"] != "grid"], ids=str)
def test_points_keep_to_their_ranges_and_choices(sampler: dict) -> None:
    asked = params(explore(Points(sampled(sampler, 20), "c", {})))
    for point in asked:
        assert list(point) == ["lr", "heat", "width", "head"]
        assert 1e-5 <= point["lr"] <= 1 and 0.005 <= point["heat"] <= 0.5 and point["head"] in ("linear", "mlp")
        assert type(point["width"]) is int and 1 <= point["width"] <= 64
        assert point["lr"] == float(f"{point['lr']:.4g}")
    assert {point["head"] for point in asked} == {"linear", "mlp"}


def test_a_logarithmic_range_is_even_over_orders_of_magnitude() -> None:
    """Of 200 draws from [1e-4, 1] half lie below 1e-2; on a plain scale one in a hundred would."""
    for log, share in ((True, 100), (False, 2)):
        sweep = settings({"lr": {"low": 1e-4, "high": 1, "log": log}}, sampler={"name": "random"}, trials=200)
        assert sum(p["lr"] < 1e-2 for p in params(explore(Points(sweep, "c", {})))) == pytest.approx(share, abs=25 if log else 4)


def test_choices_may_be_any_values() -> None:
    choices = [None, [0.9, 0.98], {"name": "mlp", "hidden": 8}, "x", 3]
    sweep = settings({"k": {"choices": choices}}, sampler={"name": "random"}, trials=60)
    found = [point["k"] for point in params(explore(Points(sweep, "c", {}), lambda n, p: Result((0.0, 0.0))))]
    assert all(choice in found for choice in choices) and all(value in choices for value in found)


CONDITIONAL: dict[str, Any] = {
    "optimizer.lr": [
        RATE | {"when": {"optimizer.name": ["adamw", "adam"]}},
        {"low": 10, "high": 20, "when": {"optimizer.name": "sgd"}},
    ],
    "heat": HEAT | {"when": {"objective.name": "clip", "optimizer.name": "sgd"}},
}


@pytest.mark.parametrize(
    ("optimizer", "objective", "low", "high", "heated"),
    [
        ("adamw", "clip", 1e-5, 1, False),
        ("adam", "vicreg", 1e-5, 1, False),
        ("sgd", "vicreg", 10, 20, False),
        ("sgd", "clip", 10, 20, True),
    ],
)
def test_the_cell_decides_which_range_applies(optimizer: str, objective: str, low: float, high: float, heated: bool) -> None:
    config = {"optimizer": {"name": optimizer}, "objective": {"name": objective}}
    for sampler in ({"name": "random"}, {"name": "tpe", "startup": 2}):
        points = Points(settings(CONDITIONAL, sampler=sampler, trials=8), "c", config)
        for point in params(explore(points, lambda n, p: Result((-p["optimizer.lr"], 0.0)))):
            assert low <= point["optimizer.lr"] <= high and ("heat" in point) == heated


def test_a_key_that_no_range_applies_to_is_not_searched() -> None:
    points = Points(settings(CONDITIONAL, sampler={"name": "random"}), "c", {"optimizer": {"name": "lion"}})
    assert params(explore(points, lambda n, p: Result((0.0, 0.0)))) == [{}] * 10


def test_a_condition_may_look_at_a_key_that_was_searched_before() -> None:
    """The point's own choice counts, not what the cell's config says."""
    space = {
        "optimizer.name": {"choices": ["sgd", "adam"]},
        "optimizer.lr": CONDITIONAL["optimizer.lr"],
        "momentum": {"low": 0, "high": 1, "when": {"optimizer.name": "sgd"}},
    }
    for sampler in ({"name": "random"}, {"name": "tpe", "startup": 3}):
        points = Points(settings(space, sampler=sampler, trials=12), "c", {"optimizer": {"name": "lion"}})
        asked = params(explore(points, lambda n, p: Result((p.get("momentum", 0.5), 0.0))))
        assert {point["optimizer.name"] for point in asked} == {"sgd", "adam"}
        for point in asked:
            sgd = point["optimizer.name"] == "sgd"
            assert (point["optimizer.lr"] >= 10) == sgd and ("momentum" in point) == sgd


@pytest.mark.parametrize("sampler", [{"name": "tpe"}, {"name": "random"}, {"name": "grid"}], ids=str)
def test_two_ranges_at_once_are_refused(sampler: dict) -> None:
    spread = {"low": 1, "high": 2, "points": 2}
    alternatives = [spread | {"when": {"a": [1, 2]}}, spread | {"when": {"a": [2, 3]}}, spread | {"when": {"a": 3}}]
    sweep = settings({"k": alternatives}, sampler=sampler)
    assert params(explore(Points(sweep, "c", {"a": 1}), lambda n, p: Result((0.0, 0.0))))[0].keys() == {"k"}
    with refused("space.k", "2 of its 3", remedy="`when`"):
        Points(sweep, "c", {"a": 2}).ask()
    with refused("space.k", "2 of its 3"):
        corners(sweep.space, {"a": 3})


# Grids and corners


def test_a_grid_has_every_combination_once_and_conditional_keys_where_they_apply() -> None:
    space = {
        "kind": {"choices": ["sgd", "adam"]},
        "lr": [
            {"low": 0.01, "high": 1, "log": True, "points": 3, "when": {"kind": "sgd"}},
            {"choices": [1e-3], "when": {"kind": "adam"}},
        ],
        "momentum": {"low": 0, "high": 0.5, "points": 2, "when": {"kind": "sgd"}},
        "warm": {"choices": [0, 9], "when": {"objective.name": "clip"}},
    }
    sweep = settings(space, sampler={"name": "grid"})
    expected = [
        {"kind": "sgd", "lr": lr, "momentum": momentum, "warm": warm}
        for lr in (0.01, 0.1, 1.0)
        for momentum in (0.0, 0.5)
        for warm in (0, 9)
    ] + [{"kind": "adam", "lr": 1e-3, "warm": warm} for warm in (0, 9)]
    points = Points(sweep, "c", {"objective": {"name": "clip"}})
    assert points.total == len(expected) == 14
    assert params(explore(points)) == expected
    other = Points(sweep, "c", {"objective": {"name": "vicreg"}})
    assert other.total == 7 and not any("warm" in point for point in params(explore(other)))


def test_how_many_points_a_cell_has() -> None:
    assert Points(settings({"lr": RATE}), "c", {}).total == 10
    assert Points(settings({"lr": RATE}, trials=3), "c", {}).total == 3
    nothing = Points(settings({}), "c", {})
    assert nothing.total == 0 and not nothing.ready()


def dimensions(**space: Any) -> dict[str, list[Dimension]]:
    return settings(space).space


def test_corners_hold_both_ends_of_every_range_and_every_choice() -> None:
    found = corners(dimensions(lr=RATE, width={"low": 1, "high": 9, "integer": True}, head={"choices": ["a", "b", "c"]}), {})
    assert found == [
        *({"lr": 1e-5, "width": 1, "head": head} for head in "abc"),
        *({"lr": 1.0, "width": 9, "head": head} for head in "abc"),
    ]
    assert corners({}, {}) == []
    third = corners(dimensions(share={"low": 1 / 3, "high": 2 / 3}), {})
    assert third == [{"share": 1 / 3}, {"share": 2 / 3}]  # what a trial can really be given


def test_corners_of_a_cell_leave_out_what_does_not_apply_to_it() -> None:
    space = settings(CONDITIONAL).space
    assert corners(space, {"optimizer": {"name": "sgd"}, "objective": {"name": "vicreg"}}) == [
        {"optimizer.lr": 10.0},
        {"optimizer.lr": 20.0},
    ]


def test_corners_hold_both_ends_of_a_range_that_belongs_to_one_choice() -> None:
    """An optimizer is searched, and each has learning rates of its own: four ends, and any of them may be impossible."""
    rates = [{"low": 1e-4, "high": 1e-2, "when": {"kind": "adam"}}, {"low": 1, "high": 10, "when": {"kind": "sgd"}}]
    space = dimensions(kind={"choices": ["adam", "sgd"]}, lr=rates)
    found = {(point["kind"], point["lr"]) for point in corners(space, {})}
    assert found == {("adam", 1e-4), ("adam", 1e-2), ("sgd", 1.0), ("sgd", 10.0)}
