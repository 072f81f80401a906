"""The sweep config: every rule and what its error names, dotted and nested keys, cells, labels, and what may change."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.config_files import shipped
from pipelines.program.errors import UserError
from pipelines.program.settings import difference, load, parse_overrides, validate
from tests.refusals import refused
from tests.training.test_report import prepare_by_hand
from tuning.config import BudgetSettings, Dimension, RandomSettings, SweepSettings, label
from tuning.plan import SweepPlan

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


def refusal(key: str, *named: str, **changes: Any) -> None:
    """These settings raise an error about `key`, which names each of `named`, and the file."""
    with refused(key, *named, "sweep.yaml"):
        settings(**changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(FILE)
    return path


# Dimensions


@pytest.mark.parametrize(
    ("dimension", "named"),
    [
        ({}, ["low", "high", "choices"]),
        ({"low": 1}, ["low", "high", "choices"]),
        ({"high": 1}, ["low", "high", "choices"]),
        ({"choices": [1], "low": 1, "high": 2}, ["low", "high", "choices"]),
        ({"choices": [1], "low": 1}, ["choices", "low", "log", "integer", "points"]),
        ({"choices": [1], "log": True}, ["choices", "low", "log", "integer", "points"]),
        ({"choices": [1], "integer": True}, ["choices", "low", "log", "integer", "points"]),
        ({"choices": [1], "points": 2}, ["choices", "low", "log", "integer", "points"]),
        ({"choices": []}, ["choices"]),
        ({"low": 2, "high": 1}, ["low: 2", "high: 1"]),
        ({"low": 1, "high": 1}, ["low: 1", "high: 1"]),
        ({"low": 0, "high": 1, "log": True}, ["low: 0", "log: true"]),
        ({"low": -1, "high": 1, "log": True}, ["low: -1", "log: true"]),
        ({"low": 0.5, "high": 3, "integer": True}, ["integer: ", "0.5 to 3"]),
        ({"low": 1, "high": 2.5, "integer": True}, ["integer: ", "1 to 2.5"]),
        ({"low": 1, "high": 2, "points": 1}, ["points: ", "(value 1)", "2"]),
        ({"low": 1, "high": 2, "lwo": 3}, ["lwo: ", "(value 3)", "'low'"]),
    ],
)
def test_a_dimension_that_cannot_be_searched_is_refused(dimension: dict, named: list[str]) -> None:
    for number, dimensions in enumerate([dimension, [RATE, dimension]]):
        with pytest.raises(UserError) as caught:
            settings(space={"optimizer.lr": dimensions})
        line = str(caught.value)
        assert caught.value.key.startswith(f"space.optimizer.lr.{number}") and all(name in line for name in named), line


@pytest.mark.parametrize("dimension", [{"low": 2, "high": 1}, [{"low": 2, "high": 1}], {"low": 1, "high": 2, "points": 1}])
def test_a_refused_dimension_is_named_as_the_file_names_it(dimension: Any) -> None:
    """The error is about the dimension, whether it is given alone or in a list."""
    with pytest.raises(UserError) as caught:
        settings(space={"optimizer.lr": dimension})
    line = str(caught.value)
    assert caught.value.key.startswith("space.optimizer.lr")
    assert "function-after" not in line and "valid list" not in line and "valid dictionary" not in line


def test_a_key_without_any_dimension_is_refused() -> None:
    """All its points would be the base's value."""
    refusal("space.optimizer.lr", space={"optimizer.lr": []})


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        ({"choices": ["a", None, [1, 2]]}, ["a", None, [1, 2]]),
        ({"low": 0, "high": 1, "points": 5}, [0, 0.25, 0.5, 0.75, 1]),
        ({"low": 1e-4, "high": 1, "log": True, "points": 5}, [1e-4, 1e-3, 1e-2, 1e-1, 1]),
        ({"low": 1, "high": 100, "log": True, "integer": True, "points": 3}, [1, 10, 100]),
        # Integers that are equal after rounding are tried once.
        ({"low": 1, "high": 3, "integer": True, "points": 9}, [1, 2, 3]),
        # A third rounded to four digits is outside the range, so the end itself is tried.
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
    ("changes", "key", "named"),
    [
        ({"grid": {"a": []}}, "grid", ["'a'", "remove the key"]),
        ({"grid": {"a": [{"name": "x", "v": 1}, {"name": "x", "v": 2}]}}, "grid", ["'a'", "'x'", "axis"]),
        ({"grid": {"b": ["y"], "a.lr": [1, 2, 1.0]}}, "grid", ["'a.lr'", "'lr=1'", "axis"]),
        ({"seeds": [0, 1, 0]}, "seeds", ["0", "twice"]),
        ({"score": ["a", "b", "a"]}, "score", ["'a'", "twice"]),
        ({"grid": {"a": [1], "lr": [1]}, "space": {"lr": RATE, "b": RATE}}, "space.lr", ["axis of the grid"]),
        (
            {"space": {"a": {"choices": [1]}, "lr": [RATE | {"points": 2}, RATE]}, "sampler": {"name": "grid"}},
            "space.lr",
            ["choices", "points"],
        ),
        (
            {"space": {"a": {"choices": [1]}}, "sampler": {"name": "grid"}, "trials": 3},
            "trials",
            ["trials null", "sampler.name=random"],
        ),
        (
            {"space": {"lr": RATE}, "scheduler": {"name": "hyperband"}},
            "scheduler.name",
            ["hyperband", "sampler.name=random", "grid", "scheduler.name=asha"],
        ),
        (
            {"space": {"lr": RATE}, "sampler": {"name": "random"}, "scheduler": {"name": "hyperband"}, "concurrency": 2},
            "concurrency",
            ["hyperband", "null"],
        ),
        ({"trials": 3}, "trials", ["space", "trials null"]),
        # What no trial would read.
        ({"grid": {"name": ["a", "b"]}}, "grid.name", ["folder"]),
        ({"grid": {"storage": ["a", "b"]}}, "grid.storage", ["folder"]),
        ({"overrides": {"storage": "a"}}, "overrides.storage", ["folder"]),
        ({"grid": {"seed": [1, 2]}}, "grid.seed", ["seed_keys", "seeds"]),
        ({"space": {"data.split_seed": RATE}, "seed_keys": ["data.split_seed"]}, "space.data.split_seed", ["seed_keys"]),
        ({"grid": {"epochs": [1, 2]}, "budget": {"samples": 5}}, "grid.epochs", ["budget"]),
        ({"overrides": {"max_minutes": 3}, "budget": {"minutes": 5}}, "overrides.max_minutes", ["budget"]),
        ({"overrides": {"a.b": 3}, "grid": {"a.b": [1, 2]}}, "overrides.a.b", ["grid"]),
        ({"overrides": {"lr": 3}, "space": {"lr": RATE}}, "overrides.lr", ["space"]),
        ({"budget": {"epochs": 2, "samples": 5}}, "budget", ["epochs, samples and minutes"]),
        ({"budget": {"epochs": 2, "minutes": 0.5}}, "budget", ["epochs, samples and minutes"]),
        ({"sampler": {"name": "bayes"}}, "sampler.name", ["'bayes'", "cmaes, grid, random, tpe"]),
        ({"scheduler": {"name": "pbt"}}, "scheduler.name", ["'pbt'", "asha, hyperband, median, none"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_a_remedy(changes: dict, key: str, named: list[str]) -> None:
    refusal(key, *named, **changes)


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
    refusal(".".join([key, *inner[:1]]), **changes)


def test_a_key_that_some_trials_read_may_be_given() -> None:
    """Where a range's `when` does not hold, a trial has the override; a budget in epochs leaves minutes alone."""
    heat = RATE | {"when": {"objective.name": "clip"}}
    assert settings(overrides={"objective.temperature": 0.1}, space={"objective.temperature": heat}).space
    assert settings(overrides={"max_minutes": 3}, budget={"epochs": 5}).overrides
    assert settings(grid={"epochs": [1, 2]}).grid


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


# What may change when a sweep resumes


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


# The base


@pytest.mark.parametrize("base", ["tuning/sweeps/course.yaml", "course.yaml", "mine.yaml"])
def test_a_sweep_as_base_is_refused_with_its_own_base(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that a user types: a shipped sweep, or a file in this folder. `course.yaml` is a training config too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: m\nbase: training/configs/course.yaml\ngrid: {seed: [1]}\n")
    sweep = settings(base=base, overrides={"data.path": str(tmp_path / "nowhere")})
    if base == "course.yaml":
        with refused("overrides.data.path", "nowhere"):  # the next thing that is checked
            SweepPlan(sweep)
        return
    with refused("base", base, "grid", remedy="base=training/configs/course.yaml"):
        SweepPlan(sweep)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("base", "problem", "remedy"),
    [
        ("smoke", "tuning/sweeps/smoke.yaml", "base=training/configs/openmoji.yaml"),  # only a sweep has this name
        ("opnmoji.yaml", "opnmoji.yaml", "base=training/configs/openmoji.yaml"),
        ("zzz", "zzz", "training/configs/openmoji.yaml"),
        (".", ".", "training/configs/openmoji.yaml"),
        (str(Path(__file__).parents[2] / "pipelines/configs/openmoji.yaml"), "image_tower", "training/configs/"),
    ],
)
def test_a_base_that_is_no_training_config_is_refused(
    base: str, problem: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused("base", problem, remedy=remedy):
        SweepPlan(settings(base=base))


def test_every_shipped_training_config_can_be_a_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """None is taken for a sweep because of a key that both have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named.yaml").write_text("base: training/configs/openmoji.yaml\nname: mine\n")
    for base in ["named.yaml", *map(str, shipped("training"))]:
        with refused("overrides.data.path", "nowhere"):  # the next thing that is checked
            SweepPlan(settings(base=base, overrides={"data.path": "nowhere"}))


@pytest.mark.slow
def test_a_mistake_in_the_grid_is_told_without_the_imports_that_trials_and_report_need() -> None:
    """Those take seconds. In a process of its own: this one has imported everything."""
    code = (
        "import sys; from tuning.__main__ import main; code = main(['smoke', 'grid.optimizer.nam=[sgd]']);"
        "heavy = {'scipy', 'ray.train', 'ray.tune', 'tuning.reporting'} & sys.modules.keys(); sys.exit(f'{code} {heavy}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "2 set()", done.stderr
    assert "optimizer.nam" in done.stderr


# Warnings


def test_a_warm_up_that_takes_the_whole_trial_is_told_once_with_the_sweeps_key(tmp_path: Path) -> None:
    prepared = prepare_by_hand(tmp_path / "data", [["a red square"], ["a blue square"]])
    base = tmp_path / "base.yaml"
    base.write_text(
        f"name: x\ndata: {{path: {prepared.path}}}\nimage_tower: {{name: conv}}\ntext_tower: {{name: bag}}\n"
        "epochs: 30\nglobal_batch_size: 2\nschedule: {name: cosine, warmup_steps: 3}\n"
    )
    cells = {"base": str(base), "grid": {"optimizer.name": ["adamw", "sgd"]}, "overrides": {}, "space": {}}
    assert not SweepPlan(settings(**cells)).warnings
    (warning,) = SweepPlan(settings(**cells | {"overrides": {"schedule.warmup_steps": 40}})).warnings
    assert (
        warning.startswith("overrides.schedule.warmup_steps: 40 of 30 steps") and "overrides.schedule.warmup_steps=3," in warning
    )
