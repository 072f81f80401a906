"""Names, overrides, commands and outcomes of trials, and what a sweep's folder keeps of them."""

import json
import math
import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from pipelines.program.errors import UserError
from pipelines.program.settings import apply_overrides, load, parse_overrides, read_yaml, validate
from tests.tuning.trainer import NUMBERS, finished, line, settings
from training.config import TrainSettings
from tuning.trials import Cell, Folder, Outcome, Trial, cells_of, command, evaluations, outcome_of, result_of_point, score_of

BASE = Path(__file__).parents[2] / "training" / "configs" / "openmoji.yaml"
SEARCH = Trial("clip, sgd", "search", 3, 7, {"optimizer.lr": 0.0123}, {"optimizer.lr@1": 0.01234567}, "clip-sgd")
FINAL = Trial("clip, sgd", "final", 3, 2, {"optimizer.lr": 0.0123}, {}, "clip-sgd")


def crossed(*axes: list[Any]) -> list[Cell]:
    """Cells of a grid of axes called a.lr, b.lr, ..."""
    return cells_of(settings(grid={f"{name}.lr": values for name, values in zip("abc", axes, strict=False)}))


# Names


def test_cells_are_called_by_their_labels() -> None:
    cells = crossed(["clip", {"name": "psd", "soft_fraction": 0.5}], [0.1])
    assert [(cell.labels, cell.label) for cell in cells] == [
        (("clip", "lr=0.1"), "clip, lr=0.1"),
        (("psd", "lr=0.1"), "psd, lr=0.1"),
    ]
    assert cells[1].overrides == {"a.lr": {"name": "psd", "soft_fraction": 0.5}, "b.lr": 0.1}
    whole = cells_of(settings(grid={}))
    assert [(cell.labels, cell.label, cell.slug, cell.overrides) for cell in whole] == [((), "all", "all", {})]


def test_trials_are_called_by_cell_point_and_seed() -> None:
    assert (SEARCH.name, FINAL.name) == ("clip-sgd-p3", "clip-sgd-p3-seed2")


NASTY = ["a/b", "../..", ".hidden", "a b", "a\nb", "-rf", "a*?", "caf\u00e9", "", "\u65e5\u672c", "x=1", "x" * 40]


@pytest.mark.parametrize("value", NASTY, ids=ascii)
def test_names_are_safe_for_files_shells_and_runs(value: str) -> None:
    """A trial is a run too: its command gives a run this name."""
    (cell,) = crossed([value], ["adamw"])
    name = Trial(cell.label, "search", 0, 0, {}, {}, cell.slug).name
    assert "/" not in name and "\n" not in name and shlex.quote(name) == name and not name.startswith((".", "-"))
    load(TrainSettings, BASE, {"name": name})


@pytest.mark.parametrize("values", [[0.1, 3], [True, False], [None, 5], [[0.9, 0.98], [0.9, 0.999]], [1e-5, 0.001]], ids=str)
def test_a_grid_over_numbers_has_names_that_runs_can_have(values: list) -> None:
    for cell in crossed(values, ["adamw"]):
        load(TrainSettings, BASE, {"name": Trial("", "final", 0, 0, {}, {}, cell.slug).name})


@pytest.mark.parametrize(
    ("axes", "of"),
    [
        ([["x", "x-y"], ["y-z", "z"]], "slug"),
        ([["x", "x, y"], ["y, z", "z"]], "label"),
    ],
    ids=["hyphens", "commas"],
)
def test_no_two_cells_are_called_the_same(axes: list[list[str]], of: str) -> None:
    """Or the second would take the first one's results for its own."""
    try:
        names = [getattr(cell, of) for cell in crossed(*axes)]
    except UserError:
        return  # saying so is as good
    assert len(set(names)) == len(list(product(*axes)))


def test_characters_that_a_name_cannot_have_do_not_make_one_of_two_cells() -> None:
    for values in (["a b", "a_b", "a/b"], NASTY):
        assert len({cell.slug for cell in crossed(values, ["c"])}) == len(values)


def test_a_new_value_leaves_the_names_of_other_cells_alone() -> None:
    few, many = crossed(["clip", "a b"], ["sgd"]), crossed(["psd", "clip", "a_b", "a b"], ["adamw", "sgd"])
    assert {cell.label: cell.slug for cell in few}.items() <= {cell.label: cell.slug for cell in many}.items()


# Overrides and commands


