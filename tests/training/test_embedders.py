"""Embedders of other people's models: what these give by their own preprocessing and forward, score by score."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from evaluation import retrieval
from evaluation.embedder import load_embedder
from pipelines.program.errors import UserError
from tests.refusals import refused
from tests.training.hub import hub, photographs
from tests.training.towers.text_models import DUAL, save

MODEL = "raylign-embedder-test"
CAPTIONS = ["a photo of a cat.", "  Two DOGS, playing -- in 1985?! ", "caf\u00e9 \u2615", "word " * 100, "a red car", "rain"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small open_clip model, random."""
    folder = tmp_path_factory.mktemp("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / f"{MODEL}.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model: Any = open_clip.create_model(MODEL, load_weights=False)
    torch.save(model.state_dict(), folder / "w.pt")
    return folder / "w.pt"


def unit(rows: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(rows, dim=-1).detach().numpy()


def assert_same_scores(embedder: Any, images: np.ndarray, texts: np.ndarray) -> None:
    """Cosines to 1e-5, and every rank."""
    own_images, own_texts = embedder.embed_images(photographs()), embedder.embed_texts(CAPTIONS)
    assert own_images.dtype == own_texts.dtype == np.float32
    np.testing.assert_allclose(own_images @ own_texts.T, images @ texts.T, atol=1e-5)
    right = [np.asarray([i]) for i in range(len(CAPTIONS))]
    for own, theirs in (((own_images, own_texts), (images, texts)), ((own_texts, own_images), (texts, images))):
        assert np.array_equal(retrieval.ranks(*own, right), retrieval.ranks(*theirs, right))


def test_open_clip(published: Path) -> None:
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL, pretrained=str(published))
    model.eval()
    images = unit(model.encode_image(torch.stack([preprocess(image) for image in photographs()])))
    texts = unit(model.encode_text(open_clip.get_tokenizer(MODEL)(CAPTIONS)))
    embedder = load_embedder("training.embedders:open_clip", {"model": MODEL, "weights": str(published)})
    assert_same_scores(embedder, images, texts)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub(request.param, tmp_path_factory.mktemp(request.param))


def test_hugging_face(folder: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    padding = "max_length" if "siglip" in folder.name else True
    given = processor(text=CAPTIONS, images=photographs(), padding=padding, truncation=True, return_tensors="pt")
    out = model(**given)  # the model's own way to a score, both halves at once
    embedder = load_embedder("training.embedders:huggingface", {"weights": str(folder)})
    assert_same_scores(embedder, out.image_embeds.detach().numpy(), out.text_embeds.detach().numpy())


def test_the_scale_is_the_models_own(published: Path, folder: Path) -> None:
    """What it multiplies cosines by before it adds a bias, if it has one."""
    from transformers import AutoModel

    with torch.no_grad():
        model: Any = open_clip.create_model(MODEL, pretrained=str(published)).eval()
        _, _, scale = model(torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.int64))
        embedder = load_embedder("training.embedders:open_clip", {"model": MODEL, "weights": str(published)})
        assert embedder.scale == pytest.approx(float(scale)) == pytest.approx(1 / 0.07)

        network = AutoModel.from_pretrained(folder).eval()
        network.logit_scale.fill_(np.log(30))  # the same in a test and in a published model
        network.save_pretrained(folder)
        images, ids = torch.rand(2, 3, 32, 32), torch.tensor([[49406, 5, 6, 49407], [49406, 700, 8, 49407]])
        out = network(input_ids=ids, pixel_values=images)
        cosines = out.text_embeds @ out.image_embeds.T
        slope = (out.logits_per_text - out.logits_per_text[0, 0])[1] / (cosines - cosines[0, 0])[1]
        embedder = load_embedder("training.embedders:huggingface", {"weights": str(folder)})
        assert embedder.scale == pytest.approx(30) and slope.numpy() == pytest.approx(30, rel=1e-3)


def test_an_open_clip_models_fingerprint_is_what_decides_its_rows(published: Path, tmp_path: Path) -> None:
    def fingerprint(weights: Path, model: str = MODEL) -> str:
        return load_embedder("training.embedders:open_clip", {"model": model, "weights": str(weights)}).fingerprint

    embedder = load_embedder("training.embedders:open_clip", {"model": MODEL, "weights": str(published)})
    first = embedder.fingerprint
    embedder.embed_images(photographs())
    embedder.embed_texts(CAPTIONS)
    assert embedder.fingerprint == first == fingerprint(published)
    moved = tmp_path / "elsewhere.pt"
    weights = torch.load(published)
    torch.save(weights, moved)
    assert fingerprint(moved) == first
    weights["visual.proj"][3, 5] += 1e-6
    torch.save(weights, tmp_path / "one.pt")
    changed = [fingerprint(tmp_path / "one.pt")]
    config = json.loads((published.parent / f"{MODEL}.json").read_text())
    tokens = {"text_cfg": config["text_cfg"] | {"tokenizer_kwargs": {"clean": "lower"}}}
    for name, change in (("tokens", tokens), ("quick", {"quick_gelu": True})):
        (tmp_path / f"{MODEL}-{name}.json").write_text(json.dumps(config | change))
        open_clip.add_model_config(tmp_path)
        changed.append(fingerprint(published, f"{MODEL}-{name}"))
    other = load_embedder("training.embedders:open_clip", {"model": MODEL, "weights": str(published)})
    other._network.visual.preprocess_cfg["mean"] = (0.5, 0.5, 0.5)  # type: ignore[attr-defined]
    assert len({first, *changed, other.fingerprint}) == 5


def test_a_hugging_face_models_fingerprint_is_what_decides_its_rows(tmp_path: Path) -> None:
    folder = save(*DUAL["clip"], tmp_path / "hub")

    def fingerprint(where: Path) -> str:
        return load_embedder("training.embedders:huggingface", {"weights": str(where)}).fingerprint

    def changed(file: str, change: Callable[[Any], None]) -> str:
        """Of a copy with a change in one of its JSON files."""
        copy = shutil.copytree(folder, tmp_path / str(len(list(tmp_path.iterdir()))))
        tree = json.loads((copy / file).read_text())
        change(tree)
        (copy / file).write_text(json.dumps(tree))
        return fingerprint(copy)

    embedder = load_embedder("training.embedders:huggingface", {"weights": str(folder)})
    embedder.embed_texts(CAPTIONS)  # sets the tokenizer's padding
    first = embedder.fingerprint
    assert first == fingerprint(folder) == changed("config.json", lambda tree: None)
    found = [
        changed("processor_config.json", lambda tree: tree["image_processor"].update(image_mean=[0.1, 0.2, 0.3])),
        changed("tokenizer.json", lambda tree: tree["model"]["vocab"].pop("two")),
        changed("config.json", lambda tree: tree["vision_config"].update(hidden_act="relu")),
    ]
    network: Any = embedder._network
    with torch.no_grad():
        next(network.text_model.parameters())[0, 0] += 1e-6
    network.save_pretrained(copy := shutil.copytree(folder, tmp_path / "weight"))
    assert len({first, *found, fingerprint(copy)}) == 5


def test_what_is_no_dual_encoder_is_named(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, vocab_size=30)).save_pretrained(tmp_path)
    BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(tmp_path)
    with refused("embedder_arguments.weights", tmp_path, "BertModel"):
        load_embedder("training.embedders:huggingface", {"weights": str(tmp_path)})
    with pytest.raises(UserError, match=r"embedder_arguments\.weights: .*/nothing"):
        load_embedder("training.embedders:huggingface", {"weights": f"{tmp_path}/nothing"})
    with refused("embedder_arguments.model", "ViT-B/32", remedy="ViT-B-32"):
        load_embedder("training.embedders:open_clip", {"model": "ViT-B/32"})
