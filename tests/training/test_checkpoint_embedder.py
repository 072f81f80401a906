"""What a checkpoint's embedder offers besides rows: its scale, features before the head, and their fingerprint."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.training.objectives.reference import task
from training.checkpoint import CheckpointEmbedder, load_embedder, snapshot
from training.checkpoint_registry import seal
from training.config import TrainSettings
from training.objectives import ObjectiveUnion
from training.objectives.base import Objective
from training.plan import plan_of
from training.precision import unit
from training.state import TrainState
from training.tensor_tree import load_tree, save_tree

TASK = task(states_width=16, image_states_width=16, vocabulary_size=50, frozen_widths=(4, 4))


def save(prepared: Prepared, folder: Path, **changes: Any) -> TrainState:
    """A run's first checkpoint."""
    tree = {
        "name": "t",
        "data": {"path": str(prepared.path)},
        "image_tower": {"name": "conv", "image_size": 12, "channels": [8, 16]},
        "text_tower": {"name": "bag", "width": 16, "vocabulary_size": 100, "max_tokens": 8},
        "image_head": {"name": "mlp", "hidden": 16, "dropout": 0.2},
        "embed_dim": 8,
        "epochs": 1,
        "global_batch_size": 4,
    }
    settings = validate(TrainSettings, tree | changes, "t")
    plan = plan_of(settings, Pool(0), Display(quiet=True))
    encoder, objective, teacher = plan.build()
    optimizer = settings.optimizer.build([encoder, objective])
    state = TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    folder.mkdir()
    snapshot(state, plan, {}).write(folder)
    return state


def resealed(folder: Path) -> Path:
    """A checkpoint's embedder after a change."""
    (folder / "digests.json").unlink()
    seal(folder)
    return folder


@pytest.mark.parametrize("head", [{"name": "linear"}, {"name": "mlp"}, {"name": "augmented"}])
def test_the_head_makes_the_rows_of_the_features(stamps: Prepared, tmp_path: Path, head: dict) -> None:
    state = save(stamps, tmp_path / "run", image_head=head)
    images = list(whole_images(stamps, np.arange(5)))
    embedder = load_embedder(str(tmp_path / "run"))
    features = embedder.image_features(images)
    assert features.dtype == np.float32 and features.shape == (5, 16) and features.std(axis=0).mean() > 0
    with torch.no_grad():
        rows: Any = state.encoder.eval().image_head(torch.from_numpy(features))  # type: ignore[operator]
    assert unit(rows).numpy() == pytest.approx(embedder.embed_images(images), abs=1e-5)


LEARNED = ["clip", "siglip", "siglip2", "psd", "cyclip", "albef", "slip", "clip-ping", "a-clip-ping", "mcd", "declip", "distill"]


def objective_of(name: str) -> tuple[Any, Objective]:
    settings: Any = TypeAdapter(ObjectiveUnion).validate_python({"name": name})
    return settings, settings.build(TASK)


@pytest.mark.parametrize("name", LEARNED)
def test_a_learned_temperature_is_the_current_one(name: str) -> None:
    settings, objective = objective_of(name)
    assert settings.logit_scale(objective.state_dict()) == pytest.approx(1 / settings.temperature)
    with torch.no_grad():
        objective.scale.log.fill_(np.log(37.0))  # type: ignore[operator, union-attr]
    assert settings.logit_scale(objective.state_dict()) == pytest.approx(37)


def test_other_temperatures() -> None:
    settings, objective = objective_of("fastclip")
    objective.log_scale.fill_(np.log(50.0))  # type: ignore[operator, union-attr]
    assert settings.logit_scale(objective.state_dict()) == pytest.approx(50)
    settings, objective = objective_of("uniclip")
    with torch.no_grad():
        objective.scales[0].log.fill_(np.log(20.0))  # type: ignore[index, operator, union-attr]
    assert settings.logit_scale(objective.state_dict()) == pytest.approx(20)
    settings, objective = objective_of("sogclr")
    assert settings.logit_scale(objective.state_dict()) == pytest.approx(1 / settings.temperature)
    for name in ("vicreg", "isogclr", "onlineclr"):
        settings, objective = objective_of(name)
        assert settings.logit_scale(objective.state_dict()) is None


def test_the_embedder_has_a_scale_if_the_objective_does(stamps: Prepared, tmp_path: Path) -> None:
    state = save(stamps, tmp_path / "clip", objective={"name": "clip", "temperature": 0.05})
    scale = load_embedder(str(tmp_path / "clip")).scale
    assert scale == pytest.approx(20) == state.objective.scale().item()  # type: ignore[operator]
    save(stamps, tmp_path / "vicreg", objective={"name": "vicreg"})
    assert not hasattr(load_embedder(str(tmp_path / "vicreg")), "scale")


