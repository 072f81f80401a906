"""Choose a checkpoint on validation, test it once: the choice and its test score are the same, whatever interrupts the run.

Runs of coloured squares in this process, and one run through Ray Train.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluation.metrics import mean_recalls
from evaluation.suite import score
from pipelines.dataset.stream import Worker
from pipelines.features.rows_by_id import feature_rows
from pipelines.program.display import Display
from pipelines.program.settings import difference
from tests.refusals import refused
from tests.training.squares import TEST, planner, write_root
from tests.training.test_report import read
from training import final_test
from training.checkpoint import load_encoder
from training.config import TrainSettings
from training.final_test import score_chosen
from training.in_process import fit_inline
from training.metrics_file import read_metrics
from training.metrics_log import Recorder
from training.plan import Plan
from training.run import run

METRIC = "retrieval/squares/mean_recall"
ALONE = Worker(0, 1, torch.device("cpu"), 1.0)
CHOOSING: dict[str, Any] = {
    "data__validation": 0.4,
    "evaluation__split": "validation",
    "evaluation__test_split": "test",
    "evaluation__every_epochs": 1,
    "checkpoint": {"best": METRIC, "keep": 1},
    "epochs": 6,
    "optimizer__lr": 0.05,  # high: the best step is not the last
}


class ProcessDiedError(Exception):
    """The process dies."""


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    root = tmp_path_factory.mktemp("chosen")
    write_root(root)
    make = planner(root)
    return lambda **changes: make(**CHOOSING | changes)


def fit(plan: Plan, folder: Path, until: int | None = None) -> None:
    """To the end, or until the process dies after the report of a step."""
    folder.mkdir(exist_ok=True)

    def hear(line: dict[str, Any]) -> None:
        if line["step"] == until:
            raise ProcessDiedError

    try:
        fit_inline(plan, folder, hear)
    except ProcessDiedError:
        assert until is not None


@pytest.fixture(scope="module")
def straight(plan_of: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A run that nothing interrupts."""
    plan, folder = plan_of(), tmp_path_factory.mktemp("straight")
    fit(plan, folder)
    return plan, folder


def validation_curve(folder: Path) -> dict[int, float]:
    """Step -> mean over both directions and all k, by hand."""
    found = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        recalls = [value for name, value in line.items() if "_recall@" in name]
        if recalls:
            assert len(recalls) == 4  # two directions, k = 1 and 2
            found[line["step"]] = sum(recalls) / 4
    return found


def test_of(plan: Plan, checkpoint: Path) -> dict[str, float]:
    """Test scores of a checkpoint's heads on the locked towers' features."""
    encoder = load_encoder(checkpoint).encoder
    ids = plan.stream.prepared.split_ids()["test"]
    assert plan.test is not None and plan.test.images.image_features is not None and plan.test.text_features is not None
    rows = [feature_rows(plan.test.images.image_features)[ids], feature_rows(plan.test.text_features)[ids]]
    rows.append(feature_rows(plan.test.prompt_features))
    heads = [encoder.image_head, encoder.text_head, encoder.text_head]
    with torch.inference_mode():
        made = [F.normalize(h(torch.from_numpy(r.astype(np.float32))), dim=1).numpy() for h, r in zip(heads, rows, strict=True)]
    return score(plan.test.data, *made).metrics


test_of.__test__ = False  # type: ignore[attr-defined]


def test_the_best_of_the_validation_scores_is_tested_and_no_other(straight: tuple[Plan, Path]) -> None:
    plan, folder = straight
    curve = validation_curve(folder)
    best = max(curve, key=lambda step: curve[step])  # the first of equals
    assert len(curve) == 6 and best != max(curve), "a run whose last step is the best would show nothing"
    found = score_chosen(plan, folder, ALONE)
    assert (found["step"], found["metric"], found["split"], found["chosen_on"]) == (best, METRIC, "test", "validation")
    assert found["value"] == pytest.approx(curve[best]) and found["samples"] == TEST
    mine, last = test_of(plan, folder / "best"), test_of(plan, max(folder.glob("checkpoint_*")))
    assert found["metrics"] == pytest.approx(mine | mean_recalls(mine))
    assert mine != pytest.approx(last), "the last weights would score the same"


def test_the_test_split_has_no_part_in_training_or_choosing(straight: tuple[Plan, Path]) -> None:
    plan, _ = straight
    assert plan.test is not None
    test = set(plan.test.data.sample_ids.tolist())
    assert test == set(plan.stream.prepared.split_ids()["test"].tolist())
    assert not test & set(plan.order.ids.tolist()) and not test & set(plan.held_out.sample_ids.tolist())


