"""Exports: runs of every kind of tower, to every target that can hold them, loaded in another process by that library alone.

Tiny towers with random weights. What cannot be exported says why, and names the nearest target that can.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.views import eval_view
from raylign.__main__ import main
from tests.refusals import refused
from tests.training.squares import TEST, TRAIN, prepared_by_hand
from tests.training.test_self_contained import BAG, CONV, SIZE, originals, settings_of, train
from tests.training.towers.text_models import tokenizer_of
from training.checkpoint import load_embedder
from training.export.export import export
from training.export.model import open_model
from training.export.parity import Parity
from training.export.processor import image_processor

ROOT = Path(__file__).parents[3]
HAS_ONNX = find_spec("onnxruntime") is not None
TARGETS = ["huggingface", "open_clip", *(["onnx"] if HAS_ONNX else []), "safetensors"]
IN_ONNX = ("small", "scratch", "bert", "heads", "siglip", "chained")  # every kind of tower; each takes seconds
IDENTITY = {"name": "identity"}
CAPTIONS = ["a square of colour 3", "A photo of TWO cats, on a mat!", "word " * 40]

# Of each run, what it becomes in transformers and open_clip: a class, or what the refusal names.
EXPECTED: dict[str, tuple[str, str]] = {
    "small": ("conv", "conv"),
    "scratch": ("image_head", "image_head"),
    "bert": ("averages", "'huggingface'"),
    "pooled": ("VisionTextDualEncoderModel", "'huggingface'"),
    "whole": ("CLIPModel", "'huggingface'"),
    "heads": ("CLIPModel", "'huggingface'"),
    "siglip": ("SiglipModel", "'huggingface'"),
    "joined": ("VisionTextDualEncoderModel", "'huggingface'"),
    "open_clip": ("CLIPModel", "CustomTextCLIP"),
    "mixed": ("VisionTextDualEncoderModel", "CustomTextCLIP"),
    "long": ("CLIPModel", "CustomTextCLIP"),  # with LoRA too
    "siglip words": ("no_causal_mask", "CustomTextCLIP"),
    "chained": ("CLIPModel", "CustomTextCLIP"),
}


def is_class(expected: str) -> bool:
    return expected.endswith(("Model", "CLIP"))


def cases(towers: dict[str, dict[str, Any]], runs: Path) -> dict[str, dict[str, Any]]:
    """Runs by name, the last of which builds upon another."""
    siglip = towers["vision"] | {"projected": True}
    siglip.pop("image_size")
    ours = {"image_tower": towers["open_clip image"], "text_tower": towers["open_clip text"] | {"max_tokens": 9}}
    first = {"name": "run", "path": str(runs / "open_clip")}
    sigmoid = {"name": "siglip", "bias": -3.0}
    return {
        "small": {"image_tower": CONV, "text_tower": BAG},
        "scratch": {
            "image_tower": towers["timm"] | {"mode": "locked"},
            "text_tower": {"name": "transformer", "width": 16, "max_tokens": 9},
            "image_head": {"name": "mlp", "hidden": 8},
        },
        "bert": {"image_tower": towers["vision"], "text_tower": towers["text"] | {"mode": "locked"}},
        "pooled": {"image_tower": towers["timm"], "text_tower": towers["text"] | {"pooling": "pooler"}},
        "whole": {
            **{"image_tower": towers["image half"], "text_tower": towers["text half"]},
            **{"image_head": IDENTITY, "text_head": IDENTITY, "embed_dim": 20},
        },
        "heads": {"image_tower": towers["image half"], "text_tower": towers["text half"] | {"mode": "frozen"}},
        "siglip": {
            **{"image_tower": siglip | {"image_size": SIZE}, "text_tower": siglip | {"max_tokens": 16}},
            **{"image_head": IDENTITY, "text_head": IDENTITY, "embed_dim": 32, "objective": sigmoid},
        },
        "joined": {"image_tower": towers["timm"], "text_tower": towers["text half"]},
        "open_clip": ours | {"objective": sigmoid},
        "mixed": {"image_tower": towers["timm"], "text_tower": towers["open_clip text"]},
        "long": {
            **{"image_tower": towers["open_clip image"] | {"lora": {"rank": 2}, "lr_scale": 100}},
            **{"text_tower": towers["open_clip text"] | {"max_tokens": 20, "stretch_positions": True, "lora": {"rank": 2}}},
        },
        "siglip words": {"image_tower": towers["open_clip image"], "text_tower": towers["siglip words"], "objective": sigmoid},
        "chained": {"image_tower": first | {"image_size": SIZE}, "text_tower": first | {"max_tokens": 9}},
    }


def picture(width: int, height: int) -> Callable[[np.ndarray], np.ndarray]:
    """From a colour to soft shapes about it, as a photo has."""

    def draw(colour: np.ndarray) -> np.ndarray:
        shapes = np.random.default_rng(int(colour.sum())).integers(0, 256, (4, 5, 3)) // 2 + colour // 2
        return np.asarray(Image.fromarray(shapes.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC))

    return draw


def caption(number: int) -> str:
    """Of words that all tokenizers here know."""
    adjectives, nouns, ends = ("red", "green", "big", "two"), ("cat", "dog", "house", "mat"), ("a", "the", "photo of a")
    return f"{adjectives[number % 4]} {nouns[number // 4 % 4]} on {ends[number // 16]} mat"


def siglip_words(folder: Path) -> dict[str, Any]:
    """open_clip's text half that reads its padding, and texts by the tokenizer of Hugging Face beside its weights."""
    folder.mkdir()
    tokenizer_of("siglip").save_pretrained(folder)
    text = {"context_length": 16, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1, "pool_type": "last", "proj_bias": True}
    text |= {"no_causal_mask": True, "hf_tokenizer_name": "nowhere", "tokenizer_kwargs": {"clean": "canonicalize"}}
    vision = {"image_size": SIZE, "layers": 1, "width": 64, "patch_size": 16}
    config = {"embed_dim": 8, "custom_text": True, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}
    (folder / "raylign-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "raylign-words.json")
    torch.save(open_clip.create_model("raylign-words", load_weights=False).state_dict(), folder / "w.pt")
    return {"name": "open_clip", "model": "raylign-words", "weights": str(folder / "w.pt"), "max_tokens": 16}


SAID = [caption(i) for i in range(TRAIN, TRAIN + TEST)]  # of the test split


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Pretrained towers, tiny, by name."""
    folder = tmp_path_factory.mktemp("export") / "towers"
    return originals(folder) | {"siglip words": siglip_words(folder / "words")}


@pytest.fixture(scope="module")
def runs(towers: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs, of one step each, on square images in `data` beside it."""
    folder = tmp_path_factory.mktemp("export")
    prepared = prepared_by_hand(folder / "data", "squares", draw=picture(40, 40), say=caption)
    (folder / "runs").mkdir()
    for name, case in cases(towers, folder / "runs").items():
        train(settings_of(prepared, case), prepared, folder / "runs" / name)
    return folder / "runs"


@pytest.fixture(scope="module")
def exported(runs: Path) -> tuple[Path, dict[str, Parity]]:
    """Every export that is possible, and how it compared with its run."""
    exports, parities = runs.parent / "exports", {}
    exports.mkdir()
    for name, expected in EXPECTED.items():
        for target in TARGETS:
            about = dict(zip(("huggingface", "open_clip"), expected, strict=True)).get(target, "AnyModel")
            if is_class(about) and (target != "onnx" or name in IN_ONNX):
                output = exports / f"{name}-{target}"
                parities[output.name] = export(runs / name, target, output, tell=lambda line: None)
    return exports, parities


@pytest.fixture(scope="module")
def elsewhere(exported: tuple[Path, dict[str, Parity]], runs: Path) -> dict[str, np.ndarray]:
    """What a process gives that has the exports and not the runs, for the files and captions of the test split and for others."""
    inputs = runs.parent / "inputs"
    inputs.mkdir()
    for i in range(TRAIN, TRAIN + TEST):
        shutil.copy(runs.parent / "data" / f"{i}.png", inputs)
    (inputs / "texts.json").write_text(json.dumps([*SAID, *CAPTIONS]))
    program = [sys.executable, "-m", "tests.training.export.loaded_elsewhere", str(exported[0]), str(inputs)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(inputs / "nothing")}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(inputs / "rows.npz"))


