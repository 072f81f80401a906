"""Image towers of many architectures against the libraries that they come from: the same image in, the same row out, anywhere.

Small random models are saved as their library saves them, and loaded by a tower. A square image of the model's size goes through
the library's own preprocessing and forward, and through the tower. Each must agree to 1e-5, in another process too, or be refused
by name. How an image becomes such a square is the pipeline's part, so processors resize and crop nothing here.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers as t
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn

from tests.forked import in_a_process
from tests.refusals import refused
from training.towers import ImageTowerUnion
from training.towers.image import HuggingFaceVisionSettings, ImageTower, ImageTowerSettings, TimmSettings
from training.towers.image_states import states_width
from training.towers.open_clip import OpenClipImageSettings

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = WIDE | {"image_size": 32, "patch_size": 8}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def pooler(out: Any) -> Tensor:
    return out.pooler_output.flatten(1)


def first(out: Any) -> Tensor:
    return out.last_hidden_state[:, 0]


def mean(out: Any) -> Tensor:
    return out.last_hidden_state.mean(1)


def space(out: Any) -> Tensor:
    return out.last_hidden_state.mean((2, 3))


class Case(NamedTuple):
    """A model of transformers, the processor that it is published with, and where its own classifiers read their row."""

    config: Any
    row: Callable[[Any], Tensor]
    processor: Any
    size: int = 32
    model: Any = None  # the class that is saved, where it is another than the bare model
    projected: bool = False


def hugging_face() -> dict[str, Case]:
    half, image_net = t.ViTImageProcessor(), t.ViTImageProcessor(**IMAGENET)
    clip, siglip = t.CLIPImageProcessor(), t.SiglipImageProcessor()
    text = WIDE | {"vocab_size": 100, "max_position_embeddings": 12, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 97}
    both = {"text_config": text, "vision_config": WIDE | {"image_size": 32, "patch_size": 16}}
    return {
        "vit": Case(t.ViTConfig(**VIT), pooler, half),
        "vit-of-a-classifier": Case(t.ViTConfig(**VIT), first, half, model=t.ViTForImageClassification),
        "vit-not-normalised": Case(t.ViTConfig(**VIT), pooler, t.ViTImageProcessor(do_normalize=False)),
        "vit-of-levels-to-255": Case(t.ViTConfig(**VIT), pooler, t.ViTImageProcessor(do_rescale=False, image_mean=[120] * 3)),
        "vit-rescaled-otherwise": Case(t.ViTConfig(**VIT), pooler, t.ViTImageProcessor(rescale_factor=1 / 127.5)),
        "deit": Case(t.DeiTConfig(**VIT), pooler, t.DeiTImageProcessor()),
        "beit": Case(t.BeitConfig(**VIT), pooler, t.BeitImageProcessor()),
        "data2vec": Case(t.Data2VecVisionConfig(**VIT), first, t.BeitImageProcessor()),
        "dinov2": Case(t.Dinov2Config(**VIT), pooler, t.BitImageProcessor(**IMAGENET)),
        "dinov2-registers": Case(t.Dinov2WithRegistersConfig(**VIT), pooler, t.BitImageProcessor(**IMAGENET)),
        "dinov3": Case(t.DINOv3ViTConfig(**VIT), pooler, image_net),
        "vit-msn": Case(t.ViTMSNConfig(**VIT), first, image_net),
        "ijepa": Case(t.IJepaConfig(**VIT), mean, half, model=t.IJepaForImageClassification),
        "swin": Case(t.SwinConfig(**SWIN), pooler, image_net),
        "swinv2": Case(t.Swinv2Config(**SWIN), pooler, image_net),
        "convnext": Case(t.ConvNextConfig(**STAGES), pooler, t.ConvNextImageProcessor(**IMAGENET)),
        "convnextv2": Case(t.ConvNextV2Config(**STAGES), pooler, t.ConvNextImageProcessor(**IMAGENET)),
        "resnet": Case(t.ResNetConfig(embedding_size=8, **STAGES), pooler, t.ConvNextImageProcessor(**IMAGENET)),
        "regnet": Case(t.RegNetConfig(embedding_size=8, groups_width=8, **STAGES), pooler, t.ConvNextImageProcessor(**IMAGENET)),
        "bit": Case(t.BitConfig(embedding_size=8, num_groups=2, **STAGES), pooler, t.BitImageProcessor(), 64),
        "efficientnet": Case(
            t.EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, image_size=32, hidden_dim=128),
            pooler,
            t.EfficientNetImageProcessor(),
        ),
        "mobilenet-v1": Case(t.MobileNetV1Config(depth_multiplier=0.25), pooler, t.MobileNetV1ImageProcessor(), 64),
        "mobilenet-v2": Case(t.MobileNetV2Config(depth_multiplier=0.25), pooler, t.MobileNetV2ImageProcessor()),
        "mobilevit": Case(
            t.MobileViTConfig(
                image_size=32, hidden_sizes=[8, 12, 16], neck_hidden_sizes=[4, 8, 8, 8, 8, 8, 32], num_attention_heads=2
            ),
            pooler,
            t.MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        ),
        "levit": Case(
            t.LevitConfig(
                image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[1, 1, 2], depths=[1, 1, 1], key_dim=[8] * 3
            ),
            pooler,
            t.LevitImageProcessor(),
            64,
        ),
        "pvt": Case(t.PvtConfig(image_size=32, **STAGES, num_attention_heads=[1, 1, 2, 2]), first, t.PvtImageProcessor()),
        "poolformer": Case(t.PoolFormerConfig(**STAGES), space, t.PoolFormerImageProcessor()),
        "segformer": Case(t.SegformerConfig(**STAGES, num_attention_heads=[1, 1, 2, 2]), space, t.SegformerImageProcessor()),
        "clip-vision": Case(t.CLIPVisionConfig(**VIT), pooler, clip),
        "siglip-vision": Case(t.SiglipVisionConfig(**VIT), pooler, siglip),
        "clip": Case(t.CLIPConfig(**both, projection_dim=20), pooler, clip, projected=True),
        "siglip": Case(t.SiglipConfig(**both), pooler, siglip, projected=True),
    }


TIMM: dict[str, tuple[dict[str, Any], int]] = {
    "test_vit": ({}, 64),
    "test_vit2": ({}, 64),
    "test_efficientnet": ({}, 64),
    "test_resnet": ({}, 64),
    "test_byobnet": ({}, 64),
    "test_convnext": ({}, 64),
    "test_nfnet": ({}, 64),
    "test_mambaout": ({}, 64),
    "swin_tiny_patch4_window7_224": ({"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}, 64),
    "deit_tiny_distilled_patch16_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 64),
    "beit_base_patch16_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 64),
    "eva02_tiny_patch14_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 56),  # made without a classifier
    "cait_xxs24_224": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 64),
    "mobilenetv3_small_050": ({}, 64),
    "flexivit_small": ({"embed_dim": 32, "depth": 1, "num_heads": 2}, 64),
    "hiera_tiny_224": ({"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}, 96),
}

OPEN_CLIP: dict[str, dict[str, Any]] = {
    "vit": {"layers": 1, "width": 64, "patch_size": 16},
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "vit-quick-gelu": {"layers": 1, "width": 64, "patch_size": 16},
    "timm": {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
}
NAMES = [*hugging_face(), *TIMM, *(f"open_clip-{name}" for name in OPEN_CLIP)]


def image(size: int) -> np.ndarray:
    """uint8 [2, size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def fill(network: nn.Module) -> None:
    """Random numbers of a scale at which every layer matters; initial ones are near to zero in many a model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim > 1:
                tensor.normal_(0, (2 / max(tensor[0].numel(), 1)) ** 0.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0, 0.1, generator=generator)
            elif tensor.is_floating_point() and tensor.ndim:  # scales, of which some begin as nothing
                tensor.uniform_(0.5, 1.5, generator=generator)


def save_hugging_face(case: Case, folder: Path) -> ImageTowerSettings:
    model = t.AutoModel.from_config(case.config) if case.model is None else case.model(case.config)
    fill(model)
    model.save_pretrained(folder)
    case.processor.save_pretrained(folder)
    return HuggingFaceVisionSettings(name="huggingface", weights=str(folder), image_size=case.size, projected=case.projected)


def save_timm(name: str, file: Path) -> ImageTowerSettings:
    options, size = TIMM[name]
    settings = TimmSettings(name="timm", model=name, weights=str(file), options=options, image_size=size)
    torch.save(timm_model(name, num_classes=10).state_dict(), file)
    return settings


def timm_model(name: str, **changes: Any) -> Any:
    options, size = TIMM[name]
    about: Any = timm.get_pretrained_cfg(name)
    model = timm.create_model(name, **({"img_size": size} if about.fixed_input_size else {}), **options, **changes)
    fill(model)
    return model


def save_open_clip(name: str, folder: Path) -> ImageTowerSettings:
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": {"image_size": 64} | OPEN_CLIP[name], "text_cfg": text}
    (folder / f"raylign-{name}.json").write_text(json.dumps(config | {"quick_gelu": name.endswith("quick-gelu")}))
    open_clip.add_model_config(folder)
    model = open_clip.create_model(f"raylign-{name}", load_weights=False)
    fill(model)
    torch.save(model.state_dict(), folder / f"{name}.pt")
    weights = str(folder / f"{name}.pt")
    return OpenClipImageSettings(name="open_clip", model=f"raylign-{name}", weights=weights, image_size=64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models run no faster on several, and much slower beside others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageTowerSettings]:
    folder = tmp_path_factory.mktemp("models")
    settings = {name: save_hugging_face(case, folder / name) for name, case in hugging_face().items()}
    settings |= {name: save_timm(name, folder / f"{name}.pth") for name in TIMM}
    return settings | {f"open_clip-{name}": save_open_clip(name, folder) for name in OPEN_CLIP}


@pytest.fixture(scope="module")
def towers(saved: dict[str, ImageTowerSettings]) -> Callable[[str], ImageTower]:
    built: dict[str, ImageTower] = {}

    def get(name: str) -> ImageTower:
        if name not in built:
            built[name] = saved[name].build().eval()
        return built[name]

    return get


@torch.no_grad()
def rows(tower: ImageTower, size: int) -> Tensor:
    return tower(torch.from_numpy(image(size)).permute(0, 3, 1, 2))


@torch.no_grad()
def reference(name: str, settings: Any) -> Tensor:
    """The library's own preprocessing and forward."""
    given = image(settings.image_size)
    if isinstance(settings, HuggingFaceVisionSettings):
        case = hugging_face()[name]
        processor: Any = t.AutoImageProcessor.from_pretrained(settings.weights)
        pixels = processor(images=list(given), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
        network: Any = t.AutoModel.from_pretrained(settings.weights).eval()
        return case.row(network.get_image_features(pixels) if case.projected else network(pixel_values=pixels))
    if isinstance(settings, TimmSettings):
        model = timm_model(name, num_classes=0).eval()
        config = timm.data.resolve_data_config(model=model) | {"input_size": (3, *given.shape[1:3]), "crop_pct": 1.0}
        transform: Any = timm.data.create_transform(**config, is_training=False)
    else:
        clip: Any = open_clip.create_model(settings.model, pretrained=settings.weights).eval()
        model = clip.visual
        transform = image_transform_v2(PreprocessCfg(**model.preprocess_cfg), is_train=False)
    return model(torch.stack([transform(Image.fromarray(one)) for one in given]))


@pytest.mark.parametrize("name", NAMES)
def test_a_tower_gives_what_its_library_gives(
    name: str, saved: dict[str, ImageTowerSettings], towers: Callable[[str], ImageTower]
) -> None:
    expected = reference(name, saved[name])
    found = rows(towers(name), saved[name].image_size)
    assert towers(name).width == expected.shape[1]
    scale = expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() / scale > 1e-3, "a row that tells nothing of the image would test nothing"
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)


# Of an image as small as the tests', their last feature map has one place, or they give tokens in some other way.
ONE_PLACE = {"convnext", "convnextv2", "resnet", "regnet", "efficientnet", "mobilenet-v2", "mobilevit", "levit", "pvt"}
ONE_PLACE |= {"poolformer", "segformer"}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_states_are_those_of_places_and_come_with_the_same_row(
    name: str, saved: dict[str, ImageTowerSettings], towers: Callable[[str], ImageTower]
) -> None:
    """Hide one place of an image: of all states its own changes most, wherever a library puts class tokens and channels."""
    tower, size = towers(name), saved[name].image_size
    if name in ONE_PLACE:
        with refused("image_tower", size, remedy="image_tower.image_size"):
            states_width(tower, size)
        return
    images = torch.from_numpy(image(size)).permute(0, 3, 1, 2)
    row, states = tower.with_states(images)
    assert torch.equal(row, tower(images))
    assert states.shape == (2, states.shape[1], states_width(tower, size)) and not tower.training
    places = states.shape[1]
    hidden = torch.eye(places, dtype=torch.bool)
    changes = [(tower.with_states(images, one.expand(2, -1))[1] - states).norm(dim=2).argmax(1) for one in hidden]
    hits = sum(int((changed == place).sum()) for place, changed in enumerate(changes))
    assert places < 9 or hits > 2 * places / 3, "of another order, a quarter at most"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_that_trains_gets_a_gradient(
    name: str, saved: dict[str, ImageTowerSettings], towers: Callable[[str], ImageTower]
) -> None:
    """One without, such as a mask token or a pooling head that we do not use, would stop several workers."""
    tower, size = towers(name), saved[name].image_size
    tower(torch.from_numpy(image(size)).permute(0, 3, 1, 2)).sum().backward()
    got = {key: p.grad is not None for key, p in tower.named_parameters() if p.requires_grad}
    assert got and all(got.values())
    assert not any(key.endswith("mask_token") for key in got)
    tower.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_built_again_without_its_files(
    name: str, saved: dict[str, ImageTowerSettings], towers: Callable[[str], ImageTower]
) -> None:
    """Of what a checkpoint tells and its weights: the same row, and the same parameters to be trained."""
    tower, gone = towers(name), {"weights": "/nowhere/at/all"}
    again = saved[name].model_copy(update=gone).rebuild(json.loads(json.dumps(tower.about)), 0)
    again.load_state_dict(tower.state_dict())
    size = saved[name].image_size
    torch.testing.assert_close(rows(again, size), rows(tower, size))  # the last bit depends on where the weights lie in memory
    assert again.width == tower.width
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {n: p.requires_grad for n, p in tower.named_parameters()}


def rows_elsewhere(folder: Path, trees: dict[str, Any]) -> dict[str, np.ndarray]:
    """Of towers as a config names them, and open_clip's config in this folder."""
    torch.set_num_threads(1)
    open_clip.add_model_config(folder)
    built: dict[str, Any] = {name: TypeAdapter(ImageTowerUnion).validate_python(tree) for name, tree in trees.items()}
    return {name: rows(settings.build().eval(), settings.image_size).numpy() for name, settings in built.items()}


@pytest.mark.slow
def test_a_tower_is_the_same_in_another_process(
    saved: dict[str, ImageTowerSettings], towers: Callable[[str], ImageTower]
) -> None:
    folder = Path(saved["open_clip-vit"].weights).parent  # type: ignore[attr-defined]
    trees = {name: settings.model_dump(mode="json") for name, settings in saved.items()}
    there = in_a_process(rows_elsewhere, folder, trees)
    assert there.keys() == set(NAMES)
    for name in NAMES:
        here = rows(towers(name), saved[name].image_size).numpy()
        np.testing.assert_allclose(there[name], here, atol=1e-5 * np.abs(here).max(), rtol=0, err_msg=name)
