"""Values as the training config reads them: conditions, duplicates and labels do not depend on how a value is typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.program.settings import load, parse_overrides, readings
from tests.refusals import refused
from training.config import TrainSettings
from tuning.config import SweepSettings
from tuning.optuna_points import Points
from tuning.plan import SweepPlan

BASE = """
name: b
embed_dim: 8
epochs: 1
global_batch_size: 4
image_tower: {name: conv, image_size: 32}
text_tower: {name: bag}
optimizer: {name: adamw, lr: 1e-3}
"""


@pytest.fixture
def plan_of(tiny_dataset: Prepared, tmp_path: Path) -> Callable[..., SweepPlan]:
    """Makes the plan of a sweep file from its text."""
    (tmp_path / "base.yaml").write_text(BASE)

    def make(text: str, *typed: str) -> SweepPlan:
        file = tmp_path / "sweep.yaml"
        file.write_text(f"name: s\nbase: {tmp_path}/base.yaml\nseeds: [0]\n{text}\n")
        paths = {"storage": str(tmp_path), "overrides.data.path": str(tiny_dataset.path), "overrides.data.validation": 0.3}
        return SweepPlan(load(SweepSettings, file, paths | parse_overrides(typed)))

    return make


def searched(plan: SweepPlan) -> dict[str, dict[str, Any]]:
    """The first point of each cell, by the cell's label."""
    trees = plan.trees()
    return {c.label: Points(plan.settings, c.label, t).ask()[0] for c, t in zip(plan.cells, trees, strict=True)}


DECAYS = """
grid: {optimizer.lr: [%s, %s]}
trials: 1
space:
  optimizer.weight_decay:
    - {low: 0.3, high: 0.5, when: {optimizer.lr: %s}}
    - {low: 0.01, high: 0.02, when: {optimizer.lr: %s}}
"""


@pytest.mark.parametrize(
    "typed",
    [("1e-3", "3e-3", "1e-3", "3e-3"), ("1E-3", ".003", "0.001", "3e-3"), ("'1e-3'", '"0.003"', "0.001", "[5e-3, '3e-03']")],
    ids=["as typed", "in other forms", "as text"],
)
def test_a_condition_holds_for_its_number_however_it_is_written(plan_of: Callable[..., SweepPlan], typed: tuple) -> None:
    grid = "grid.optimizer.lr=[1e-3, 3e-3, 5e-3]"
    points = searched(plan_of(DECAYS % typed, *([grid] if "5e-3" in typed[3] else [])))
    assert list(points)[:2] == ["lr=0.001", "lr=0.003"]
    first, second = (point["optimizer.weight_decay"] for point in list(points.values())[:2])
    assert 0.3 <= first <= 0.5 and 0.01 <= second <= 0.02


@pytest.mark.parametrize(
    ("text", "key", "named"),
    [
        (DECAYS % ("1e-3", "0.001", "1e-3", "1e-3"), "grid", ["'optimizer.lr'", "'lr=0.001'"]),
        (DECAYS % ("'1e-3'", "0.001", "1e-3", "1e-3"), "grid", ["'optimizer.lr'", "'lr=0.001'"]),
        ("grid: {compile: [false, 'no']}", "grid", ["'compile'", "'compile=False'"]),
        ("space: {optimizer.lr: {choices: [1e-3, '0.001']}}", "space.optimizer.lr.0.choices", ["0.001"]),
    ],
    ids=["numbers", "text", "switch", "choices"],
)
def test_two_spellings_of_a_value_are_one_value(plan_of: Callable[..., SweepPlan], text: str, key: str, named: list[str]) -> None:
    with refused(key, *named):
        plan_of(text)


LR = "space: {optimizer.weight_decay: {low: 0.1, high: 0.2, when: {%s}}}\ntrials: 1\n"


@pytest.mark.parametrize(
    ("text", "key", "named"),
    [
        (DECAYS % ("1e-3", "3e-3", "1e-3", "2e-3"), "space.optimizer.weight_decay.1.when", ["optimizer.lr", "0.002", "0.001"]),
        (LR % "optimizer.name: sgd", "space.optimizer.weight_decay.when", ["optimizer.name", "'sgd'", "'adamw'"]),
        (LR % "optimiser.name: adamw", "space.optimizer.weight_decay.when", ["optimiser.name", "'adamw'", "null"]),
        (
            "grid: {optimizer.name: [adamw, sgd]}\n" + LR % "optimizer.name: [adamw, sdg]",
            "space.optimizer.weight_decay.when",
            ["optimizer.name", "'sdg'", "'adamw' or 'sgd'"],
        ),
        (
            "grid: {optimizer: [{name: adamw}, {name: sgd, lr: 0.1}]}\n" + LR % "optimizer.name: adamw, optimizer.lr: 0.1",
            "space.optimizer.weight_decay.when",
            ["{'optimizer.name': 'adamw', 'optimizer.lr': 0.1}"],
        ),
    ],
    ids=["number", "constant", "key", "one of several", "together"],
)
def test_a_condition_that_can_never_hold_is_named(
    plan_of: Callable[..., SweepPlan], text: str, key: str, named: list[str]
) -> None:
    with refused(key, *named):
        plan_of(text)


def test_a_grid_may_be_narrowed_to_some_of_its_names(plan_of: Callable[..., SweepPlan]) -> None:
    """The ranges of the other names are then unused, which is not a mistake."""
    text = "grid: {optimizer.name: [adamw, sgd]}\ntrials: 1\nspace:\n  optimizer.lr:\n"
    text += "    - {low: 1, high: 2, when: {optimizer.name: sgd}}\n    - {low: 3, high: 4, when: {optimizer.name: adamw}}"
    assert list(searched(plan_of(text))) == ["adamw", "sgd"]
    (only,) = searched(plan_of(text, "grid.optimizer.name=[sgd]")).values()
    assert 1 <= only["optimizer.lr"] <= 2


def test_conditions_on_what_is_searched(plan_of: Callable[..., SweepPlan]) -> None:
    decay = "optimizer.weight_decay: {low: 0.1, high: 0.2, when: {%s}}"
    space = "trials: 1\nspace: {optimizer.lr: {choices: ['1e-3', 2e-3]}, %s}"
    assert len(plan_of(space % (decay % "optimizer.lr: 2e-3")).cells) == 1
    with refused("space.optimizer.weight_decay.when", "optimizer.lr", "0.003", "0.001 or 0.002"):
        plan_of(space % (decay % "optimizer.lr: 3e-3"))
    later = "trials: 1\nspace: {%s, optimizer.lr: {choices: [1e-3, 2e-3]}}"
    with refused("space.optimizer.weight_decay", remedy="optimizer.lr"):
        plan_of(later % (decay % "optimizer.lr: 2e-3"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.lr", "1e-3", [0.001]),
        ("optimizer.lr", "fast", []),
        ("compile", "yes", [True]),
        ("clip_norm", None, [None]),
        ("objective.name", "clipp", []),
        ("optimizer.options.lr", "1e-3", []),  # options may have any key; this is not the optimizer's lr
        ("no.such.key", 1, []),
    ],
)
def test_readings(key: str, value: Any, expected: list[Any]) -> None:
    assert readings(TrainSettings, key, value)[:1] == expected


def test_a_key_of_a_union_is_read_as_any_of_its_members_reads_it() -> None:
    assert readings(TrainSettings, "objective.name", "psd") == ["psd"]
    assert set(readings(TrainSettings, "objective.temperature", "7e-2")) == {0.07}