def test_a_trials_overrides_go_from_the_general_to_the_particular() -> None:
    sweep = settings(
        overrides={"a": "all", "b": "all", "c": "all", "epochs": 1, "evaluation.split": "dev"},
        seed_keys=["seed", "data.split_seed"],
        validation="val",
    )
    cell = Cell(("x",), {"b": "cell", "c": "cell"})
    trial = Trial("x", "search", 0, 7, {"c": "point"}, {"c": "exact"}, "x")
    assert trial.overrides(sweep, cell, {"epochs": 20}) == {
        **{"a": "all", "b": "cell", "c": "point"},
        **{"seed": 7, "data.split_seed": 7},
        **{"epochs": 20, "evaluation.split": "val"},
    }
    # What is tested on is the training config's own matter.
    final = Trial("x", "final", 0, 3, {"c": "point"}, {}, "x").overrides(sweep, cell, {})
    assert final["evaluation.split"] == "dev" and final["seed"] == final["data.split_seed"] == 3 and final["epochs"] == 1


GIVEN: list[dict[str, Any]] = [
    {"optimizer.lr": 1e-5, "seed": 3, "clip_norm": None, "tensorboard": False},
    {"optimizer.lr": 0.1 + 0.2, "optimizer.weight_decay": 123456789.123456789},
    {"optimizer.name": "sgd", "optimizer.options": {"betas": [0.9, 0.98]}, "optimizer.momentum": 0.5},
    {"objective": {"name": "psd", "temperature": 0.03, "swap_directions": None}, "objective.soft_fraction": 0.25},
    {"objective.name": "sogclr", "objective.gamma": 0.5, "objective.temperature": 3e-05},
    {"evaluation.templates": ["a {} it's", 'say "{}" $HOME `ls` \\', "#{c}: caf\u00e9 {}", "- {}"]},
    {"evaluation.labels": [], "data.augment": None, "evaluation.split": "my split; rm -rf /"},
    {"data.path": "/data/with space/it's", "image_tower.weights": "package:a/b.pth", "checkpoint.best": "retrieval/x/mean@1"},
    {"evaluation.extra_datasets": [{"path": "data/coco", "labels": []}, {"path": "data/imagenet", "retrieval": False}]},
]


@pytest.mark.parametrize("overrides", GIVEN, ids=lambda given: "-".join(given))
def test_a_command_trains_the_same_run(overrides: dict[str, Any]) -> None:
    """Through a shell, the parser and the loader, to equal settings."""
    program, *typed = shlex.split(command(BASE, "trial-p0", overrides))
    assert [program, *typed[:3]] == ["python", "-m", "training", str(BASE)]
    direct = validate(TrainSettings, apply_overrides(read_yaml(BASE), overrides | {"name": "trial-p0"}, TrainSettings), "x")
    assert load(TrainSettings, typed[2], parse_overrides(typed[3:])) == direct


def test_a_command_keeps_small_numbers_whose_type_nobody_checks() -> None:
    """Options are passed on to an optimizer, to which '1e-08' is no number."""
    (typed,) = shlex.split(command(BASE, "t", {"optimizer.options": {"eps": 1e-8}}))[5:]
    assert parse_overrides([typed]) == {"optimizer.options": {"eps": 1e-8}}


@pytest.mark.parametrize("word", ["no", "on", "null", "12", "2026-01-01", "~", "a: b", "[a]", "#1", "'a'", ""])
def test_a_command_keeps_words_that_yaml_reads_as_something_else(word: str) -> None:
    """A split, a dataset's folder or an option may be called so."""
    (typed,) = shlex.split(command(BASE, "t", {"evaluation.split": word}))[5:]
    assert parse_overrides([typed]) == {"evaluation.split": word}


# Outcomes


def test_an_outcome_is_of_the_last_line_and_the_last_evaluation() -> None:
    lines = [
        {"epoch": 1.0, "samples": 10, "seconds": 2.0, "loss": 3.0, "peak_memory_gib": 0.75, "x/image_to_text_recall@1": 10.0},
        {"epoch": 1.5, "samples": 15, "seconds": 3.0, "loss": 2.5, "peak_memory_gib": 0.5},
        {
            **{"epoch": 2.0, "samples": 20, "seconds": 4.0, "loss": 2.0, "peak_memory_gib": 0.5},
            **{"x/image_to_text_recall@1": 20.0, "x/text_to_image_recall@1": 40.0, "zero/top1": 7.0},
        },
        {"epoch": 2.5, "samples": 25, "seconds": 5.0, "loss": 1.5, "peak_memory_gib": 0.625},
    ]
    scores = {"x/image_to_text_recall@1": 20.0, "x/text_to_image_recall@1": 40.0, "zero/top1": 7.0}
    scores |= {"x/mean_recall@1": 30.0, "x/mean_recall": 30.0}
    assert outcome_of("stopped", "why", lines) == Outcome("stopped", "why", False, scores, 2.5, 25, 5.0, 1.5, 0.75)
    assert [entry["epoch"] for entry in evaluations(lines)] == [1.0, 2.0]
    assert evaluations(lines)[1] == lines[2] | {"x/mean_recall@1": 30.0, "x/mean_recall": 30.0}
    early = outcome_of("failed", "nan", lines[1:2], diverged=True)
    assert early == Outcome("failed", "nan", True, {}, 1.5, 15, 3.0, 2.5, 0.5)
    last_skipped = outcome_of("finished", "", [lines[2], {k: v for k, v in lines[3].items() if k != "loss"}])
    assert (last_skipped.loss, last_skipped.epochs) == (2.0, 2.5), "the loss of the last step that counted"
    never = outcome_of("failed", "lost", [])
    assert (never.status, never.reason, never.metrics) == ("failed", "lost", {})
    assert all(math.isnan(getattr(never, name)) for name in NUMBERS)


