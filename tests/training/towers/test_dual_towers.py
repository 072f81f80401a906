"""Towers that are halves of a dual encoder: what open_clip, Hugging Face and our own checkpoints give for the same input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from pipelines.dataset.prepared import Prepared
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.one_step import one_step
from tests.training.towers.text_models import tokenizer_of
from training.checkpoint import load_embedder
from training.config import TrainSettings
from training.saved_towers import Frozen
from training.tensor_tree import load_tree
from training.towers.from_run import RunImageSettings, RunTextSettings
from training.towers.image import HuggingFaceVisionSettings
from training.towers.open_clip import OpenClipImageSettings, OpenClipTextSettings
from training.towers.text import HuggingFaceTextSettings

MODEL = "raylign-test"
SIZE, WORDS = 32, 77
CAPTIONS = [
    "a photo of a cat.",
    "  A  PHOTO of   two DOGS,  playing -- in 1985?! ",
    "it's the dog's ball; they're off (again)",
    "caf\u00e9 \u2615 na\u00efve \U0001f469\u200d\U0001f680 emoji",
    "\u0645\u0631\u062d\u0628\u0627 \u043f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d",
    "",
    "word " * 100,
    "AT&amp;T caf\u00c3\u00a9 \u2019quoted\u2019 \ufb01ne",  # cleaned before: entities, wrong decodings, ligatures
    "<|endoftext|> is no end of text, <end_of_text> is",
]


def images(size: int, rows: int = 3) -> Tensor:
    return torch.randint(0, 256, (rows, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A small open_clip model with random weights, and the file that holds them."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": WORDS, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / f"{MODEL}.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model: Any = open_clip.create_model(MODEL, load_weights=False)
    model.visual.preprocess_cfg["mean"], model.visual.preprocess_cfg["std"]
    torch.save(model.state_dict(), folder / "w.pt")
    return model.eval(), folder / "w.pt"


def test_open_clips_image_half(released: tuple[Any, Path]) -> None:
    model, path = released
    settings = OpenClipImageSettings(name="open_clip", model=MODEL, weights=str(path), image_size=SIZE)
    tower, given = settings.build().eval(), images(SIZE)
    config = model.visual.preprocess_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    direct = model.encode_image((given / 255 - mean) / std)
    assert tower.width == 24
    torch.testing.assert_close(tower(given), direct, atol=1e-5, rtol=1e-5)
    tower.train()(given).sum().backward()
    assert [name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("tokens", [WORDS, 20])
def test_open_clips_text_half_and_its_tokens(released: tuple[Any, Path], tokens: int) -> None:
    model, path = released
    settings = OpenClipTextSettings(name="open_clip", model=MODEL, weights=str(path), max_tokens=tokens)
    tokenizer = settings.tokenizer(lambda: ["never looked at"])
    ids, mask = (torch.from_numpy(a) for a in tokenizer(CAPTIONS))
    theirs = open_clip.get_tokenizer(MODEL)(CAPTIONS, context_length=tokens)
    assert torch.equal(ids, theirs)
    tower = settings.build(tokenizer.vocabulary_size).eval()
    whole = torch.nn.functional.pad(theirs, (0, WORDS - tokens))
    torch.testing.assert_close(tower(ids, mask), model.encode_text(whole), atol=1e-5, rtol=1e-5)
    tower.train()(ids, mask).sum().backward()
    assert [name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None] == []


def test_open_clips_siglip_reads_texts_by_the_tokenizer_beside_its_weights(released: tuple[Any, Path], tmp_path: Path) -> None:
    """Which open_clip itself is given by its folder; padding is read, and texts are cleaned as the model's config says."""
    vision = json.loads((released[1].parent / f"{MODEL}.json").read_text())["vision_cfg"]
    text = {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2, "pool_type": "last"}
    text |= {"no_causal_mask": True, "hf_tokenizer_name": str(tmp_path), "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {"embed_dim": 24, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / f"{MODEL}-siglip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{MODEL}-siglip.json")
    tokenizer_of("siglip").save_pretrained(tmp_path)
    torch.manual_seed(0)
    model: Any = open_clip.create_model(f"{MODEL}-siglip", load_weights=False).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    kind = {"name": "open_clip", "model": f"{MODEL}-siglip", "weights": str(tmp_path / "w.pt"), "max_tokens": 16}
    settings = OpenClipTextSettings.model_validate(kind)
    tokenizer = settings.tokenizer(list)
    captions = ["a red cat, on: the MAT!", "dog", "  two   dogs ", "the " * 30, ""]
    ids, mask = map(torch.from_numpy, tokenizer(captions))
    theirs = open_clip.get_tokenizer(f"{MODEL}-siglip")(captions)
    assert torch.equal(ids, theirs) and bool(mask.all())
    tower = settings.build(tokenizer.vocabulary_size).eval()
    with torch.no_grad():
        torch.testing.assert_close(tower(ids, mask), model.encode_text(theirs), atol=1e-5, rtol=1e-5)


def test_open_clips_text_half_is_built_again_with_its_activation(released: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = released
    config = json.loads((path.parent / f"{MODEL}.json").read_text()) | {"quick_gelu": True}
    (tmp_path / f"{MODEL}-quick.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    settings = OpenClipTextSettings(name="open_clip", model=f"{MODEL}-quick", weights=str(path), max_tokens=WORDS)
    tokenizer = settings.tokenizer(list)
    tower = settings.build(tokenizer.vocabulary_size).eval()
    gone = settings.model_copy(update={"weights": "/nowhere/at/all"})
    again = gone.rebuild(json.loads(json.dumps(tower.about)), tokenizer.vocabulary_size)
    again.load_state_dict(tower.state_dict())
    ids, mask = map(torch.from_numpy, tokenizer(CAPTIONS))
    with torch.no_grad():
        torch.testing.assert_close(again(ids, mask), tower(ids, mask))
        plain = settings.model_copy(update={"model": MODEL}).build(tokenizer.vocabulary_size).eval()
        assert (plain(ids, mask) - tower(ids, mask)).abs().max() > 1e-4, "the activation matters"


def test_what_open_clip_has_not_is_named(released: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = released
    with refused("k.model", "ViT-B/32", remedy="ViT-B-32"):
        OpenClipImageSettings(name="open_clip", model="ViT-B/32", weights="openai").identity("k")
    with refused("k.weights", "'laion2b'", "ViT-B-32", remedy="laion2b_e16"):
        OpenClipImageSettings(name="open_clip", model="ViT-B-32", weights="laion2b").check_source("k")
    with refused("image_tower.image_size", 224, MODEL, remedy="image_tower.image_size=32"):
        OpenClipImageSettings(name="open_clip", model=MODEL, weights=str(path)).build()
    with refused("text_tower.max_tokens", 90, MODEL, remedy="text_tower.max_tokens=77"):
        OpenClipTextSettings(name="open_clip", model=MODEL, weights=str(path), max_tokens=90).tokenizer(list)
    # Of a frozen encoder, its own keys: those of the run's tower would change another network.
    key = "frozen_encoders.image_encoder"
    with refused(f"{key}.image_size", 224, remedy=f"{key}.image_size=32"):
        Frozen(OpenClipImageSettings(name="open_clip", model=MODEL, weights=str(path)), key, None, {}).build()
    key = "frozen_encoders.text_encoder"
    with refused(f"{key}.max_tokens", 90, remedy=f"{key}.max_tokens=77"):
        Frozen(OpenClipTextSettings(name="open_clip", model=MODEL, max_tokens=90), key, None, {}).tokenizer(list)
    with refused("text_tower.model", "roberta-ViT-B-32", remedy="huggingface"):
        OpenClipTextSettings(name="open_clip", model="roberta-ViT-B-32").tokenizer(list)
    with refused("text_tower.max_tokens", 77, remedy="text_tower.max_tokens=64"):
        OpenClipTextSettings(name="open_clip", model="ViT-B-16-SigLIP", weights="webli").tokenizer(list)
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pt")
    with refused("image_tower.weights", tmp_path / "other.pt", MODEL):
        OpenClipImageSettings(name="open_clip", model=MODEL, weights=str(tmp_path / "other.pt"), image_size=SIZE).build()


@pytest.mark.parametrize("clean", ["canonicalize", "whitespace"])
def test_open_clips_texts_are_cleaned_as_its_config_says_and_in_a_run_too(
    clean: str, released: tuple[Any, Path], stamps: Prepared, tmp_path: Path
) -> None:
    _, path = released
    config = json.loads((path.parent / f"{MODEL}.json").read_text())
    config["text_cfg"]["tokenizer_kwargs"] = {"clean": clean}
    (tmp_path / f"{MODEL}-{clean}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    settings = OpenClipTextSettings(name="open_clip", model=f"{MODEL}-{clean}", weights=str(path), max_tokens=WORDS)
    theirs = open_clip.get_tokenizer(f"{MODEL}-{clean}")
    assert torch.equal(torch.from_numpy(settings.tokenizer(list)(CAPTIONS)[0]), theirs(CAPTIONS))
    run = run_settings(stamps, text_tower=settings.model_dump(mode="json"), text_head={"name": "identity"}, embed_dim=24)
    embedder: Any = load_embedder(str(checkpoint_of(run, stamps, tmp_path / "run")))
    with torch.no_grad():
        right = torch.nn.functional.normalize(embedder._encoder.text_tower.model.encode_text(theirs(CAPTIONS)))
    np.testing.assert_allclose(embedder.embed_texts(CAPTIONS), right.numpy(), atol=1e-5)


def test_what_of_open_clips_tokenizers_is_not_read_is_refused(released: tuple[Any, Path], tmp_path: Path) -> None:
    config = json.loads((released[1].parent / f"{MODEL}.json").read_text())
    config["text_cfg"]["tokenizer_kwargs"] = {"reduction_mask": "shuffle"}
    (tmp_path / f"{MODEL}-shuffle.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    with refused("text_tower.model", f"{MODEL}-shuffle", "reduction_mask"):
        OpenClipTextSettings(name="open_clip", model=f"{MODEL}-shuffle").tokenizer(list)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as from the hub, with a tiny CLIP or SigLIP."""
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipImageProcessor, SiglipModel

    folder = tmp_path_factory.mktemp(request.param)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": SIZE, "patch_size": 16}
    text = sizes | {"vocab_size": 100, "max_position_embeddings": 12, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 97}
    torch.manual_seed(0)
    if request.param == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    else:
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
    model.save_pretrained(folder)
    SiglipImageProcessor().save_pretrained(folder)  # levels from -1 to 1
    return folder


def test_hugging_faces_halves(hub: Path) -> None:
    from transformers import AutoModel

    model: Any = AutoModel.from_pretrained(hub).eval()
    given = images(SIZE)
    ids = torch.full((3, 12), 97)
    ids[:, :6] = torch.tensor([[98, 5, 6, 99, 97, 97], [98, 7, 99, 97, 97, 97], [98, 1, 2, 3, 4, 99]])
    mask = (ids != 97).long()
    image = HuggingFaceVisionSettings(name="huggingface", weights=str(hub), image_size=SIZE, projected=True).build().eval()
    text = HuggingFaceTextSettings(name="huggingface", weights=str(hub), max_tokens=12, projected=True).build(100).eval()
    direct = model.get_image_features(pixel_values=given / 127.5 - 1).pooler_output
    torch.testing.assert_close(image(given), direct, atol=1e-5, rtol=1e-5)
    direct = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    torch.testing.assert_close(text(ids, mask), direct, atol=1e-5, rtol=1e-5)
    assert image.width == text.width == direct.shape[1]
    for tower, arguments in ((image.train(), (given,)), (text.train(), (ids, mask))):
        tower(*arguments).sum().backward()
        assert [name for name, p in tower.named_parameters() if p.requires_grad and p.grad is None] == []


def run_settings(stamps: Prepared, **changes: Any) -> TrainSettings:
    tree: dict[str, Any] = {
        "name": "run",
        "data": {"path": str(stamps.path)},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]},
        "text_tower": {"name": "bag", "width": 8, "max_tokens": 9, "vocabulary_size": 90},
        "embed_dim": 12,
        "epochs": 1,
        "global_batch_size": 24,
    }
    return validate(TrainSettings, tree | changes, "run")


def checkpoint_of(settings: TrainSettings, stamps: Prepared, folder: Path) -> Path:
    folder.mkdir()
    one_step(settings, folder)
    return folder


@pytest.fixture(scope="module")
def trained(stamps: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours."""
    return checkpoint_of(run_settings(stamps), stamps, tmp_path_factory.mktemp("run") / "checkpoint")


def halves(folder: Path) -> tuple[RunImageSettings, RunTextSettings]:
    return RunImageSettings(name="run", path=folder, image_size=16), RunTextSettings(name="run", path=folder, max_tokens=9)


def test_our_own_halves(trained: Path) -> None:
    embedder, (image, text) = load_embedder(str(trained)), halves(trained)
    given, captions = images(16), ["a thing of kind 3", "image number 12"]
    tokenizer = text.tokenizer(lambda: [])
    rows = torch.nn.functional.normalize(
        text.build(tokenizer.vocabulary_size).eval()(*map(torch.from_numpy, tokenizer(captions)))
    )
    np.testing.assert_allclose(rows.detach().numpy(), embedder.embed_texts(captions), atol=1e-6)
    rows = torch.nn.functional.normalize(image.build().eval()(given))
    np.testing.assert_allclose(rows.detach().numpy(), embedder._encoder.embed_images(given).detach().numpy(), atol=1e-6)
    assert image.identity("k")["weights"] == text.identity("k")["weights"], "the content of the checkpoint"


def test_what_does_not_fit_a_run_is_named(trained: Path, tmp_path: Path) -> None:
    with refused("image_tower.image_size", 224, trained, remedy="image_tower.image_size=16"):
        RunImageSettings(name="run", path=trained).build()
    with refused("text_tower.max_tokens", 32, trained, remedy="text_tower.max_tokens=9"):
        RunTextSettings(name="run", path=trained).tokenizer(lambda: [])
    with pytest.raises(UserError, match=str(tmp_path / "nothing")):
        RunImageSettings(name="run", path=tmp_path / "nothing").identity("k")


WITH_FROZEN_ENCODERS = {
    "distill": {"name": "distill"},
    "distill-live": {"name": "distill", "live": True},
    "a-clip-ping": {"name": "a-clip-ping"},
}


@pytest.mark.parametrize("case", WITH_FROZEN_ENCODERS)
def test_a_run_teaches_another(stamps: Prepared, trained: Path, case: str, tmp_path: Path) -> None:
    """A real step from pixels, with the halves of the run as frozen encoders; these are no part of the checkpoint."""
    image, text = (half.model_dump(mode="json") for half in halves(trained))
    encoders = {"image_encoder": image, "text_encoder": text}
    settings = run_settings(stamps, objective=WITH_FROZEN_ENCODERS[case], frozen_encoders=encoders, seed=1)
    plan, metrics, state = one_step(settings, tmp_path)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    saved = load_tree(tmp_path, "state")
    assert sum(value.numel() for value in saved["teacher"].values() if isinstance(value, Tensor)) == 0
    if case == "distill":
        assert {"frozen_image_features", "frozen_text_features"} <= plan.stream.columns
        assert plan.stream.frozen_features is not None
        return
    assert {"frozen_text", "frozen_mask"} <= plan.stream.columns and plan.stream.frozen_features is None
    with torch.no_grad():
        saved["teacher"]["_extra_state"] = "another"
        with refused("frozen_encoders"):
            state.load_state_dict(saved)


def test_a_live_teacher_sees_what_the_student_sees(stamps: Prepared, trained: Path, tmp_path: Path) -> None:
    """The view resized to its pixels, and the caption in its tokens."""
    image, text = halves(trained)
    encoders = {"image_encoder": image.model_dump(mode="json"), "text_encoder": text.model_dump(mode="json")}
    tower = {"name": "conv", "image_size": 24, "channels": [8, 16]}
    settings = run_settings(stamps, objective={"name": "a-clip-ping"}, frozen_encoders=encoders, image_tower=tower)
    plan, _, state = one_step(settings, tmp_path)
    views = images(24)
    tokens = plan.stream.frozen_tokenizer
    assert tokens is not None
    ids, mask = (torch.from_numpy(a) for a in tokens(["a thing of kind 3"] * 3))
    with torch.no_grad():
        found = state.teacher({"image": views, "frozen_text": ids, "frozen_mask": mask})
        smaller = torch.nn.functional.interpolate(views.float(), (16, 16), mode="bilinear", antialias=True)
        direct = torch.nn.functional.normalize(image.build().eval()(smaller))
    torch.testing.assert_close(found["frozen_image_features"][:, 0], direct)
    rows = load_embedder(str(trained)).embed_texts(["a thing of kind 3"])
    np.testing.assert_allclose(found["frozen_text_features"][:1, 0].numpy(), rows, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objective": {"name": "distill"}}, "frozen_encoders.*distill.*frozen_encoders.image_encoder"),
        (
            {"objective": {"name": "a-clip-ping"}, "image_tower": {"name": "conv", "mode": "locked"}},
            "objective.name.*a-clip-ping.*locked",
        ),
    ],
)
def test_what_cannot_teach_is_refused_at_once(stamps: Prepared, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        run_settings(stamps, **changes)
