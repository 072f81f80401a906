"""One value, however it is typed: conditions, duplicates and labels are of what the training config reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.program.errors import UserError
from pipelines.program.settings import load, parse_overrides, readings
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
    """The plan of a sweep file, which is given as text, as people type it."""
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
    found = searched(plan_of(DECAYS % typed, *([grid] if "5e-3" in typed[3] else [])))
    assert list(found)[:2] == ["lr=0.001", "lr=0.003"]
    first, second = (point["optimizer.weight_decay"] for point in list(found.values())[:2])
    assert 0.3 <= first <= 0.5 and 0.01 <= second <= 0.02


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (DECAYS % ("1e-3", "0.001", "1e-3", "1e-3"), "grid: 'optimizer.lr' has two values called 'lr=0.001'"),
        (DECAYS % ("'1e-3'", "0.001", "1e-3", "1e-3"), "grid: 'optimizer.lr' has two values called 'lr=0.001'"),
        ("grid: {compile: [false, 'no']}", "grid: 'compile' has two values called 'compile=False'"),
        ("space: {optimizer.lr: {choices: [1e-3, '0.001']}}", "space.optimizer.lr.0: choices: 0.001 stands there twice"),
    ],
    ids=["numbers", "text", "switch", "choices"],
)
def test_two_spellings_of_a_value_are_one_value(plan_of: Callable[..., SweepPlan], text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(text)
    assert line in str(caught.value) and "\n" not in str(caught.value)


LR = "space: {optimizer.weight_decay: {low: 0.1, high: 0.2, when: {%s}}}\ntrials: 1\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (DECAYS % ("1e-3", "3e-3", "1e-3", "2e-3"), "weight_decay.1.when: optimizer.lr is never 0.002 in this sweep, but 0.001"),
        (LR % "optimizer.name: sgd", "optimizer.name is never 'sgd' in this sweep, but 'adamw'"),
        (LR % "optimiser.name: adamw", "optimiser.name is never 'adamw' in this sweep, but null, or no key of these runs"),
        ("grid: {optimizer.name: [adamw, sgd]}\n" + LR % "optimizer.name: [adamw, sdg]", "optimizer.name is never 'sdg' in this"),
        (
            "grid: {optimizer: [{name: adamw}, {name: sgd, lr: 0.1}]}\n" + LR % "optimizer.name: adamw, optimizer.lr: 0.1",
            "no cell of this sweep meets {'optimizer.name': 'adamw', 'optimizer.lr': 0.1} as a whole",
        ),
    ],
    ids=["number", "constant", "key", "one of several", "together"],
)  # fmt: skip
def test_a_condition_that_can_never_hold_is_named(plan_of: Callable[..., SweepPlan], text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(text)
    assert str(caught.value).startswith("space.optimizer.weight_decay") and line in str(caught.value)


def test_a_grid_may_be_narrowed_to_some_of_its_names(plan_of: Callable[..., SweepPlan]) -> None:
    """The ranges of the others are then of no use, which is no mistake."""
    text = "grid: {optimizer.name: [adamw, sgd]}\ntrials: 1\nspace:\n  optimizer.lr:\n"
    text += "    - {low: 1, high: 2, when: {optimizer.name: sgd}}\n    - {low: 3, high: 4, when: {optimizer.name: adamw}}"
    assert list(searched(plan_of(text))) == ["adamw", "sgd"]
    (only,) = searched(plan_of(text, "grid.optimizer.name=[sgd]")).values()
    assert 1 <= only["optimizer.lr"] <= 2


def test_conditions_on_what_is_searched(plan_of: Callable[..., SweepPlan]) -> None:
    decay = "optimizer.weight_decay: {low: 0.1, high: 0.2, when: {%s}}"
    space = "trials: 1\nspace: {optimizer.lr: {choices: ['1e-3', 2e-3]}, %s}"
    assert len(plan_of(space % (decay % "optimizer.lr: 2e-3")).cells) == 1
    with pytest.raises(UserError, match=r"optimizer\.lr is never 0\.003 in this sweep, but 0\.001 or 0\.002"):
        plan_of(space % (decay % "optimizer.lr: 3e-3"))
    later = "trials: 1\nspace: {%s, optimizer.lr: {choices: [1e-3, 2e-3]}}"
    with pytest.raises(UserError, match=r"looks at optimizer\.lr, which is chosen after it; put optimizer\.lr before"):
        plan_of(later % (decay % "optimizer.lr: 2e-3"))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.lr", "1e-3", [0.001]),
        ("optimizer.lr", "fast", []),
        ("compile", "yes", [True]),
        ("clip_norm", None, [None]),
        ("objective.name", "clipp", []),
        ("optimizer.options.lr", "1e-3", []),  # of options anything goes; it is not the optimizer's lr
        ("no.such.key", 1, []),
    ],
)
def test_readings(key: str, value: Any, expected: list[Any]) -> None:
    assert readings(TrainSettings, key, value)[:1] == expected


def test_a_key_of_a_union_is_read_as_any_of_its_members_reads_it() -> None:
    assert readings(TrainSettings, "objective.name", "psd") == ["psd"]
    assert set(readings(TrainSettings, "objective.temperature", "7e-2")) == {0.07}
