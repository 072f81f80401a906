"""The recipe for fine-tuned retrieval: what it promises, and the start that it starts from, at toy size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.settings import load, validate
from tests.pipelines.rows import write_karpathy
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


@pytest.fixture(scope="module")
def start(tiny_dataset: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dual encoder, trained with a part of the concepts held out."""
    tree = {
        "name": "start",
        "storage": str(tmp_path_factory.mktemp("finetune")),
        "data": {"path": str(tiny_dataset.path), "validation": 0.3},
        "image_tower": {"name": "conv", "image_size": 32, "channels": [8, 16]},
        "text_tower": {"name": "bag", "width": 16, "max_tokens": 16},
        "embed_dim": 16,
        "epochs": 1,
        "global_batch_size": 16,
        "evaluation": {"split": "validation"},
        "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
        "tensorboard": False,
    }
    settings = validate(TrainSettings, tree, "start")
    run(settings, Display(quiet=True))
    return settings.storage / "start"


def test_one_command_goes_on_from_pretrained_halves(start: Path, tiny_dataset: Prepared) -> None:
    """With next to no learning rate the recipe scores what its start scores: nothing between them begins at random."""
    halves = {"name": "run", "path": str(start)}
    settings = load(
        TrainSettings,
        RECIPE,
        {
            "storage": str(start.parent),
            "data.path": str(tiny_dataset.path),
            "data.validation": 0.3,
            "evaluation.split": "validation",
            "image_tower": halves | {"image_size": 32},
            "text_tower": halves | {"max_tokens": 16},
            "embed_dim": 16,
            "global_batch_size": 16,
            "epochs": 1,
            "precision": "fp32",
            "optimizer.lr": 1e-12,
            "checkpoint.best": "retrieval/openmoji/mean_recall",
            "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
            "tensorboard": False,
        },
    )
    result = run(settings, Display(quiet=True))
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
    keys = {
        "storage": str(tmp_path / "runs"),
        "data.path": str(prepared.path),
        "image_tower": {"name": "conv", "image_size": 32, "channels": [8, 16]},
        "text_tower": {"name": "bag", "width": 16, "max_tokens": 16},
        "image_head": {"name": "linear"},
        "text_head": {"name": "linear"},
        "embed_dim": 16,
        "global_batch_size": 16,
        "epochs": 2,
        "precision": "fp32",
        "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
        "tensorboard": False,
    }
    test = run(load(TrainSettings, RECIPE, keys), Display(quiet=True))["test"]
    assert (test["split"], test["samples"], test["chosen_on"]) == ("test", 20, "val")
    assert test["metric"] == "retrieval/coco/mean_recall" and test["metric"] in test["metrics"]
