"""A run's folder opens anywhere: moved, in another process, without the weights and tokenizers that it was trained from.

Each kind of tower, trained, frozen and locked, and frozen encoders, stored and live: the folder gives the embeddings that it
gave, and goes on with the same features, words and weights. Nothing is left of the files that the towers came from, of the
packages' lists that named them, of the stored features, and there is no network.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from transformers import SiglipImageProcessor

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Worker
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.forked import in_a_process
from tests.refusals import refused
from tests.training.opened_elsewhere import embedded, opened, resumed
from tests.training.squares import prepared_by_hand
from tests.training.towers.text_models import DUAL, TEXT
from tests.training.towers.text_models import save as save_text
from training.build import build_state
from training.checkpoint import load_embedder, snapshot
from training.checkpoint_registry import put, seal
from training.config import TrainSettings
from training.plan import keep_towers, plan_of

SIZE = 32
CPU = Worker(0, 1, torch.device("cpu"), 1.0)
CONV = {"name": "conv", "image_size": SIZE, "channels": [8, 16]}
BAG = {"name": "bag", "width": 16, "max_tokens": 9, "vocabulary_size": 90}


def originals(folder: Path) -> dict[str, dict[str, Any]]:
    """Towers with weights, whose files all lie in this folder; those of open_clip are in its lists too."""
    folder.mkdir()
    save_text(*TEXT["bert"], folder / "bert")
    for kind in ("clip", "siglip"):
        save_text(*DUAL[kind], folder / kind)
        SiglipImageProcessor().save_pretrained(folder / kind)  # levels from -1 to 1
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "resnet.pth")
    vision = {"image_size": SIZE, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (folder / "raylign-moved.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.save(open_clip.create_model("raylign-moved", load_weights=False).state_dict(), folder / "clip.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"mean": [0.1] * 3, "std": [0.7] * 3}}))
    ours = {"name": "open_clip", "model": "raylign-moved", "weights": str(folder / "clip.pt")}
    return {
        "timm": {"name": "timm", "model": "test_resnet", "weights": str(folder / "resnet.pth"), "image_size": SIZE},
        "vision": {"name": "huggingface", "weights": str(folder / "siglip"), "image_size": SIZE},
        "image half": {"name": "huggingface", "weights": str(folder / "clip"), "image_size": SIZE, "projected": True},
        "open_clip image": ours | {"image_size": SIZE},
        "text": {"name": "huggingface", "weights": str(folder / "bert"), "max_tokens": 9},
        "text half": {"name": "huggingface", "weights": str(folder / "clip"), "max_tokens": 9, "projected": True},
        "open_clip text": ours | {"max_tokens": 12},
    }


def cases(folder: Path) -> dict[str, dict[str, Any]]:
    """Runs by name, the later of which build upon the earlier; each kind of tower is trained, frozen and locked once."""
    towers = originals(folder)
    locked, frozen = {"mode": "locked"}, {"mode": "frozen"}
    first = {"name": "run", "path": str(folder / "locked"), "image_size": SIZE}
    words = {"name": "run", "path": str(folder / "locked"), "max_tokens": 9}
    both = {"image_encoder": towers["timm"], "text_encoder": towers["text"]}
    return {
        "small": {"image_tower": CONV, "text_tower": BAG},
        "locked": {"image_tower": towers["timm"] | locked, "text_tower": towers["text"] | locked},
        "trained": {"image_tower": towers["timm"], "text_tower": towers["text"]},
        "halves": {"image_tower": towers["image half"], "text_tower": towers["text half"] | frozen},
        "halves-locked": {"image_tower": towers["image half"] | locked, "text_tower": towers["text half"] | locked},
        "open_clip": {"image_tower": towers["open_clip image"] | frozen, "text_tower": towers["open_clip text"]},
        "open_clip-locked": {"image_tower": towers["open_clip image"] | locked, "text_tower": towers["open_clip text"] | locked},
        "vision": {"image_tower": towers["vision"], "text_tower": {"name": "transformer", "width": 16, "max_tokens": 9}},
        "chained": {"image_tower": first, "text_tower": words},
        "chained-locked": {"image_tower": first | locked, "text_tower": words | locked},
        "stored": {"image_tower": CONV, "text_tower": BAG, "objective": {"name": "clip-ping"}, "frozen_encoders": both},
        "live": {"image_tower": CONV, "text_tower": BAG, "objective": {"name": "a-clip-ping"}, "frozen_encoders": both},
    }


def settings_of(prepared: Prepared, case: dict[str, Any]) -> TrainSettings:
    tree = {"name": "run", "data": {"path": str(prepared.path)}, "embed_dim": 12, "epochs": 1, "global_batch_size": 24}
    return validate(TrainSettings, tree | case, "run")


def train(settings: TrainSettings, prepared: Prepared, run: Path) -> np.ndarray:
    """A run of one step, from the driver's files to a registered checkpoint; what is trained ends somewhere else.

    Returns which of its parameters are trained.
    """
    run.mkdir()
    plan = plan_of(settings, Pool(0), Display(quiet=True), run)
    keep_towers(plan, run)
    encoder, state = build_state(plan, CPU)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in (p for p in encoder.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    state.step = 1
    (run / "checkpoint_00000001").mkdir()
    snapshot(state, plan, {}).write(run / "checkpoint_00000001")
    put(run / "newest_checkpoint.json", json.dumps(["checkpoint_00000001"]))
    return np.asarray([p.requires_grad for p in encoder.parameters()])


def from_originals(checkpoint: Path, place: Path) -> dict[str, np.ndarray]:
    """What a checkpoint embeds that says nothing of its towers, so that they are built from the weights that its config names."""
    shutil.copytree(checkpoint, place)
    about = json.loads((place / "checkpoint.json").read_text())
    del about["towers"], about["frozen"]
    (place / "checkpoint.json").write_text(json.dumps(about))
    (place / "digests.json").unlink()
    seal(place)
    return embedded(place)


NAMES = ["small", "locked", "trained", "halves", "halves-locked", "open_clip", "open_clip-locked", "vision"]
NAMES += ["chained", "chained-locked", "stored", "live"]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The folder that the runs are in now; what each gave where it was made, and what it gives there."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    prepared = prepared_by_hand(here / "squares", "squares")
    before, trees = {}, {}
    for name, case in cases(here / "runs").items():
        settings, run = settings_of(prepared, case), here / "runs" / name
        trained, trees[name] = train(settings, prepared, run), settings.model_dump(mode="json")
        found = from_originals(run / "checkpoint_00000001", here / f"copy-{name}") | resumed(run, trees[name])
        before |= {f"{name} {key}": value for key, value in (found | {"trained": trained}).items()}
    for name in trees:
        shutil.move(here / "runs" / name, there / name)
    shutil.rmtree(here / "runs")
    shutil.rmtree(prepared.path / "features")
    return there, before, in_a_process(opened, there, trees)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_moved_gives_what_it_gave(
    moved: tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]], name: str
) -> None:
    _, before, after = moved
    keys = [key for key in before if key.split(" ")[0] == name]
    assert {key for key in after if key.split(" ")[0] == name} == {*keys} >= {f"{name} {key}" for key in ("images", "weights")}
    for key in keys:
        np.testing.assert_allclose(after[key], before[key], atol=1e-6, rtol=1e-5, err_msg=key)
    for key in ("images", "texts"):
        rows = before[f"{name} {key}"]
        assert np.isfinite(rows).all() and np.abs(rows[0] - rows[1]).max() > 1e-4, "rows that are alike would show nothing"


def test_a_checkpoint_alone_tells_what_it_lacks(moved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """One that has all weights opens without its run; of a locked tower the run's folder has them."""
    alone = shutil.copytree(moved[0] / "trained" / "checkpoint_00000001", tmp_path / "best")
    assert load_embedder(str(alone)).embed_texts(["a"]).shape == (1, 12)
    locked = shutil.copytree(moved[0] / "locked" / "checkpoint_00000001", tmp_path / "locked")
    with refused("checkpoint", locked, "image_tower", "resnet.pth", remedy="towers"):
        load_embedder(str(locked))


