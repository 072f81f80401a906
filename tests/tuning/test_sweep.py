"""Cells, names and statistics of a sweep, on tables with known answers."""

import math
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from tuning.config import SweepSettings
from tuning.sweep import _trial, summarize


def test_a_grid_is_crossed_in_its_order() -> None:
    settings = SweepSettings(name="s", base=Path("b.yaml"), grid={"a": [1, 2], "b.c": ["x", "y"]})
    assert settings.cells() == [{"a": 1, "b.c": "x"}, {"a": 1, "b.c": "y"}, {"a": 2, "b.c": "x"}, {"a": 2, "b.c": "y"}]
    assert SweepSettings(name="s", base=Path("b.yaml")).cells() == [{}]
    with pytest.raises(ValidationError, match="no values"):
        SweepSettings(name="s", base=Path("b.yaml"), grid={"a": []})


def test_a_trial_is_overrides_and_every_trial_has_its_own_folder() -> None:
    base = Path("training/configs/openmoji.yaml")
    settings = SweepSettings(name="s", base=base, overrides={"epochs": 2}, grid={"optimizer.lr": [1e-3, 1e-4]}, seeds=[3, 4])
    trials = [_trial(settings, cell, seed) for cell in settings.cells() for seed in settings.seeds]
    assert [(t.optimizer.lr, t.seed, t.data.split_seed, t.epochs) for t in trials] == [
        (1e-3, 3, 3, 2),
        (1e-3, 4, 4, 2),
        (1e-4, 3, 3, 2),
        (1e-4, 4, 4, 2),
    ]
    assert len({t.storage / t.name for t in trials}) == 4
    assert all(t.storage == Path("runs/s") for t in trials)


def test_means_and_deviations_are_of_finished_trials_and_by_cell() -> None:
    trials = pd.DataFrame(
        {
            "lr": [0.1, 0.1, 0.1, 0.2, 0.2],
            "status": ["finished", "finished", "failed", "finished", "failed"],
            "m/x": [1.0, 4.0, 100.0, 7.0, 9.0],
        }
    )
    summary = summarize(trials, ["lr"]).set_index("cell")
    assert summary.loc["0.1", "n"] == 2 and summary.loc["0.1", "mean"] == 2.5
    assert summary.loc["0.1", "sd"] == pytest.approx(math.sqrt(4.5))  # n - 1 below the sum of squares
    assert summary.loc["0.2", "n"] == 1 and summary.loc["0.2", "mean"] == 7.0 and math.isnan(summary.loc["0.2", "sd"])
