"""Sweeps over fractions of the training data: equal budgets, and score against training samples on the page."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evaluation.metrics import mean_recalls
from pipelines.dataset.prepared import Prepared
from pipelines.program.settings import load
from tests.refusals import refused
from tests.tuning.pages import page_of, paths, plain, section, table_rows
from tests.tuning.tables import I2T, T2I, row
from tuning.config import SweepSettings
from tuning.plan import SweepPlan

OBJECTIVES, FRACTIONS = ["clip", "psd"], ["0.1", "1"]
SCORES = {("clip", "0.1"): [8.0, 12.0], ("clip", "1"): [20.0, 24.0], ("psd", "0.1"): [9.0, 13.0], ("psd", "1"): [30.0, 30.0]}
SAMPLES = {"0.1": [95.0, 105.0], "1": [1000.0, 1000.0]}  # of two seeds


def finals(**changes: Any) -> list[dict[str, Any]]:
    """Two seeds in each of the four cells; none where a cell is changed to nothing."""
    found = []
    for (name, fraction), scores in (SCORES | changes.pop("scores", {})).items():
        labels = {"objective.name": name, "data.fraction": f"fraction={fraction}"}
        for seed, score in enumerate(scores):
            samples = SAMPLES[fraction][seed]
            found.append(row(f"{name}, fraction={fraction}", "final", 0, seed, score, train_samples=samples, **labels))
    return found


def crossed(fractions: list[str] = FRACTIONS) -> dict[str, Any]:
    """What sweep.json says of it."""
    labels = [f"fraction={fraction}" for fraction in fractions]
    axes = [
        {"key": "objective.name", "title": "objective", "labels": OBJECTIVES},
        {"key": "data.fraction", "title": "fraction", "labels": labels},
    ]
    cells = [{"cell": f"{name}, {label}", "labels": [name, label]} for name in OBJECTIVES for label in labels]
    return {"axes": axes, "cells": cells, "space": [], "seeds": [0, 1]}


def test_score_is_charted_against_training_samples_on_a_logarithmic_axis(tmp_path: Path) -> None:
    part = section(page_of(tmp_path, finals(), **crossed()), "scaling")
    lines = part.all("path", "scaling")
    assert [line.text for line in lines] == OBJECTIVES
    # Means of samples and of scores: 100 and 1000; 10 and 22, 11 and 30.
    dots = {dot.text: dot.attributes for dot in part.all("circle")}
    assert list(dots) == [
        "clip, training samples 100, fraction 0.1: 10.0",
        "clip, training samples 1,000, fraction 1: 22.0",
        "psd, training samples 100, fraction 0.1: 11.0",
        "psd, training samples 1,000, fraction 1: 30.0",
    ]
    # Lines, and bars of their intervals; equal scores have none.
    assert len(paths(part, "m0")) == 1 + 2 and len(paths(part, "m1")) == 1 + 1
    # Upwards by the score, with one scale for all.
    heights = [float(found["cy"]) for found in dots.values()]
    assert (heights[0] - heights[1]) / (heights[2] - heights[3]) == pytest.approx(12 / 19, abs=0.01)
    assert table_rows(part.all("table")[0]) == [["clip", "10.0 (2.8)", "22.0 (2.8)"], ["psd", "11.0 (2.8)", "30.0 (0.0)"]]
    assert "by chance 0.4" in plain(part)  # of 0.3 and 0.5


def test_a_fraction_in_between_lies_where_its_logarithm_does(tmp_path: Path) -> None:
    trials = finals() + [
        row(
            f"{name}, fraction=0.3",
            "final",
            0,
            0,
            15.0,
            train_samples=300.0,
            **{"objective.name": name, "data.fraction": "fraction=0.3"},
        )
        for name in OBJECTIVES
    ]
    part = section(page_of(tmp_path, trials, **crossed(["1", "0.1", "0.3"])), "scaling")  # in whatever order
    x = [float(dot.attributes["cx"]) for dot in part.all("circle") if dot.text.startswith("clip")]
    assert x == sorted(x)
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(math.log10(3), abs=0.01)


@pytest.mark.parametrize(
    ("trials", "changes"),
    [
        (finals(), crossed() | {"axes": crossed()["axes"][:1]}),
        (finals(scores={("clip", "1"): [], ("psd", "1"): []}), crossed()),
        ([trial | {"train_samples": math.nan} for trial in finals()], crossed()),  # of an earlier version
        ([], crossed() | {"state": "running"}),
    ],
    ids=["no-fractions", "one-fraction-so-far", "not-counted", "nothing-yet"],
)
def test_there_is_no_chart_of_fewer_than_two_fractions(tmp_path: Path, trials: list[Any], changes: dict[str, Any]) -> None:
    page = page_of(tmp_path, trials, [] if not trials else None, **changes)
    assert "Score against data" not in plain(page)


def test_the_mean_of_all_recalls_has_its_chance_and_its_name(tmp_path: Path) -> None:
    metric = "retrieval/emoji/mean_recall"
    score = {"title": metric, "metrics": [metric], "mode": "max"}
    trials = [trial | mean_recalls({I2T: trial[I2T], T2I: trial[T2I]}) for trial in finals()]
    part = section(page_of(tmp_path, trials, **crossed(), score=score, metrics=[metric]), "scaling")
    assert "mean of all recalls" in plain(part) and "by chance 0.4" in plain(part)


# What is trained


@pytest.fixture
def plan_of(tiny_dataset: Prepared, tmp_path: Path) -> Callable[..., SweepPlan]:
    """The plan of a sweep over fractions of 96 emojis."""
    base = tmp_path / "base.yaml"
    tree = {"name": "b", "data": {"path": str(tiny_dataset.path)}, "embed_dim": 8, "epochs": 2, "global_batch_size": 4}
    tree |= {"image_tower": {"name": "conv", "image_size": 32}, "text_tower": {"name": "bag"}}
    base.write_text(yaml.safe_dump(tree))

    def make(**keys: Any) -> SweepPlan:
        tree = {"name": "s", "storage": str(tmp_path), "base": str(base), "grid": {"data.fraction": [0.3, 1]}, "seeds": [0, 1, 2]}
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree | keys))
        return SweepPlan(load(SweepSettings, tmp_path / "sweep.yaml"))

    return make


def test_a_budget_of_samples_gives_every_fraction_of_every_seed_as_many_steps(plan_of: Callable[..., SweepPlan]) -> None:
    """A seed's fraction is smaller or larger than another's; all train until they have seen as much."""
    from training.data import make_order

    plan = plan_of(budget={"samples": 1000})
    (prepared,) = plan.prepared.values()
    steps_per_epoch = set()
    for cell in plan.cells:
        for seed in (0, 1, 2):
            settings = plan.build(plan.example(cell, "final", seed=seed))
            order = make_order(settings, prepared)
            seen = settings.epochs * order.steps_per_epoch * 4
            assert 1000 <= seen < 1000 + order.steps_per_epoch * 4
            steps_per_epoch.add(order.steps_per_epoch)
    assert len(steps_per_epoch) > 2


def test_a_fraction_that_is_too_small_with_any_seed_is_refused_before_the_first_trial(plan_of: Callable[..., SweepPlan]) -> None:
    with refused("grid.data.fraction", "0.05", "seed=", remedy="overrides.global_batch_size="):
        plan_of(grid={"data.fraction": [0.05, 1]}, seeds=list(range(12)))


def test_a_base_that_tests_its_chosen_checkpoint_is_tested_by_the_sweep_alone(plan_of: Callable[..., SweepPlan]) -> None:
    """The search sees the validation split, the seeds' runs the test split, and no run looks at both."""
    chosen = {"evaluation.split": "validation", "evaluation.test_split": "test", "data.validation": 0.2}
    chosen |= {"checkpoint.best": "retrieval/openmoji/mean_recall"}
    plan = plan_of(overrides=chosen, space={"optimizer.lr": {"low": 1e-4, "high": 1e-2}}, grid={"data.fraction": [0.9, 1]})
    for phase, split in (("search", "validation"), ("final", "test")):
        evaluation = plan.build(plan.example(plan.cells[0], phase)).evaluation
        assert (evaluation.split, evaluation.test_split) == (split, None)
    assert plan.test_split == "test"
