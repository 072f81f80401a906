"""`start`: a run begins as the whole dual encoder that it names, and embeds like it in the library that it comes from.

Small models with random weights, saved on this disk, and a small dataset. No Ray.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Worker
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.own_class import as_data
from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.hub import hub
from tests.training.squares import TRAIN, prepared_by_hand
from training.build import build_state
from training.checkpoint import load_encoder, snapshot
from training.checkpoint_registry import ABOUT
from training.config import TrainSettings
from training.dry_run import check_build
from training.plan import Plan, plan_of

SIZE = 32
MODEL = "raylign-start"
CAPTIONS = ["a square of colour 3", "A photo of TWO cats, on a mat!", "word " * 40]
PIXELS = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]
SCALE, BIAS = 23.0, -3.5
Rows = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_by_hand(tmp_path_factory.mktemp("start") / "squares", "squares")


@pytest.fixture(scope="module")
def sources(squares: Prepared, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Rows]]:
    """What `start` names, by the kind of model, and the rows that the library itself gives; a run of ours began as another."""
    folder = tmp_path_factory.mktemp("sources")
    found = {kind: _of_transformers(kind, hub(kind, folder / kind)) for kind in ("clip", "siglip", "dual")}
    found["open_clip"] = _of_open_clip(folder)
    start, rows = found["siglip"]
    saved(plan(settings_of(squares, start, objective={"name": "siglip"})), folder / "run")
    return found | {"run": ({"name": "run", "path": str(folder / "run")}, rows)}


def _of_transformers(kind: str, folder: Path) -> tuple[dict[str, Any], Rows]:
    from transformers import AutoModel, AutoProcessor

    model: Any = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(SCALE))
        if kind == "siglip":
            model.logit_bias.fill_(BIAS)
        model.eval().save_pretrained(folder)
        processor: Any = AutoProcessor.from_pretrained(folder)
        padding = "max_length" if kind == "siglip" else True
        inputs = processor(text=CAPTIONS, images=IMAGES, return_tensors="pt", padding=padding, truncation=True)
        out = model(**inputs)
    return {"name": "huggingface", "weights": str(folder)}, _unit(out.image_embeds, out.text_embeds)


def _of_open_clip(folder: Path) -> tuple[dict[str, Any], Rows]:
    """A checkpoint as open_clip's training writes it."""
    vision = {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / f"{MODEL}.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model: Any = open_clip.create_model(MODEL, load_weights=False, init_logit_bias=BIAS).eval()
    with torch.no_grad():
        model.logit_scale.fill_(np.log(SCALE))
        weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"epoch": 3, "name": "theirs", "state_dict": weights}, folder / "epoch_3.pt")
        pixels = torch.stack([open_clip.image_transform(SIZE, is_train=False)(image) for image in IMAGES])
        texts = open_clip.get_tokenizer(MODEL)(CAPTIONS)
        rows = _unit(model.encode_image(pixels), model.encode_text(texts))
    return {"name": "open_clip", "model": MODEL, "weights": str(folder / "epoch_3.pt")}, rows


def _unit(*rows: torch.Tensor) -> Any:
    return tuple(torch.nn.functional.normalize(each).numpy() for each in rows)


def settings_of(squares: Prepared, start: dict[str, Any] | None, **keys: Any) -> TrainSettings:
    tree = {"name": "run", "data": {"path": str(squares.path)}, "epochs": 1, "global_batch_size": TRAIN}
    return validate(TrainSettings, tree | ({} if start is None else {"start": start}) | keys, "run")


def plan(settings: TrainSettings, checkpoint: Path | None = None) -> Plan:
    return plan_of(settings, Pool(0), Display(quiet=True), None, checkpoint)


def saved(plan: Plan, folder: Path) -> None:
    """A checkpoint of a run's beginning."""
    _, state = build_state(plan, Worker(0, 1, torch.device("cpu"), 1.0))
    folder.mkdir()
    snapshot(state, plan, {}).write(folder)


def embedded(plan: Plan) -> Rows:
    """By the networks with which training begins."""
    encoder, _, _ = plan.build()
    ids, mask = map(torch.from_numpy, plan.tokenizer(CAPTIONS))
    with torch.no_grad():
        images = encoder.eval().embed_images(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()))
        return images.numpy(), encoder.embed_texts(ids, mask).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip", "dual", "open_clip", "run"])
