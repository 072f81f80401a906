"""The recipe for fine-tuned retrieval: its settings, and runs of it at toy size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.settings import load
from tests.pipelines.rows import write_karpathy
from tests.training.conftest import SMALL
from tests.training.test_report import read
from tests.tuning.pages import section
from training.config import TrainSettings
from training.run import run

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "training" / "configs" / "finetune-retrieval.yaml"


def test_the_recipe_chooses_by_the_mean_of_six_recalls_and_tests_elsewhere() -> None:
    settings = load(TrainSettings, RECIPE)
    assert settings.evaluation.recall_at == (1, 5, 10) and settings.checkpoint.best is not None
    assert settings.checkpoint.best.endswith("/mean_recall") and settings.checkpoint.mode == "max"
    assert (settings.data.split, settings.evaluation.split, settings.evaluation.test_split) == ("train", "val", "test")
    prepared = load(PrepareSettings, ROOT / "pipelines" / "configs" / "coco-finetune.yaml")
    assert (prepared.output, prepared.splits) == (settings.data.path, "source")
    assert settings.checkpoint.best == f"retrieval/{prepared.source.title()}/mean_recall"
    assert settings.objective.needs.ids, "images' other captions are no negatives"
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.weight_decay, settings.global_batch_size, settings.epochs) == (1e-5, 0.1, 256, 10)
    assert settings.schedule.name == "cosine" and settings.data.augment is not None  # null: always the first caption


def test_one_command_starts_from_pretrained_halves(chosen: TrainSettings, tiny_dataset: Prepared) -> None:
    """With almost no learning rate the recipe embeds like the run that it starts from: no part of it begins at random."""
    start = chosen.storage / chosen.name
    halves = {"name": "run", "path": str(start)}
    settings = load(
        TrainSettings,
        RECIPE,
        {
            **SMALL,
            "storage": str(start.parent),
            "data.path": str(tiny_dataset.path),
            "data.validation": 0.3,
            "evaluation.split": "validation",
            "image_tower": halves | {"image_size": 32},
            "text_tower": halves | {"max_tokens": 16},
            "epochs": 1,
            "precision": "fp32",
            "optimizer.lr": 1e-12,
            "checkpoint.best": "retrieval/openmoji/mean_recall",
        },
    )
    result = run(settings, Display(quiet=True))
    # What it scored before the first step is what the start scores, and the page says so beside the end.
    page = read(start.parent / settings.name / "report.html")
    names = {path for path in result["start"] if path.endswith(("/mean_recall@1", "/top1"))}
    lines = [line for body in section(page, "gained-and-lost").all("tbody") for line in body.all("tr")]
    assert len(lines) == len(names) > 1
    chosen_on = json.loads((start / "held_out.json").read_text())["metrics"]
    assert all(result["start"][path] == pytest.approx(result["metrics"][path], abs=1e-6) for path in result["start"])
    assert result["start"].keys() == result["metrics"].keys()
    assert result["start"][settings.checkpoint.best] == pytest.approx(chosen_on[settings.checkpoint.best], abs=1e-6)
    before, after = (np.load(run_ / "held_out.npz") for run_ in (start, start.parent / settings.name))
    for name in ("images", "texts"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-4)
    assert result["test"]["samples"] == len(tiny_dataset.split_ids()["test"])
    assert result["test"]["split"] == "test" and result["test"]["chosen_on"] == "validation"


def test_one_command_follows_the_papers_protocol_on_published_splits(ray_session: None, tmp_path: Path) -> None:
    """Both recipes at toy size: trained on train and restval, chosen on val, tested once on test."""
    source = write_karpathy(tmp_path / "in", [("train", "restval", "val", "test")[i % 4] for i in range(80)])
    keys: dict[str, Any] = {"source.paths": source["paths"], "output": str(tmp_path / "coco")}
    prepared = prepare(load(PrepareSettings, ROOT / "pipelines" / "configs" / "coco-finetune.yaml", keys), Display(quiet=True))
    assert prepared.manifest["splits"] == {"train": 40, "test": 20, "val": 20}
    keys = SMALL | {
        "storage": str(tmp_path / "runs"),
        "data.path": str(prepared.path),
        "image_head": {"name": "linear"},
        "text_head": {"name": "linear"},
        "epochs": 2,
        "precision": "fp32",
    }
    test = run(load(TrainSettings, RECIPE, keys), Display(quiet=True))["test"]
    assert (test["split"], test["samples"], test["chosen_on"]) == ("test", 20, "val")
    assert test["metric"] == "retrieval/coco/mean_recall" and test["metric"] in test["metrics"]
