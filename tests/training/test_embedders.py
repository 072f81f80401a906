"""Embedders of other people's models: what these give by their own preprocessing and forward, score by score."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from evaluation import retrieval
from evaluation.embedder import load_embedder
from pipelines.settings import UserError

MODEL = "raylign-embedder-test"
CAPTIONS = ["a photo of a cat.", "  Two DOGS, playing -- in 1985?! ", "caf\u00e9 \u2615", "word " * 100, "a red car", "rain"]


def photographs() -> list[Image.Image]:
    """Of several sizes and shapes, smooth enough that resizing matters."""
    found = []
    for number, size in enumerate([(40, 30), (64, 64), (31, 90), (224, 100), (8, 8), (50, 33)]):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        found.append(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return found


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
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as from the hub: weights, tokenizer, preprocessing."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
    )

    from training.towers.open_clip import OpenClipTextSettings

    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tokenizer.json").write_text(OpenClipTextSettings(name="open_clip", model="ViT-B-32").tokenizer(list).json)
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    tokens = {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
    text = sizes | tokens | {"vocab_size": 49408, "max_position_embeddings": 16}
    torch.manual_seed(0)
    size = {"height": 32, "width": 32}
    if request.param == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
        pictures: Any = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
        CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    else:
        model = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
        SiglipProcessor(SiglipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def test_hugging_face(hub: Path) -> None:
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(hub).eval(), AutoProcessor.from_pretrained(hub)
    padding = "max_length" if "siglip" in hub.name else True
    given = processor(text=CAPTIONS, images=photographs(), padding=padding, truncation=True, return_tensors="pt")
    out = model(**given)  # the model's own way to a score, both halves at once
    embedder = load_embedder("training.embedders:huggingface", {"weights": str(hub)})
    assert_same_scores(embedder, out.image_embeds.detach().numpy(), out.text_embeds.detach().numpy())


def test_what_is_no_dual_encoder_is_named(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, vocab_size=30)).save_pretrained(tmp_path)
    BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"embedder_arguments\.weights: .* is a BertModel, which does not embed pictures"):
        load_embedder("training.embedders:huggingface", {"weights": str(tmp_path)})
    with pytest.raises(UserError, match=r"embedder_arguments\.weights: .*/nothing"):
        load_embedder("training.embedders:huggingface", {"weights": f"{tmp_path}/nothing"})
    with pytest.raises(UserError, match="model: open_clip has no 'ViT-B/32'; did you mean ViT-B-32"):
        load_embedder("training.embedders:open_clip", {"model": "ViT-B/32"})