def test_the_fingerprint_is_what_decides_the_rows(stamps: Prepared, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save(stamps, run)
    embedder = CheckpointEmbedder(run)
    embedder.embed_texts(["a thing"])
    first = embedder.fingerprint
    assert first == CheckpointEmbedder(shutil.copytree(run, tmp_path / "copy")).fingerprint

    def changed(name: str, **config: Any) -> str:
        """The fingerprint of the same weights under another config."""
        copy = shutil.copytree(run, tmp_path / name)
        about = json.loads((copy / "checkpoint.json").read_text())
        for key, change in config.items():
            about["config"][key] = about["config"][key] | change if isinstance(change, dict) else change
        (copy / "checkpoint.json").write_text(json.dumps(about))
        return CheckpointEmbedder(resealed(copy)).fingerprint

    # It depends neither on how the run was trained nor on the rest of the checkpoint.
    assert changed("seed", seed=7, global_batch_size=8, image_tower={"mode": "frozen"}) == first
    saved = load_tree(run, "state")
    save_tree(saved | {"step": 99}, run, "state")
    assert CheckpointEmbedder(resealed(run)).fingerprint == first

    found = [changed("size", image_tower={"image_size": 16}), changed("tokens", text_tower={"max_tokens": 4})]
    saved["encoder"]["image_head.2.weight"][1, 2] += 1e-6
    save_tree(saved, run, "state")
    found.append(CheckpointEmbedder(resealed(run)).fingerprint)
    other = shutil.copytree(tmp_path / "copy", tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    words["normalizer"] = {"type": "Lowercase"} if words["normalizer"] != {"type": "Lowercase"} else None
    (other / "tokenizer.json").write_text(json.dumps(words))
    found.append(CheckpointEmbedder(resealed(other)).fingerprint)
    assert len({first, *found}) == 5


def test_a_run_with_lora_opens_as_plain_towers(stamps: Prepared, tmp_path: Path) -> None:
    lora = {"lora": {"rank": 2}}
    image = {"name": "conv", "image_size": 12, "channels": [8, 16]} | lora
    text = {"name": "transformer", "width": 16, "layers": 1, "vocabulary_size": 100, "max_tokens": 8} | lora
    state = save(stamps, tmp_path / "run", image_tower=image, text_tower=text)
    start = load_embedder(str(tmp_path / "run")).embed_texts(["a thing"])
    saved = load_tree(tmp_path / "run", "state")
    for name, value in saved["encoder"].items():
        if name.endswith("0.b"):
            value.normal_()
    save_tree(saved, tmp_path / "run", "state")
    opened = CheckpointEmbedder(resealed(tmp_path / "run"))
    encoder: Any = state.encoder.eval()
    encoder.load_state_dict(saved["encoder"])
    images = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    ids = torch.randint(0, 50, (3, 8))
    plain = opened._encoder
    with torch.no_grad():
        torch.testing.assert_close(plain.embed_images(images), encoder.embed_images(images))
        torch.testing.assert_close(plain.embed_texts(ids, ids > 9), encoder.embed_texts(ids, ids > 9))
    assert np.abs(start - opened.embed_texts(["a thing"])).max() > 0.01
    assert not [name for name in plain.state_dict() if "parametrizations" in name]


def test_a_locked_towers_weights_are_in_it(stamps: Prepared, tmp_path: Path) -> None:
    """They are not in the checkpoint: another file in the same place is another model."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    tower = {"name": "timm", "model": "test_resnet", "weights": str(tmp_path / "w.pt"), "image_size": 32, "mode": "locked"}
    run = tmp_path / "run"
    state = save(stamps, run, image_tower=tower | {"mode": "trainable"})
    about = json.loads((run / "checkpoint.json").read_text())
    about["config"]["image_tower"]["mode"] = "locked"
    (run / "checkpoint.json").write_text(json.dumps(about))
    saved = state.state_dict()
    saved["encoder"] = {name: value for name, value in saved["encoder"].items() if not name.startswith("image_tower.")}
    save_tree(saved, run, "state")
    first = CheckpointEmbedder(resealed(run)).fingerprint
    assert CheckpointEmbedder(run).fingerprint == first
    images = list(whole_images(stamps, np.arange(2)))
    assert CheckpointEmbedder(run).image_features(images).shape == (2, 96)
    with torch.no_grad():
        next(network.parameters())[0, 0] += 1e-3
    torch.save(network.state_dict(), tmp_path / "w.pt")
    assert CheckpointEmbedder(run).fingerprint != first
