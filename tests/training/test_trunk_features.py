"""Image features before the projection: times the model's own projection they are its rows, for every kind of image half.

Those of SigLIP, which projects nothing, are its rows.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from tests.training.hub import hub, photographs
from training.embedders import HuggingFaceEmbedder, OpenClipEmbedder

TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
TIMM = {"image_size": 160, "timm_model_pretrained": False}
# The multimodal half of CoCa takes its text's width, and 64 a head.
COCA = {"custom_text": True, "multimodal_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}}
COCA_TEXT = {"text_cfg": TEXT | {"width": 64, "heads": 1, "embed_cls": True, "output_tokens": True}}
VIT = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {  # vision_cfg, what else stands in a config, features
    "vit": (VIT, {}, 64),
    "vit-avg": (VIT | {"pool_type": "avg", "final_ln_after_pool": True}, {}, 64),
    "coca": (VIT | {"attentional_pool": True, "output_tokens": True}, COCA | COCA_TEXT, 24),
    "resnet": ({"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}, {}, 256),
    "timm-linear": (TIMM | {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"}, {}, 96),
    "timm-mlp": (TIMM | {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "mlp"}, {}, 96),
    "timm-classifier": (TIMM | {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": None}, {}, 256),
    "timm-none": (TIMM | {"timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"}, {}, 64),
}


def own_projection(network: Any, kind: str, features: torch.Tensor) -> torch.Tensor:
    """By the layer that the model itself ends with."""
    visual = network.visual
    if kind == "resnet":
        return visual.attnpool.c_proj(features)
    if kind == "timm-classifier":
        return visual.trunk.classifier(features)
    return visual.head(features) if kind.startswith("timm") else features @ visual.proj


def open_clip_of(kind: str, vision: dict[str, Any], more: dict[str, Any], folder: Path) -> OpenClipEmbedder:
    width = 64 if kind == "timm-none" else 24
    config = {"embed_dim": width, "vision_cfg": vision, "text_cfg": TEXT} | more
    (folder / f"raylign-{kind}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    embedder = OpenClipEmbedder(f"raylign-{kind}", None)
    for module in embedder._network.visual.modules():  # random networks start with a last layer of zeros here and there
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
    if kind == "coca":  # open_clip leaves it as the memory was, which may be no number
        nn.init.normal_(embedder._network.text_decoder.text_projection)
    return embedder


@pytest.mark.parametrize("kind", KINDS)
def test_open_clip(kind: str, tmp_path: Path) -> None:
    vision, more, width = KINDS[kind]
    embedder = open_clip_of(kind, vision, more, tmp_path)
    before = {name: tensor.clone() for name, tensor in embedder._network.state_dict().items()}
    features = embedder.image_features(photographs())
    assert features.dtype == np.float32 and features.shape == (6, width) and features.std(axis=0).mean() > 0
    with torch.no_grad():
        rows = own_projection(embedder._network, kind, torch.from_numpy(features))
        pixels = torch.stack([embedder._preprocess(image) for image in photographs()])
        own = embedder._network.encode_image(pixels, normalize=False)
    torch.testing.assert_close(rows, own, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(nn.functional.normalize(rows, dim=-1).numpy(), embedder.embed_images(photographs()), atol=1e-5)
    # The model is as it was, and listens to nobody.
    assert all(torch.equal(tensor, before[name]) for name, tensor in embedder._network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in embedder._network.modules())


def test_a_pool_that_projects_has_no_features_before(tmp_path: Path) -> None:
    """timm's trunk gives a map then, and open_clip's attention pool both pools and projects."""
    vision = TIMM | {"timm_model_name": "test_efficientnet", "timm_pool": "abs_attn", "timm_proj": None}
    embedder = open_clip_of("timm-attention", vision, {}, tmp_path)
    assert embedder.embed_images(photographs()).shape == (6, 24) and not hasattr(embedder, "image_features")


@pytest.mark.parametrize("kind", ["clip", "dual", "siglip"])
def test_hugging_face(kind: str, tmp_path: Path) -> None:
    embedder = HuggingFaceEmbedder(str(hub(kind, tmp_path)))
    network, features = embedder._network, embedder.image_features(photographs())
    assert features.dtype == np.float32 and features.shape == (6, 32)
    with torch.no_grad():
        given = embedder._processor(images=photographs(), return_tensors="pt")
        assert np.allclose(features, network.vision_model(**given).pooler_output, atol=1e-6)
        rows = torch.from_numpy(features) if kind == "siglip" else network.visual_projection(torch.from_numpy(features))
        torch.testing.assert_close(rows, network.get_image_features(**given).pooler_output, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(nn.functional.normalize(rows, dim=-1).numpy(), embedder.embed_images(photographs()), atol=1e-5)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_of_a_model_that_names_no_projection_there_are_none(tmp_path: Path) -> None:
    embedder = HuggingFaceEmbedder(str(hub("align", tmp_path)))
    assert embedder.embed_images(photographs()).ndim == 2
    assert not hasattr(embedder, "image_features") and not hasattr(embedder, "scale")
