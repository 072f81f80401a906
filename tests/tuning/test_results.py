"""Tables of a sweep's folder: rows, columns, types, and scores that are worked out anew."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.dataset.prepared import Prepared
from tests.tuning.trainer import line, settings
from tuning import results
from tuning.config import SweepSettings
from tuning.results import about_of, dataset_of, write_about, write_tables
from tuning.trials import Folder, Outcome, Trial, cells_of

SCORE = ["m/a", "m/b"]
SPACE = {
    "optimizer.lr": {"low": 1e-4, "high": 1, "log": True},
    "head.name": {"choices": ["linear", "mlp"]},
    "objective.temperature": {"low": 0.01, "high": 1, "when": {"objective.name": "clip"}},
}
LR, TEMPERATURE = {"low": 1e-4, "high": 1.0, "log": True}, {"low": 0.01, "high": 1.0, "log": False}
START = ["trial", "cell", "phase", "point", "seed", "objective.name", "optimizer.name", *SPACE]
END = ["status", "reason", "split", "score", "train_samples"]
FOUND = [{"kind": kind, "evidence": "e", "advice": "a"} for kind in ("overfitting", "idle input")]
END += ["epochs", "samples", "seconds", "peak_memory_gib", "loss", "started", "findings", "command"]


def put(folder: Folder, trial: Trial, lines: Sequence[dict[str, Any]] = (), outcome: Outcome | None = None) -> Trial:
    """What a trial leaves."""
    folder.begin(trial)
    text = "".join(json.dumps(entry) + "\n" for entry in lines)
    (folder.of(trial.name) / "metrics.jsonl").write_text(text)
    if outcome is not None:
        folder.end(trial.name, outcome)
    return trial


def tables(
    folder: Folder, sweep: SweepSettings, trials: Sequence[Trial], score: Sequence[str] = SCORE, test_split: str = "test"
) -> tuple:
    """As the sweep writes them, read back."""
    cells = cells_of(sweep)
    by_label = {cell.label: cell for cell in cells}
    overrides = {trial.name: trial.overrides(sweep, by_label[trial.cell], {"epochs": 2}) for trial in trials}
    write_tables(folder, sweep, cells, trials, overrides, score, test_split)
    assert not [path.name for path in folder.path.iterdir() if "partial" in path.name]
    return pd.read_parquet(folder.path / "trials.parquet"), pd.read_parquet(folder.path / "curves.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def sweep() -> SweepSettings:
    return settings(space=SPACE, base="configs/base.yaml", overrides={"data.validation": 0.2}, validation="validation")


@pytest.fixture
def trials(folder: Folder) -> list[Trial]:
    """Of each kind one: finished, stopped, failed, running, failed before its first line, and a seed's run."""

    def trial(point: int, params: dict[str, Any], cell: str = "clip, sgd", phase: Any = "search", seed: int = 0) -> Trial:
        return Trial(cell, phase, point, seed, params, {}, cell.replace(", ", "-"))

    both = [line(1, 10), line(2, 20)]
    found = [
        put(
            folder,
            trial(0, {"optimizer.lr": 0.1, "head.name": "mlp", "objective.temperature": 0.07}),
            both,
            # Not its curve's last scores: those of the embeddings that were kept.
            Outcome("finished", "", False, {"m/a": 31.0, "m/b": 29.0, "zero/c": 7.0}, 2.0, 200, 3.5, 0.5, 0.75),
        ),
        put(
            folder,
            trial(1, {"optimizer.lr": 0.2, "head.name": "linear", "objective.temperature": 0.05}),
            both[:1],
            Outcome("stopped", "by asha after 1 epochs", False, {"m/a": 11.0, "m/b": 9.0}, 1.0, 100, 1.0, 1.0, 0.5),
        ),
        put(
            folder,
            trial(0, {"optimizer.lr": 0.9, "head.name": "mlp"}, "vicreg, adamw"),
            [{key: value for key, value in line(1.5, 4).items() if key != "m/b"}],
            Outcome("failed", "the loss is nan at step 9", True, {"m/a": 5.0}, 1.5, 150, 1.5, 1.0, 0.5),
        ),
        put(folder, trial(1, {"optimizer.lr": 0.3, "head.name": "mlp"}, "vicreg, adamw"), both),
        put(folder, trial(2, {"optimizer.lr": 0.4, "head.name": "mlp"}, "vicreg, adamw"), [], Outcome("failed", "lost")),
        put(
            folder,
            trial(0, {"optimizer.lr": 0.1, "head.name": "mlp", "objective.temperature": 0.07}, phase="final", seed=1),
            both,
            Outcome("finished", "", False, {"m/a": 41.0, "m/b": 39.0, "zero/c": 8.0}, 2.0, 200, 3.5, 0.5, 0.75, findings=FOUND),
        ),
    ]
    return found


