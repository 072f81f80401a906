"""Weights between those that a run started from and its own: the rows at both ends, in between, and in an export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.dataset.stream import Worker
from pipelines.program.errors import UserError
from tests.refusals import refused
from tests.training.test_state import advance, batch_of
from training.build import build_state
from training.checkpoint import load_embedder, load_encoder, snapshot
from training.export.export import export
from training.plan import Plan
from training.step import train_step
from training.tensor_tree import load_tree

SIZE = 16
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
TEXTS = ["a square of colour 3", "colour", "a square"]


def trained(plan: Plan, folder: Path, steps: int) -> Path:
    """A checkpoint after some steps, without Ray."""
    encoder, state = build_state(plan, Worker(0, 1, torch.device("cpu"), 1.0))
    encoder.train()
    advance(state, plan, steps)
    folder.mkdir(parents=True)
    snapshot(state, plan, {}).write(folder)
    return folder


def halves(folder: Path) -> dict[str, Any]:
    """Keys of a run that starts from one, with nothing that begins at random."""
    return {
        "image_tower": {"name": "run", "path": str(folder), "image_size": SIZE},
        "text_tower": {"name": "run", "path": str(folder), "max_tokens": 8},
        "image_head": {"name": "identity"},
        "text_head": {"name": "identity"},
    }


@pytest.fixture(scope="module")
def runs(plan_of: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with BatchNorm, and one that was fine-tuned from it."""
    folder = tmp_path_factory.mktemp("wise_ft")
    image = {"name": "timm", "model": "test_resnet", "image_size": SIZE}
    text = {"name": "transformer", "width": 16, "layers": 1, "max_tokens": 8}
    first = trained(plan_of(image_tower=image, text_tower=text, image_head={"name": "linear"}), folder / "first", 2)
    return first, trained(plan_of(**halves(first)), folder / "second", 3)


def rows(checkpoint: Path, alpha: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image

    embedder = load_embedder(str(checkpoint)) if alpha is None else load_embedder(str(checkpoint), wise_ft=alpha)
    return embedder.embed_images([Image.fromarray(image) for image in IMAGES]), embedder.embed_texts(TEXTS)


def test_the_ends_are_the_start_and_the_run_and_between_lies_the_mean(runs: tuple[Path, Path]) -> None:
    first, second = runs
    for mixed, whole in ((rows(second, 0), rows(first)), (rows(second, 1), rows(second))):
        for ours, theirs in zip(mixed, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert np.abs(rows(first)[0] - rows(second)[0]).max() > 0.01
    # By hand, from the files of both: names of the second have a `tower` more, and the heads are part of its towers.
    start, end = (load_tree(folder, "state")["encoder"] for folder in runs)
    found = load_embedder(str(second), wise_ft=0.25)._encoder.state_dict()
    assert found.keys() == end.keys()
    for name, value in found.items():
        side, part, rest = name.split(".", 2)
        origin = start[f"{side}.{rest}" if part == "tower" else f"{side.removesuffix('tower')}head.{rest}"]
        expected = 0.75 * origin + 0.25 * end[name] if value.is_floating_point() else end[name]
        torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-6, msg=name)
    assert any("running_mean" in name for name in found)


def test_an_export_holds_the_chosen_weights(runs: tuple[Path, Path], tmp_path: Path) -> None:
    second = runs[1]
    export(second, "safetensors", tmp_path / "half", tell=lambda _: None, wise_ft=0.5)
    for ours, theirs in zip(rows(tmp_path / "half"), rows(second, 0.5), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert "--wise-ft 0.5" in (tmp_path / "half" / "README.md").read_text()


def test_what_has_no_start_is_refused(plan_of: Callable[..., Plan], runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = runs
    with refused("wise_ft", "1.5"):
        rows(second, 1.5)
    with refused("wise_ft", "image_tower", "random"):
        rows(first, 0.5)
    with refused("--wise-ft", "image_tower", "random"):
        export(first, "safetensors", tmp_path / "none", wise_ft=0.5)
    heads = {"image_head": {"name": "linear"}}
    third = trained(plan_of(**halves(first) | heads), tmp_path / "third", 1)
    with refused("wise_ft", "linear", "image_tower", remedy="identity"):
        rows(third, 0.5)
    assert load_encoder(third).settings.name == "run"


def test_the_start_teaches_by_one_key(plan_of: Callable[..., Plan], runs: tuple[Path, Path]) -> None:
    """Before the first step student and teacher agree, as BatchNorm is frozen; after it only the student has moved."""
    keys = halves(runs[0])
    keys["image_tower"] |= {"batch_norm": "frozen"}
    keys |= {"objective": {"name": "distill", "live": True, "heads": False, "temperature": 0.1}}
    plan = plan_of(**keys)
    encoder, state = build_state(plan, Worker(0, 1, torch.device("cpu"), 1.0))
    encoder.train()
    distances = [float(train_step(state, batch_of(plan, 0), plan.settings, 1e-2)[0].metrics["feature"]) for _ in range(2)]
    assert distances[0] < 1e-8 < 1e-4 < distances[1]
    with pytest.raises(UserError, match="frozen_encoders"):
        plan_of(objective={"name": "distill"})