def recalls(images: np.ndarray, texts: np.ndarray) -> list[float]:
    """R@1 and R@5 of both directions, image i with text i, in percent."""
    cosines = images @ texts.T
    own = np.diag(cosines)
    ranks = [(cosines > own[:, None]).sum(1), (cosines > own[None]).sum(0)]
    return [float((rank < k).mean() * 100) for rank in ranks for k in (1, 5)]


NAMES = [*(f"{name}-onnx" for name in IN_ONNX), *(f"{name}-safetensors" for name in EXPECTED)]
NAMES += [
    f"{name}-{target}"
    for name, expected in EXPECTED.items()
    for target, about in zip(("huggingface", "open_clip"), expected, strict=True)
    if is_class(about)
]


@pytest.mark.parametrize("name", NAMES)
def test_an_export_gives_the_runs_rows_and_scores_by_its_library_alone(
    exported: tuple[Path, dict[str, Parity]], elsewhere: dict[str, np.ndarray], runs: Path, name: str
) -> None:
    run, _, target = name.rpartition("-")
    if target == "onnx" and not HAS_ONNX:
        pytest.skip("onnxruntime is not installed")
    embedder = load_embedder(str(runs / run))
    files = [Image.open(runs.parent / "data" / f"{i}.png").convert("RGB") for i in range(TRAIN, TRAIN + TEST)]
    images, texts = embedder.embed_images(files), embedder.embed_texts([*SAID, *CAPTIONS])
    for rows in (images, texts[:TEST]):
        assert np.abs(rows[:, None] - rows[None])[~np.eye(TEST, dtype=bool)].max(-1).min() > 1e-3, "else nothing is shown"
    np.testing.assert_allclose(elsewhere[f"{name} images"], images, atol=1e-4)
    np.testing.assert_allclose(elsewhere[f"{name} texts"], texts, atol=1e-4)
    ours = recalls(images, texts[:TEST])
    assert recalls(elsewhere[f"{name} images"], elsewhere[f"{name} texts"][:TEST]) == ours
    parity = exported[1][name]
    paths = [f"retrieval/squares/{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)]
    assert [parity.theirs.metrics[path] for path in paths] == ours and parity.ours.metrics == parity.theirs.metrics
    assert parity.largest < 1e-4 and parity.cosine > 0.9999


@pytest.mark.parametrize("name", [name for name, about in EXPECTED.items() if is_class(about[0])])
def test_transformers_class_is_the_nearest(exported: tuple[Path, dict[str, Parity]], name: str) -> None:
    config = json.loads((exported[0] / f"{name}-huggingface" / "config.json").read_text())
    assert config["architectures"] == [EXPECTED[name][0]] and "auto_map" not in config


@pytest.mark.parametrize(("run", "target"), [("siglip", "huggingface"), ("open_clip", "open_clip"), ("open_clip", "huggingface")])
def test_temperature_and_bias_are_exported(elsewhere: dict[str, np.ndarray], runs: Path, run: str, target: str) -> None:
    model = open_model(runs / run)
    assert (model.scale, model.bias) == (pytest.approx(10), -3.0), "neither is what a new network has"
    assert np.exp(elsewhere[f"{run}-{target} logit_scale"]) == pytest.approx(model.scale, rel=1e-5)
    if (run, target) != ("open_clip", "huggingface"):  # CLIPModel has no bias
        assert elsewhere[f"{run}-{target} logit_bias"] == pytest.approx(model.bias, rel=1e-5)


@pytest.mark.parametrize(
    ("run", "target", "reason"),
    [
        (run, target, about)
        for run, expected in EXPECTED.items()
        for target, about in zip(("huggingface", "open_clip"), expected, strict=True)
        if not is_class(about)
    ],
)
def test_what_a_target_cannot_hold_is_refused_with_the_nearest_that_can(
    runs: Path, tmp_path: Path, run: str, target: str, reason: str
) -> None:
    holds = [name for name, about in zip(("huggingface", "open_clip"), EXPECTED[run], strict=True) if is_class(about)]
    other = holds[0] if holds else "onnx" if HAS_ONNX else "safetensors"
    with refused("--to", target, reason, remedy=f"--to {other}"):
        export(runs / run, target, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_differs_is_refused_and_leaves_nothing(runs: Path, tmp_path: Path) -> None:
    with refused("--tolerance", "huggingface", "1e-12", remedy="--tolerance"):
        export(runs / "heads", "huggingface", tmp_path / "out", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_images_that_are_not_square_are_told_from_wrong_weights(towers: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """No processor of transformers crops half pixels: the refusal says so, and a tolerance accepts it."""
    case = cases(towers, tmp_path)["heads"]
    prepared = prepared_by_hand(tmp_path / "data", "squares", draw=picture(57, 40), say=caption)
    train(settings_of(prepared, case), prepared, tmp_path / "run")
    with refused("--tolerance", "images", "squares", remedy="--tolerance") as refusal:
        export(tmp_path / "run", "huggingface", tmp_path / "out")
    tolerance = float(refusal.value.remedy.rpartition(" ")[2])
    parity = export(tmp_path / "run", "huggingface", tmp_path / "out", tolerance=tolerance, tell=lambda line: None)
    assert parity.squares is None and 1e-4 < parity.images <= tolerance and parity.texts < 1e-5
    assert f"{parity.images:.1e}" in (tmp_path / "out" / "README.md").read_text()
    if HAS_ONNX:
        assert export(tmp_path / "run", "onnx", tmp_path / "onnx", tell=lambda line: None).images < 1e-5


@pytest.mark.parametrize("side", [20, SIZE, 75])
def test_the_image_processor_makes_the_evaluation_view_of_a_square(runs: Path, side: int) -> None:
    model = open_model(runs / "heads")
    image = Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8))
    pixels = image_processor(model)(images=[image], return_tensors="pt")["pixel_values"][0].numpy()
    mean, std = (np.asarray(part)[:, None, None] for part in model.image.pixels(reordered=False))
    np.testing.assert_allclose((pixels * std + mean) * 255, eval_view(image, SIZE), atol=1e-3)


def test_the_card_has_the_runs_facts(exported: tuple[Path, dict[str, Parity]]) -> None:
    parity = exported[1]["heads-huggingface"]
    card = (exported[0] / "heads-huggingface" / "README.md").read_text()
    for path, value in parity.ours.metrics.items():
        assert f"| `{path}` | {value:.1f} |" in card
    for fact in ("CC0", "34 rows kept of 34 listed", "clip", "raylign export", "transformers", "global_batch_size: 24"):
        assert fact in card


def test_the_command_prints_the_parity_and_refuses_in_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "out"
    assert main(["export", str(runs / "small"), "--to", "safetensors", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "recall@1" in said and "largest difference" in said and str(output) in said
    for arguments, named in (
        ([str(runs / "small"), "--output", str(output)], "--output"),
        ([str(tmp_path / "none"), "--output", str(tmp_path / "new")], str(tmp_path / "none")),
        ([str(runs / "small"), "--output", str(tmp_path / "new"), "--data", str(tmp_path)], "--data"),
    ):
        assert main(["export", *arguments, "--to", "safetensors"]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and named in errors
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_data_than_the_runs_are_refused(runs: Path, tmp_path: Path) -> None:
    other: Prepared = prepared_by_hand(tmp_path / "other", "squares", 100)
    with refused("--data", other.path, remedy="data"):
        export(runs / "small", "safetensors", tmp_path / "out", other.path)  # type: ignore[arg-type]


def test_a_safetensors_export_is_a_tower_of_another_run_and_a_damaged_one_is_refused(
    exported: tuple[Path, dict[str, Parity]], runs: Path, tmp_path: Path
) -> None:
    folder = exported[0] / "scratch-safetensors"
    half = {"name": "run", "path": str(folder)}
    prepared = Prepared.open(runs.parent / "data")
    settings = settings_of(prepared, {"image_tower": half | {"image_size": SIZE}, "text_tower": half | {"max_tokens": 9}})
    assert settings.image_tower.build().width == 12
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-9])
    with refused("checkpoint", damaged):
        load_embedder(str(damaged))