def test_a_row_a_trial_with_its_columns_in_order(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    table, _ = tables(folder, sweep, trials)
    assert list(table) == [*START, *END, "m/a", "m/b", "zero/c"]
    assert list(table["findings"]) == ["", "", "", "", "", "overfitting, idle input"]
    assert table["trial"].tolist() == [
        *("clip-sgd-p0", "clip-sgd-p1", "vicreg-adamw-p0", "vicreg-adamw-p1", "vicreg-adamw-p2"),
        "clip-sgd-p0-seed1",
    ]
    assert table["objective.name"].tolist() == ["clip", "clip", "vicreg", "vicreg", "vicreg", "clip"]
    assert table["optimizer.name"].tolist() == ["sgd", "sgd", "adamw", "adamw", "adamw", "sgd"]
    assert table["cell"].tolist() == [trial.cell for trial in trials]
    assert table["phase"].tolist() == ["search"] * 5 + ["final"]
    assert table["point"].tolist() == [0, 1, 0, 1, 2, 0] and table["seed"].tolist() == [0] * 5 + [1]
    assert table["split"].tolist() == ["validation"] * 5 + ["test"]


def test_how_each_trial_ended(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    table, _ = tables(folder, sweep, trials)
    assert table["status"].tolist() == ["finished", "stopped", "failed", "running", "failed", "finished"]
    assert table["reason"].tolist() == ["", "by asha after 1 epochs", "the loss is nan at step 9", "", "lost", ""]
    # A score is the mean of all its metrics, or none. A trial that runs shows how far it has come.
    assert [round(v, 9) for v in table["score"].fillna(-1)] == [30, 10, -1, 20, -1, 40]
    assert table["m/b"].fillna(-1).tolist() == [29, 9, -1, 19, -1, 39]
    assert table["zero/c"].fillna(-1).tolist() == [7, -1, -1, -1, -1, 8]
    assert table["epochs"].fillna(-1).tolist() == [2, 1, 1.5, 2, -1, 2]
    assert table["samples"].fillna(-1).tolist() == [200, 100, 150, 200, -1, 200]
    assert table["seconds"].fillna(-1).tolist() == [3.5, 1, 1.5, 2, -1, 3.5]
    assert table["loss"].fillna(-1).tolist() == [0.5, 1, 1, 1, -1, 0.5]
    assert table["peak_memory_gib"].fillna(-1).tolist() == [0.75, 0.5, 0.5, 0.5, -1, 0.75]


def test_columns_have_types_that_a_table_can_be_worked_with(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    table, curves = tables(folder, sweep, trials)
    whole = ("point", "seed")
    numbers = ("score", "epochs", "samples", "seconds", "peak_memory_gib", "loss", "started", "m/a", "zero/c")
    searched = ("optimizer.lr", "objective.temperature")
    assert all(pd.api.types.is_integer_dtype(table[name]) for name in whole)
    assert all(pd.api.types.is_float_dtype(table[name]) for name in (*numbers, *searched))
    assert all(isinstance(v, str) for name in ("trial", "cell", "phase", "status", "reason", "command") for v in table[name])
    assert table["optimizer.lr"].tolist() == [0.1, 0.2, 0.9, 0.3, 0.4, 0.1]
    assert table["head.name"].tolist() == ["mlp", "linear", "mlp", "mlp", "mlp", "mlp"]
    # VICReg has no temperature.
    assert table["objective.temperature"].isna().tolist() == [False, False, True, True, True, False]
    assert pd.api.types.is_float_dtype(curves["score"]) and pd.api.types.is_float_dtype(curves["epoch"])


def test_the_csv_says_the_same(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    table, _ = tables(folder, sweep, trials)
    read = pd.read_csv(folder.path / "trials.csv").fillna({"reason": "", "findings": ""})
    pd.testing.assert_frame_equal(read, table, check_dtype=False)


def test_the_command_is_of_exactly_this_trial(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    table, _ = tables(folder, sweep, trials)
    assert set(shlex.split(table["command"][0])) == {
        *("python", "-m", "training", "configs/base.yaml", "name=clip-sgd-p0"),
        *("data.validation=0.2", "objective.name=clip", "optimizer.name=sgd", "epochs=2", "seed=0"),
        *("optimizer.lr=0.1", "head.name=mlp", "objective.temperature=0.07", "evaluation.split=validation"),
    }
    final = shlex.split(table["command"][5])
    assert "seed=1" in final and "name=clip-sgd-p0-seed1" in final
    assert not [word for word in final if word.startswith("evaluation.split")]


def test_a_final_row_says_the_split_that_the_sweep_names(folder: Folder, trials: list[Trial]) -> None:
    sweep = settings(space=SPACE, validation="val")
    table, _ = tables(folder, sweep, trials, test_split="dev")
    assert table["split"].tolist() == ["val"] * 5 + ["dev"]


def test_started_is_when_the_trial_was_noted(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    os.utime(folder.of("clip-sgd-p1") / "trial.json", (1.7e9, 1.6e9))
    table, _ = tables(folder, sweep, trials)
    assert table["started"][1] == 1.6e9


def test_the_score_is_worked_out_when_the_table_is_made(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    """By the metrics that count today, also in what was trained before; curves too."""
    table, curves = tables(folder, sweep, trials, ["m/b"])
    assert table["score"].fillna(-1).tolist() == [29, 9, -1, 19, -1, 39]
    assert curves["score"].tolist()[:2] == [9, 19]
    table, _ = tables(folder, sweep, trials, ["zero/c", "m/a", "m/b"])
    assert [round(v, 9) for v in table["score"].fillna(-1)] == [round(67 / 3, 9), -1, -1, -1, -1, round(88 / 3, 9)]


def test_curves_are_the_evaluations_of_every_trial(folder: Folder, sweep: SweepSettings, trials: list[Trial]) -> None:
    mixed = [
        {key: value for key, value in line(0.5, 0).items() if "/" not in key},  # a line without scores
        line(1, 10) | {"x/image_to_text_recall@1": 10.0, "x/text_to_image_recall@1": 30.0, "lr": 0.1},
    ]
    put(folder, trials[3], mixed)
    _, curves = tables(folder, sweep, trials)
    names = ["x/image_to_text_recall@1", "x/text_to_image_recall@1", "x/mean_recall@1", "x/mean_recall"]
    assert set(curves) == {"trial", "epoch", "samples", "loss", "score", "m/a", "m/b", *names}
    assert curves["trial"].value_counts().to_dict() == {
        **{"clip-sgd-p0": 2, "clip-sgd-p1": 1, "vicreg-adamw-p0": 1, "vicreg-adamw-p1": 1, "clip-sgd-p0-seed1": 2}
    }
    first = curves[curves["trial"] == "clip-sgd-p0"]
    assert first["epoch"].tolist() == [1, 2] and first["samples"].tolist() == [100, 200]
    assert first["m/a"].tolist() == [11, 21] and first["score"].tolist() == [10, 20] and first["loss"].tolist() == [1, 1]
    (running,) = curves[curves["trial"] == "vicreg-adamw-p1"].to_dict("records")
    assert [running[name] for name in names] == [10, 30, 20, 20]
    # Half of a score is none.
    assert curves[curves["trial"] == "vicreg-adamw-p0"]["score"].isna().all()


def test_before_the_first_trial_there_are_empty_tables(folder: Folder, sweep: SweepSettings) -> None:
    table, curves = tables(folder, sweep, [])
    assert list(table) == [*START, *END] and len(table) == 0
    assert list(curves) == ["trial", "epoch", "samples", "loss", "score"] and len(curves) == 0


def test_choices_of_several_kinds_become_words(folder: Folder) -> None:
    """One column has one type; a choice of null is none of the kind."""
    space = {"k": {"choices": [0.5, "auto", [1, 2], None, True]}, "flag": {"choices": [True, False]}}
    sweep = settings(grid={}, space=space)
    flags: list[Any] = [True, False, True, False, True]
    values: list[Any] = space["k"]["choices"]
    trials = [
        put(folder, Trial("all", "search", i, 0, {"k": value, "flag": flag}, {}, "all"))
        for i, (value, flag) in enumerate(zip(values, flags, strict=True))
    ]
    table, _ = tables(folder, sweep, trials)
    column = table["config.k"]
    assert column.tolist()[:3] == ["0.5", "auto", "[1, 2]"] and column.isna().tolist()[3] and column[4] == "True"
    assert table["config.flag"].astype(str).tolist() == ["True", "False", "True", "False", "True"]


@pytest.mark.parametrize("part", ["grid", "space"])
def test_an_axis_may_be_called_like_a_column(folder: Folder, part: str) -> None:
    """What twice the epochs bring is a question that a sweep is made for."""
    both: dict[str, Any] = {"grid": {"epochs": [10, 20]}, "space": {"epochs": {"choices": [10, 20]}}}
    sweep = settings(**{"grid": {}, "space": {}, "trials": None, part: both[part]})
    done = Outcome("finished", "", False, {"m/a": 1.0, "m/b": 1.0}, 10.0, 1000, 1.0, 1.0, 1.0)
    trials = [put(folder, Trial(cell.label, "final", 0, 0, {}, {}, str(i)), [], done) for i, cell in enumerate(cells_of(sweep))]
    table, _ = tables(folder, sweep, trials)
    assert len(table) == len(trials) and table.columns.is_unique


# sweep.json


def test_what_is_known_of_a_sweep_before_it_runs(folder: Folder) -> None:
    sweep = settings(
        space=SPACE | {"optimizer.weight_decay": [{"choices": [0.1]}, {"low": 0, "high": 1, "when": {"optimizer.name": "x"}}]},
        sampler={"name": "random"},
        scheduler={"name": "asha"},
        seeds=[3, 5],
        seed_keys=["seed", "data.split_seed"],
        mode="min",
    )
    folder.path.mkdir(exist_ok=True)
    write_about(folder, about_of(sweep, cells_of(sweep), [{"objective": {"name": "clip"}}] * 4, SCORE))
    about = json.loads((folder.path / "sweep.json").read_text())
    assert about["name"] == "s"
    assert about["axes"] == [
        {"key": "objective.name", "title": "objective", "labels": ["clip", "vicreg"]},
        {"key": "optimizer.name", "title": "optimizer", "labels": ["adamw", "sgd"]},
    ]
    assert about["cells"] == [
        {
            "cell": f"{objective}, {optimizer}",
            "labels": [objective, optimizer],
            "ranges": {"optimizer.lr": LR, "objective.temperature": TEMPERATURE},
        }
        for objective in ("clip", "vicreg")
        for optimizer in ("adamw", "sgd")
    ]
    assert about["space"] == [
        {"key": "optimizer.lr", "title": "lr", "log": True, "choices": None},
        {"key": "head.name", "title": "head", "log": False, "choices": ["linear", "mlp"]},
        {"key": "objective.temperature", "title": "temperature", "log": False, "choices": None},
        {"key": "optimizer.weight_decay", "title": "weight decay", "log": False, "choices": [0.1]},
    ]
    assert about["score"] == {"title": "Average", "metrics": SCORE, "mode": "min"}
    assert about_of(sweep, [], [], ["m/a"])["score"]["title"] == "m/a"
    assert (about["seeds"], about["seed_keys"]) == ([3, 5], ["seed", "data.split_seed"])
    assert (about["sampler"], about["scheduler"]) == ("random", "asha")
    assert about["settings"]["space"]["optimizer.lr"][0]["low"] == 1e-4 and about["settings"]["base"] == "base.yaml"
    assert {"python", "ray", "torch", "optuna", "raylign"} <= about["versions"].keys()
    assert about["machine"].keys() == {"cpus", "processor"}


def test_a_sweep_without_axes_and_space_is_told_too() -> None:
    sweep = settings(grid={}, space={}, trials=None)
    about = about_of(sweep, cells_of(sweep), [{}], ["m/a"])
    assert (about["axes"], about["space"], about["cells"]) == ([], [], [{"cell": "all", "labels": [], "ranges": {}}])


@pytest.mark.parametrize(
    ("space", "low"),
    [
        ([{"low": 1e-4, "high": 1}], 1e-4),
        ([{"low": 1e-9, "high": 1, "when": {"a.name": "y"}}, {"low": 1e-4, "high": 1, "when": {"a.name": ["x", "z"]}}], 1e-4),
        ([{"low": 1e-4, "high": 1, "when": {"a.name": "x", "batch": 8}}], 1e-4),
        ([{"low": 1e-4, "high": 1, "when": {"a.name": "y"}}], None),
        ([{"choices": [1e-4, 1]}], None),
        ([{"low": 1e-4, "high": 1, "when": {"width": 8}}], None),  # of the rest of the point
    ],
)
def test_a_cell_knows_in_which_range_it_is_searched(space: list[dict[str, Any]], low: float | None) -> None:
    sweep = settings(grid={}, space={"width": {"choices": [8, 9]}, "lr": space})
    (cell,) = about_of(sweep, cells_of(sweep), [{"a": {"name": "x"}, "batch": 8, "width": 8}], ["m/a"])["cells"]
    expected = {} if low is None else {"config.lr": {"low": low, "high": 1.0, "log": False}}
    assert cell["ranges"] == expected


def test_baselines_are_of_the_first_seeds_run_that_has_a_result(folder: Folder, trials: list[Trial]) -> None:
    """A search's result is of the validation split: its sizes would be wrong beside scores of the test split."""
    assert results.baselines_and_sizes(folder, trials) == {"baselines": {}, "sample_sizes": {}}
    for trial, n in ((trials[0], 17), (trials[5], 33)):
        result = {"baselines": {"m/a": {"chance": 0.5}}, "sample_sizes": {"m/a": n}, "more": 1}
        (folder.of(trial.name) / "result.json").write_text(json.dumps(result))
    assert results.baselines_and_sizes(folder, trials) == {"baselines": {"m/a": {"chance": 0.5}}, "sample_sizes": {"m/a": 33}}


def test_what_is_said_of_the_data() -> None:
    manifest = {
        **{"name": "emoji", "fingerprint": "f" * 32, "licence": "CC0-1.0", "attribution": "A. Painter"},
        **{
            "counts": {"listed": 12, "found": 10, "read": 10, "kept": 9, "rejected": {"undecodable": 1}},
            "captions": {"shuffled": 4},
            "more": 1,
        },
    }
    assert dataset_of(Prepared(Path("/data/emoji"), manifest), 6, 1, 2) == {
        **{"name": "emoji", "path": "/data/emoji", "fingerprint": "f" * 32, "licence": "CC0-1.0", "attribution": "A. Painter"},
        **{"counts": manifest["counts"], "train_samples": 6, "validation_samples": 1, "test_samples": 2, "shuffled": 4},
    }