def test_a_run_begins_as_what_it_starts_from(squares: Prepared, sources: Any, kind: str) -> None:
    """Rows, temperature and bias are the library's own: nothing begins at random."""
    start, theirs = sources[kind]
    begun = plan(settings_of(squares, start, objective={"name": "siglip"}))
    for ours, rows in zip(embedded(begun), theirs, strict=True):
        np.testing.assert_allclose(ours, rows, atol=1e-4)
    assert begun.settings.embed_dim == theirs[0].shape[1]
    _, objective, _ = begun.build()
    has_bias = kind in ("siglip", "open_clip", "run")
    saved = objective.state_dict()
    assert begun.settings.objective.logit_scale(saved) == pytest.approx(SCALE, rel=1e-5)
    assert begun.settings.objective.logit_bias(saved) == pytest.approx(BIAS if has_bias else -10.0)


def test_a_started_run_is_read_and_resumed_without_its_start(squares: Prepared, tmp_path: Path) -> None:
    start, _ = _of_transformers("clip", hub("clip", tmp_path / "clip"))
    settings = settings_of(squares, start, objective={"name": "psd"}, image_tower={"mode": "frozen"})
    check_build(plan(settings))  # takes a step
    saved(plan(settings), tmp_path / "run")
    assert settings.image_tower.mode == "frozen"
    shutil.rmtree(tmp_path / "clip")
    resolved = json.loads((tmp_path / "run" / ABOUT).read_text())["config"]
    again = validate(TrainSettings, resolved, "again")
    assert again.identity() == settings.identity(), "the same run, whatever the temperature that was read"
    # The command's own config has no temperature; the run goes on with the one it began with.
    resumed = plan(settings, tmp_path / "run").settings
    assert getattr(resumed.objective, "temperature", None) == pytest.approx(1 / SCALE, rel=1e-5)
    assert load_encoder(tmp_path / "run").scale == pytest.approx(SCALE, rel=1e-5)


def test_what_stands_beside_a_start_is_kept_or_refused(squares: Prepared, sources: Any) -> None:
    start, _ = sources["siglip"]
    own = plan(settings_of(squares, start | {"temperature": False}, objective={"name": "siglip", "bias": -2}))
    assert own.settings.objective.model_dump()["temperature"] == 0.1
    heads = settings_of(squares, start, text_tower={"max_tokens": 9}, image_head={"name": "linear"}, embed_dim=7)
    assert (heads.text_tower.max_tokens, heads.heads[0].name, heads.heads[1].name) == (9, "linear", "identity")
    assert heads.embed_dim == 7 and heads.image_tower.image_size == SIZE
    with refused("objective.temperature", 0.5, start["weights"], remedy="start.temperature=false"):
        plan(settings_of(squares, start, objective={"name": "siglip", "temperature": 0.5}))
    with refused("objective.max_scale", 10, f"{SCALE:g}", remedy=f"objective.max_scale={SCALE:g}"):
        plan(settings_of(squares, start, objective={"name": "siglip", "max_scale": 10}))
    with refused("start.temperature", "vicreg", remedy="start.temperature=false"):
        settings_of(squares, start, objective={"name": "vicreg"})
    with refused("image_tower.name", "conv", "huggingface", remedy="image_tower.name"):
        settings_of(squares, start, image_tower={"name": "conv"})
    with refused("start.name", "openclip", remedy="open_clip"):
        settings_of(squares, {"name": "openclip"})


def test_a_started_run_of_somebodys_own_objective_opens_as_data(squares: Prepared, sources: Any) -> None:
    start, _ = sources["clip"]
    with as_data():
        own = settings_of(squares, start, objective={"name": "somebody.elses:Objective", "temperature": 0.1})
    assert own.objective.name == "somebody.elses:Objective"


def test_what_cannot_be_a_start_is_named(squares: Prepared, tmp_path: Path) -> None:
    from transformers import DistilBertConfig, Siglip2Config, Siglip2TextConfig, Siglip2VisionConfig

    with refused("start.weights", tmp_path / "none"):
        settings_of(squares, {"name": "huggingface", "weights": str(tmp_path / "none")})
    DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32).save_pretrained(tmp_path / "text")
    with refused("start.weights", "DistilBert"):
        settings_of(squares, {"name": "huggingface", "weights": str(tmp_path / "text")})
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    towers = {"text_config": Siglip2TextConfig(**small), "vision_config": Siglip2VisionConfig(**small)}
    Siglip2Config(**towers).save_pretrained(tmp_path / "naflex")  # patches of images of any size
    with refused("start.weights", "naflex"):
        settings_of(squares, {"name": "huggingface", "weights": str(tmp_path / "naflex")})
    with refused("start.model", "ViT-B/32", remedy="ViT-B-32"):
        settings_of(squares, {"name": "open_clip", "model": "ViT-B/32"})
