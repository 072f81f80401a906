"""What a sweep file may say: every rule with its message, dotted and nested keys alike, cells, labels, and what may change."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.program.errors import UserError
from pipelines.program.settings import difference, load, parse_overrides, validate
from tuning.config import BudgetSettings, Dimension, RandomSettings, SweepSettings, label

RATE = {"low": 1e-4, "high": 1e-2, "log": True}
FILE = """
name: s
base: base.yaml
overrides: {data.validation: 0.15, optimizer.weight_decay: 0.02}
grid:
  objective.name: [clip, vicreg]
  optimizer.name: [adamw, sgd]
space:
  optimizer.lr: {low: 3e-5, high: 3e-2, log: true}
  objective.temperature: {low: 0.01, high: 0.2, when: {objective.name: clip}}
"""


def settings(**changes: Any) -> SweepSettings:
    return validate(SweepSettings, {"name": "s", "base": "base.yaml"} | changes, "sweep.yaml")


def refusal(**changes: Any) -> str:
    """The line that a user reads."""
    with pytest.raises(UserError) as caught:
        settings(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return path


# Dimensions


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({}, "give low and high, or choices"),
        ({"low": 1}, "give low and high, or choices"),
        ({"high": 1}, "give low and high, or choices"),
        ({"choices": [1], "low": 1, "high": 2}, "give low and high, or choices"),
        ({"choices": [1], "low": 1}, "choices take no low, high, log, integer or points"),
        ({"choices": [1], "log": True}, "choices take no low, high, log, integer or points"),
        ({"choices": [1], "integer": True}, "choices take no low, high, log, integer or points"),
        ({"choices": [1], "points": 2}, "choices take no low, high, log, integer or points"),
        ({"choices": []}, "at least one"),
        ({"low": 2, "high": 1}, "low: 2 is not below high: 1"),
        ({"low": 1, "high": 1}, "low: 1 is not below high: 1"),
        ({"low": 0, "high": 1, "log": True}, "low: 0 has no logarithm; with log: true it must be positive"),
        ({"low": -1, "high": 1, "log": True}, "low: -1 has no logarithm; with log: true it must be positive"),
        ({"low": 0.5, "high": 3, "integer": True}, "integer: the range 0.5 to 3 must begin and end with whole numbers"),
        ({"low": 1, "high": 2.5, "integer": True}, "integer: the range 1 to 2.5 must begin and end with whole numbers"),
        ({"low": 1, "high": 2, "points": 1}, "greater than or equal to 2 (value 1)"),
        ({"low": 1, "high": 2, "lwo": 3}, "lwo: unknown key (value 3); did you mean 'low'?"),
    ],
)
def test_a_dimension_that_cannot_be_searched_is_refused(dimension: dict, message: str) -> None:
    assert message in refusal(space={"optimizer.lr": dimension})
    assert message in refusal(space={"optimizer.lr": [RATE, dimension]})


@pytest.mark.parametrize("dimension", [{"low": 2, "high": 1}, [{"low": 2, "high": 1}], {"low": 1, "high": 2, "points": 1}])
def test_a_refused_dimension_is_named_as_the_file_names_it(dimension: Any) -> None:
    """Whether it stands alone or in a list is nothing that the line may trip over."""
    line = refusal(space={"optimizer.lr": dimension})
    assert line.startswith("sweep.yaml: space.optimizer.lr")
    assert "function-after" not in line and "valid list" not in line and "valid dictionary" not in line


def test_a_key_without_any_dimension_is_refused() -> None:
    """Its points would all be the base's, tried again and again."""
    assert "space.optimizer.lr" in refusal(space={"optimizer.lr": []})


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        ({"choices": ["a", None, [1, 2]]}, ["a", None, [1, 2]]),
        ({"low": 0, "high": 1, "points": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"low": 1e-4, "high": 1, "log": True, "points": 5}, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
        ({"low": 1, "high": 100, "log": True, "integer": True, "points": 3}, [1, 10, 100]),
        # Whole numbers that fall together are tried once.
        ({"low": 1, "high": 3, "integer": True, "points": 9}, [1, 2, 3]),
        # A third has no four digits that lie within the range, so the end itself is tried.
        ({"low": 1 / 3, "high": 2 / 3, "points": 2}, [1 / 3, 2 / 3]),
        ({"low": 1, "high": 2, "points": 4}, [1, 1.333, 1.667, 2]),
    ],
)
def test_a_grid_spreads_its_points_over_the_range(dimension: dict, values: list) -> None:
    spread = Dimension(**dimension).spread()
    assert spread == values
    if dimension.get("integer"):
        assert all(isinstance(value, int) for value in spread)