def test_a_score_is_the_mean_of_the_named_metrics_and_of_nothing_less() -> None:
    assert score_of({"a": 1.0, "b": 4.0, "c": 100.0}, ["a", "b"]) == 2.5
    assert score_of({"a": 3.0}, ["a"]) == 3.0
    assert math.isnan(score_of({"a": 1.0}, ["a", "b"])) and math.isnan(score_of({"a": math.nan, "b": 1.0}, ["a", "b"]))


def test_what_the_sampler_is_told() -> None:
    curve = [line(1, 10), line(2, 20)]
    told = result_of_point(finished(30, seconds=12.0, peak_memory_gib=0.25), curve, ["m/a", "m/b"], None)
    assert told.values == (30, 0) and told.curve == [] and not told.diverged
    assert result_of_point(finished(30, seconds=12.0), curve, ["m/a", "m/b"], "seconds").values == (30, 12)
    assert result_of_point(finished(30, peak_memory_gib=0.25), curve, ["m/a"], "peak_memory_gib").values == (31, 0.25)
    stopped = result_of_point(Outcome("stopped"), curve, ["m/a", "m/b"], "seconds")
    assert stopped.values is None and stopped.curve == [(1, 10), (2, 20)] and not stopped.diverged
    for diverged in (False, True):
        failed = result_of_point(Outcome("failed", "x", diverged), curve, ["m/a"], None)
        assert failed.values is None and failed.curve == [] and failed.diverged is diverged


# The folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "sweep")


def fill(folder: Folder, trial: Trial) -> set[str]:
    """What training leaves beside trial.json; returns the names."""
    place = folder.of(trial.name)
    for name in ("checkpoint_00000010", "checkpoint_00000020", "partial-checkpoint_00000030-17"):
        (place / name).mkdir()
        (place / name / "state.safetensors").write_bytes(b"weights")
    text = "".join(json.dumps(entry) + "\n" for entry in (line(1, 10), line(2, 20)))
    (place / "metrics.jsonl").write_text(text + '{"step": 30, "ep')
    return {path.name for path in place.iterdir()}


def left(folder: Folder, trial: Trial) -> set[str]:
    return {path.name for path in folder.of(trial.name).iterdir()}


@pytest.mark.parametrize("trial", [SEARCH, FINAL], ids=["search", "final"])
@pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
def test_checkpoints_are_kept_of_seeds_runs_that_came_to_their_end(folder: Folder, trial: Trial, status: Any) -> None:
    folder.begin(trial)
    before = fill(folder, trial)
    folder.end(trial.name, Outcome(status, "why"))
    kept = before | {"outcome.json"}
    if trial.phase == "search" or status != "finished":
        kept = {"outcome.json", "trial.json", "metrics.jsonl"}
    assert left(folder, trial) == kept


def test_what_was_begun_and_how_it_ended_comes_back(folder: Folder) -> None:
    assert folder.begun(SEARCH.name) is None and folder.ended(SEARCH.name) is None and folder.curve(SEARCH.name) == []
    folder.begin(SEARCH)
    folder.begin(SEARCH)  # once more, as when it resumes
    assert folder.begun(SEARCH.name) == vars(SEARCH) and folder.ended(SEARCH.name) is None
    assert folder.of(SEARCH.name) == folder.path / "trials" / "clip-sgd-p3"
    fill(folder, SEARCH)
    so_far = folder.so_far(SEARCH.name)
    assert (so_far.status, so_far.epochs, so_far.metrics["m/a"]) == ("stopped", 2, 21)
    assert [entry["m/b"] for entry in folder.curve(SEARCH.name)] == [9, 19]
    outcome = Outcome("failed", "the loss is nan", True, {"m/a": 1.25}, 1.0, 100, 2.5)
    folder.end(SEARCH.name, outcome)
    found = folder.ended(SEARCH.name)
    assert found is not None and str(found) == str(outcome) and math.isnan(found.loss)
    assert not [name for name in left(folder, SEARCH) if "partial" in name]


def test_params_of_any_kind_come_back_as_they_were(folder: Folder) -> None:
    trial = Trial(
        "c", "search", 0, 0, {"a": None, "b": [0.9, 0.98], "c": {"name": "x"}, "d": 0.1 + 0.2, "e": "caf\u00e9"}, {}, "c"
    )
    folder.begin(trial)
    found = folder.begun(trial.name)
    assert found is not None and found["params"] == trial.params