def test_other_weights_under_the_old_name_are_refused(tmp_path: Path) -> None:
    """A checkpoint without its run's folder does not take for its locked tower whatever lies at that path now."""
    torch.manual_seed(1)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    tower = {"name": "timm", "model": "test_resnet", "weights": str(tmp_path / "w.pth"), "image_size": SIZE, "mode": "locked"}
    prepared, run = prepared_by_hand(tmp_path / "squares", "squares"), tmp_path / "run"
    settings = settings_of(prepared, {"image_tower": tower, "text_tower": BAG})
    train(settings, prepared, run)
    rows = embedded(run)["images"]
    alone = shutil.copytree(run / "checkpoint_00000001", tmp_path / "alone")
    np.testing.assert_allclose(embedded(alone)["images"], rows, atol=1e-6)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    np.testing.assert_allclose(embedded(run)["images"], rows, atol=1e-6, err_msg="the run has its own")
    with refused("checkpoint", alone, "image_tower", tmp_path / "w.pth", remedy="towers"):
        load_embedder(str(alone))


@pytest.mark.parametrize("kind", ["missing", "cut", "flipped"])
def test_a_damaged_copy_of_a_locked_tower_is_named(moved: tuple[Path, Any, Any], tmp_path: Path, kind: str) -> None:
    run = shutil.copytree(moved[0] / "locked", tmp_path / "run")
    file = run / "towers" / "text_tower" / "tower.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.unlink() if kind == "missing" else file.write_bytes(data if kind == "flipped" else data[:-9])
    with refused("text_tower", run / "towers" / "text_tower", "tower.safetensors", remedy="text_tower.weights"):
        load_embedder(str(run))


def test_sweeps_do_not_multiply_a_locked_tower(moved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    """Runs on one disk share the file."""
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    tower = {"name": "timm", "model": "test_resnet", "weights": str(tmp_path / "w.pth"), "image_size": SIZE, "mode": "locked"}
    prepared = prepared_by_hand(tmp_path / "squares", "squares")
    for seed in (0, 1):
        train(settings_of(prepared, {"image_tower": tower, "text_tower": BAG, "seed": seed}), prepared, tmp_path / f"run{seed}")
    files = [tmp_path / f"run{seed}" / "towers" / "image_tower" / "tower.safetensors" for seed in (0, 1)]
    assert files[0].samefile(files[1])


def test_a_checkpoint_of_another_library_version_is_one_line(moved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    run = shutil.copytree(moved[0] / "trained", tmp_path / "run")
    file = run / "checkpoint_00000001" / "checkpoint.json"
    file.write_text(file.read_text().replace('"model_type": "bert"', '"model_type": "unheard-of"'))
    (file.parent / "digests.json").unlink()
    seal(file.parent)
    with refused("checkpoint", "unheard-of"):
        load_embedder(str(run))