@pytest.mark.parametrize(
    ("dimension", "value", "tidy"),
    [
        ({"low": 1e-5, "high": 1}, 0.00123456, 0.001235),
        ({"low": 1e-5, "high": 1}, 0.9999999, 1.0),
        ({"low": 0.123456, "high": 1}, 0.123457, 0.1235),
        ({"low": 0.123446, "high": 1}, 0.123447, 0.123446),  # four digits would be below the range
        ({"low": 0, "high": 0.123456}, 0.123455, 0.123456),  # and here above it
        ({"low": 1, "high": 100000, "integer": True}, 54321.0, 54321),
        ({"choices": [0.123456789]}, 0.123456789, 0.123456789),
    ],
)
def test_values_are_tidied_to_four_digits_within_the_range(dimension: dict, value: Any, tidy: Any) -> None:
    found = Dimension(**dimension).tidy(value)
    assert found == tidy and type(found) is type(tidy)


# Sweeps


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"grid": {"a": []}}, "grid: 'a' has no values; list at least one, or remove the key"),
        (
            {"grid": {"a": [{"name": "x", "v": 1}, {"name": "x", "v": 2}]}},
            "grid: 'a' has two values called 'x'; make what differs between them an axis of its own",
        ),
        (
            {"grid": {"b": ["y"], "a.lr": [1, 2, 1.0]}},
            "grid: 'a.lr' has two values called 'lr=1'; make what differs between them an axis of its own",
        ),
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands there twice"),
        ({"score": ["a", "b", "a"]}, "score: 'a' stands there twice"),
        (
            {"grid": {"a": [1], "lr": [1]}, "space": {"lr": RATE, "b": RATE}},
            "space.lr: is an axis of the grid too; a key is either crossed or searched",
        ),
        (
            {"space": {"a": {"choices": [1]}, "lr": [RATE | {"points": 2}, RATE]}, "sampler": {"name": "grid"}},
            "space.lr: a grid needs choices, or points in its range",
        ),
        (
            {"space": {"a": {"choices": [1]}}, "sampler": {"name": "grid"}, "trials": 3},
            "trials: a grid tries all combinations; leave it null, or choose sampler.name=random",
        ),
        (
            {"space": {"lr": RATE}, "scheduler": {"name": "hyperband"}},
            "scheduler.name: hyperband lets points of a cell wait for one another, so none may depend on another's result; "
            "choose sampler.name=random or grid, or scheduler.name=asha",
        ),
        (
            {"space": {"lr": RATE}, "sampler": {"name": "random"}, "scheduler": {"name": "hyperband"}, "concurrency": 2},
            "concurrency: hyperband pauses trials, and runs as many as there are CPUs for; leave it null",
        ),
        ({"trials": 3}, "trials: there is nothing to try without a space; add one, or leave trials null"),
        ({"budget": {"epochs": 2, "samples": 5}}, "budget: give one of epochs, samples and minutes"),
        ({"budget": {"epochs": 2, "minutes": 0.5}}, "budget: give one of epochs, samples and minutes"),
        ({"sampler": {"name": "bayes"}}, "sampler.name: 'bayes' is unknown; choose one of: cmaes, grid, random, tpe"),
        ({"scheduler": {"name": "pbt"}}, "scheduler.name: 'pbt' is unknown; choose one of: asha, hyperband, median, none"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_refused_with_the_way_out(changes: dict, line: str) -> None:
    assert refusal(**changes) == f"sweep.yaml: {line}"


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": []},
        {"trials": 0, "space": {"lr": RATE}},
        {"concurrency": 0},
        {"retries": -1},
        {"name": "a/b"},
        {"mode": "best"},
        {"search_seed": -1},
        {"grid": {"a": 3}},
        {"sampler": {"name": "tpe", "parallel": 0}},
        {"sampler": {"name": "cmaes", "startup": 0}},
        {"sampler": {"name": "random", "startup": 3}},
        {"sampler": {"name": "tpe", "cost": "watts"}},
        {"scheduler": {"name": "asha", "reduction_factor": 1}},
        {"scheduler": {"name": "median", "grace_epochs": 0}},
        {"budget": {"minutes": 0}},
    ],
    ids=str,
)
def test_values_out_of_bounds_are_refused_by_key(changes: dict) -> None:
    key, value = next(iter(changes.items()))
    inner = [name for name in value if name != "name"] if isinstance(value, dict) else []
    assert refusal(**changes).startswith(f"sweep.yaml: {'.'.join([key, *inner[:1]])}: ")