@pytest.mark.parametrize("until", [1, 2, 5, 9])
def test_a_run_that_was_killed_chooses_and_tests_the_same(
    plan_of: Callable[..., Plan], straight: tuple[Plan, Path], tmp_path: Path, until: int
) -> None:
    fit(plan_of(), tmp_path, until)
    fit(plan_of(), tmp_path)
    assert (tmp_path / "best" / "best.json").read_text() == (straight[1] / "best" / "best.json").read_text()
    assert score_chosen(plan_of(), tmp_path, ALONE) == score_chosen(*straight, ALONE)


def test_a_best_checkpoint_that_was_not_copied_in_time_is_not_forgotten(
    plan_of: Callable[..., Plan], straight: tuple[Plan, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies after it has written the checkpoint that will be the best, and before it is kept as such."""
    curve = validation_curve(straight[1])
    best = max(curve, key=lambda step: curve[step])
    keep = Recorder.keep_best

    def die(self: Recorder, line: dict[str, Any], checkpoint: Any) -> None:
        if line["step"] == best:
            raise ProcessDiedError
        keep(self, line, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "keep_best", die)
        fit(plan_of(), tmp_path, until=-1)
    fit(plan_of(), tmp_path)
    assert (tmp_path / "best" / "best.json").read_text() == (straight[1] / "best" / "best.json").read_text()


def test_a_best_checkpoint_between_two_names_is_not_lost(
    plan_of: Callable[..., Plan], straight: tuple[Plan, Path], tmp_path: Path
) -> None:
    """The process dies when the old one has been put aside and the new one is not in its place."""
    folder = tmp_path / "run"
    shutil.copytree(straight[1], folder)
    (folder / "best").rename(folder / "best.old")
    fit(plan_of(), folder)
    assert (folder / "best" / "best.json").read_text() == (straight[1] / "best" / "best.json").read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"checkpoint": {}}, ["'test'", "checkpoint.best"]),
        ({"checkpoint": {"best": "loss", "mode": "min"}}, ["'test'", "checkpoint.best"]),
        ({"evaluation__split": "test"}, ["'test'"]),
        ({"evaluation__test_split": "train"}, ["'train'"]),
        ({"evaluation__test_split": "dev"}, ["'dev'", "train, test, validation"]),
    ],
    ids=["no-metric", "loss", "chosen-on", "trained-on", "unknown"],
)
def test_what_would_be_no_test_is_refused(plan_of: Callable[..., Plan], changes: dict[str, Any], named: list[str]) -> None:
    with refused("evaluation.test_split", *named):
        plan_of(**changes)


def test_the_choosing_metric_identifies_a_run_that_tests(plan_of: Callable[..., Plan]) -> None:
    """Without a test split it may change when a run resumes, like the other keys of checkpoints."""
    other = {"best": "retrieval/squares/mean_recall@1", "keep": 1}
    tested = [plan_of(**changes).settings.identity() for changes in ({}, {"checkpoint": other})]
    untested = [plan_of(evaluation__test_split=None, **c).settings.identity() for c in ({}, {"checkpoint": other})]
    assert len(difference(*tested)) == 1 and difference(*untested) == []


# Through Ray Train


def test_one_command_trains_chooses_and_tests_once(chosen: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chosen.storage / chosen.name
    result = json.loads((folder / "result.json").read_text())
    test = result["test"]
    lines = [line | mean_recalls(line) for line in read_metrics(folder / "metrics.jsonl")]
    curve = {line["step"]: line[test["metric"]] for line in lines if test["metric"] in line}
    assert len(curve) == 3 and test["value"] == max(curve.values()) and curve[test["step"]] == test["value"]
    assert test["samples"] == test["sample_sizes"]["retrieval/openmoji/image_to_text_recall@1"]
    assert result["dataset"]["held_out_samples"] != test["samples"]
    # The page says both, and which is which.
    page = read(folder / "report.html")
    (section,) = (s for s in page.all("section") if s.attributes.get("id") == "test")
    assert f"{test['metrics']['retrieval/openmoji/mean_recall']:.1f}" in section.text
    assert "on split validation the one at step" in section.text and "split test" in section.text
    assert f"{test['metrics']['retrieval/openmoji/mean_recall@1']:.1f} %" in page.all("h1")[0].text.replace("\xa0", " ")
    # Killed before its result was written, it resumes without scoring the test split again.
    (folder / "result.json").unlink()

    def again(*_: Any) -> None:
        raise AssertionError("tested twice")

    monkeypatch.setattr(final_test, "run_workers", again)
    assert run(chosen, Display(quiet=True))["test"] == test