def test_hyperband_goes_with_points_that_need_no_results() -> None:
    for sampler in ({"name": "random"}, {"name": "grid"}):
        space = {"lr": RATE | {"points": 3}}
        assert settings(space=space, sampler=sampler, scheduler={"name": "hyperband"}).scheduler.name == "hyperband"


# Keys with dots, and nested ones


def test_nested_keys_mean_dotted_ones() -> None:
    nested = settings(
        overrides={"data": {"validation": 0.2}, "optimizer": {"options": {"betas": [0.9, 0.98]}, "name": "sgd"}},
        grid={"objective": {"name": ["clip"]}, "image_tower": {"mode": ["locked", "frozen"]}},
        space={"optimizer": {"lr": RATE}, "objective": {"temperature": [RATE], "psd": {"soft_fraction": {"choices": [0.1]}}}},
    )
    assert nested.overrides == {"data.validation": 0.2, "optimizer.options.betas": [0.9, 0.98], "optimizer.name": "sgd"}
    assert nested.grid == {"objective.name": ["clip"], "image_tower.mode": ["locked", "frozen"]}
    assert list(nested.space) == ["optimizer.lr", "objective.temperature", "objective.psd.soft_fraction"]
    assert nested.space == {
        "optimizer.lr": [Dimension(**RATE)],
        "objective.temperature": [Dimension(**RATE)],
        "objective.psd.soft_fraction": [Dimension(choices=[0.1])],
    }


def test_values_that_are_mappings_stay_values() -> None:
    clip = {"name": "clip", "temperature": 0.01}
    found = settings(grid={"objective": [clip]}, overrides={"optimizer.options": {}})
    assert found.grid == {"objective": [clip]} and found.overrides == {"optimizer.options": {}}


OVERRIDES = {"data.validation": 0.15, "optimizer.weight_decay": 0.02}
HEAT = Dimension(low=0.01, high=0.2, when={"objective.name": "clip"})


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("overrides.data.validation=0.2", "overrides", {"data.validation": 0.2, "optimizer.weight_decay": 0.02}),
        ("overrides.clip_norm=5", "overrides", OVERRIDES | {"clip_norm": 5}),
        ("overrides.objective.name=psd", "overrides", OVERRIDES | {"objective.name": "psd"}),
        ("grid.objective.name=[clip]", "grid", {"objective.name": ["clip"], "optimizer.name": ["adamw", "sgd"]}),
        ("grid={}", "grid", {}),
        (
            "space.optimizer.lr.low=1e-4",
            "space",
            {"optimizer.lr": [Dimension(low=1e-4, high=3e-2, log=True)], "objective.temperature": [HEAT]},
        ),
        (
            "space.optimizer.lr={choices: [1, 2]}",
            "space",
            {"optimizer.lr": [Dimension(choices=[1, 2])], "objective.temperature": [HEAT]},
        ),
        ("sampler.name=random", "sampler", RandomSettings(name="random")),
        ("budget.epochs=3", "budget", BudgetSettings(epochs=3)),
    ],
)
def test_what_is_typed_reaches_the_files_dotted_keys(file: Path, argument: str, key: str, value: Any) -> None:
    before, after = load(SweepSettings, file), load(SweepSettings, file, parse_overrides([argument]))
    assert getattr(after, key) == value
    others = set(SweepSettings.model_fields) - {key}
    assert {name: getattr(after, name) for name in others} == {name: getattr(before, name) for name in others}


def test_several_overrides_of_one_dimension_add_up(file: Path) -> None:
    typed = ["space.optimizer.lr.low=1e-3", "space.optimizer.lr.high=1e-1", "space.embed_dim.choices=[64, 128]"]
    found = load(SweepSettings, file, parse_overrides(typed)).space
    assert found["optimizer.lr"] == [Dimension(low=1e-3, high=1e-1, log=True)]
    assert found["embed_dim"] == [Dimension(choices=[64, 128])]
    assert list(found) == ["optimizer.lr", "objective.temperature", "embed_dim"]


# Cells and labels


def test_a_grid_is_crossed_in_its_order() -> None:
    crossed = settings(grid={"b": [1, 2], "a.c": ["x", "y", "z"]})
    assert crossed.cells() == [
        {"b": 1, "a.c": "x"},
        {"b": 1, "a.c": "y"},
        {"b": 1, "a.c": "z"},
        {"b": 2, "a.c": "x"},
        {"b": 2, "a.c": "y"},
        {"b": 2, "a.c": "z"},
    ]
    assert settings().cells() == [{}]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("objective.name", "clip", "clip"),
        ("objective", {"name": "clip", "temperature": 0.01}, "clip"),
        ("optimizer.lr", 0.001, "lr=0.001"),
        ("optimizer.lr", 3e-5, "lr=3e-05"),
        ("epochs", 20, "epochs=20"),
        ("compile", True, "compile=True"),
        ("clip_norm", None, "clip_norm=None"),
        ("optimizer.options.betas", [0.9, 0.98], "betas=[0.9, 0.98]"),
    ],
)
def test_a_value_is_called_by_its_name_or_by_its_key(key: str, value: Any, expected: str) -> None:
    assert label(key, value) == expected


# What may change when a sweep goes on


@pytest.fixture
def sweep(file: Path) -> SweepSettings:
    return load(SweepSettings, file)


@pytest.mark.parametrize(
    "argument",
    [
        "name=other",
        "storage=/elsewhere",
        "grid.objective.name=[clip, vicreg, psd]",
        "grid.optimizer.name=[sgd]",
        "trials=30",
        "seeds=[0, 1, 2]",
        "metrics=[a]",
        "concurrency=1",
        "retries=5",
        "loggers=[tensorboard]",
        "overwrite=true",
    ],
)
def test_cells_trials_seeds_and_what_touches_no_result_may_change(file: Path, sweep: SweepSettings, argument: str) -> None:
    assert difference(sweep.identity(), load(SweepSettings, file, parse_overrides([argument])).identity()) == []


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("base=b.yaml", "base"),
        ("overrides.data.validation=0.2", "overrides.data.validation"),
        ("grid.epochs=[1, 2]", "axes"),
        ("space.optimizer.lr.high=1", "space.optimizer.lr"),
        ("sampler={name: tpe, parallel: 2}", "sampler.parallel"),
        ("search_seed=1", "search_seed"),
        ("seed_keys=[seed, data.split_seed]", "seed_keys"),
        ("validation=val", "validation"),
        ("score=[a]", "score"),
        ("mode=min", "mode"),
        ("budget.epochs=3", "budget.epochs"),
        ("scheduler.name=asha", "scheduler.name"),
    ],
)
def test_what_makes_results_comparable_may_not_change(file: Path, sweep: SweepSettings, argument: str, key: str) -> None:
    changed = difference(sweep.identity(), load(SweepSettings, file, parse_overrides([argument])).identity())
    assert key in [line.split(": ")[0] for line in changed]


def test_every_setting_is_either_free_to_change_or_part_of_the_identity(sweep: SweepSettings) -> None:
    free = {"name", "storage", "grid", "trials", "seeds", "metrics", "concurrency", "retries", "loggers", "overwrite"}
    assert set(sweep.identity()) == set(SweepSettings.model_fields) - free | {"axes"}
