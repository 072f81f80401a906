"""What an image tower refuses: files that lack weights, pixels that it cannot make, sizes that the model does not take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from training.towers.base import load_weights
from training.towers.image import HuggingFaceVisionSettings, ImageTower, TimmSettings
from training.towers.open_clip import OpenClipImageSettings

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SIZES |= {"image_size": 32, "patch_size": 8}


def vit(folder: Path, processor: Any = None) -> Path:
    torch.manual_seed(0)
    t.ViTModel(t.ViTConfig(**SIZES)).save_pretrained(folder)
    (processor or t.ViTImageProcessor()).save_pretrained(folder)
    return folder


def build(folder: Path, size: int = 32) -> ImageTower:
    return HuggingFaceVisionSettings(name="huggingface", weights=str(folder), image_size=size).build()


def edit(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: tensor for key, tensor in weights.items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("cls_token"), ["ViTModel", "embeddings.cls_token"]),
        (without("pooler.dense.bias"), ["pooler.dense.bias"]),  # half a pooler is not the model without one
        (
            lambda weights: {f"backbone.{key}": tensor for key, tensor in weights.items()},
            [" embeddings.cls_token", " backbone.embeddings.cls_token"],
        ),
        (
            lambda weights: weights | {"embeddings.cls_token": torch.zeros(1, 1, 8)},
            ["embeddings.cls_token", "1 x 1 x 8", "1 x 1 x 16"],
        ),
        (without("weight"), ["layernorm.weight"]),
    ],
    ids=["one", "half-a-pooler", "renamed", "other-shape", "many"],
)
def test_weights_that_a_file_lacks_are_named(tmp_path: Path, change: Any, named: list[str]) -> None:
    edit(vit(tmp_path), change)
    with refused("image_tower.weights", tmp_path, *named):
        build(tmp_path)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    edit(vit(tmp_path), lambda weights: weights | {"layernorm.bias": torch.full((16,), torch.nan)})
    with refused("image_tower", tmp_path, "finite"):
        build(tmp_path)


def test_a_count_that_has_no_effect_may_be_missing(tmp_path: Path) -> None:
    """Of BatchNorm's updates; files older than it lack it. Its statistics may not be missing."""
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    t.ResNetModel(t.ResNetConfig(**stages)).save_pretrained(tmp_path)
    t.ConvNextImageProcessor().save_pretrained(tmp_path)
    edit(tmp_path, without("num_batches_tracked"))
    assert build(tmp_path).width == 16
    edit(tmp_path, without("running_var"))
    with refused("image_tower.weights", tmp_path, "running_var"):
        build(tmp_path)


def test_a_file_in_half_precision_is_a_tower_in_full(tmp_path: Path) -> None:
    whole = build(vit(tmp_path)).eval()
    edit(tmp_path, lambda weights: {key: tensor.half() for key, tensor in weights.items()})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    tower, image = build(tmp_path).eval(), torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)
    assert {tensor.dtype for tensor in tower.parameters()} == {torch.float32}
    torch.testing.assert_close(tower(image), whole(image), atol=1e-2, rtol=0)


def test_a_model_that_masks_at_random_is_refused(tmp_path: Path) -> None:
    t.ViTMAEModel(t.ViTMAEConfig(**SIZES)).save_pretrained(tmp_path)
    t.ViTImageProcessor().save_pretrained(tmp_path)
    with refused("image_tower", tmp_path, "ViTMAEModel"):
        build(tmp_path)


def test_pixels_that_a_tower_cannot_make_are_refused(tmp_path: Path) -> None:
    """It never guesses: no processor, patches in place of images, a frame of padding."""
    vit(tmp_path / "none")
    (tmp_path / "none" / "preprocessor_config.json").unlink()
    with refused("image_tower.weights", tmp_path / "none", remedy="processor"):
        build(tmp_path / "none")
    with refused("image_tower.weights", "Siglip2ImageProcessor", "256, 768]"):
        build(vit(tmp_path / "patches", t.Siglip2ImageProcessor()))
    framed = t.ViTImageProcessor(do_resize=False, do_center_crop=True, crop_size={"height": 48, "width": 48})
    with refused("image_tower.weights", "ViTImageProcessor"):
        build(vit(tmp_path / "frame", framed))


@pytest.mark.parametrize(
    "change",
    [
        lambda levels: levels**2,
        lambda levels: levels.mean(-1, keepdims=True).repeat(3, -1),  # grey
        lambda levels: levels @ np.array([[0.8, 0.2, 0], [0, 0.8, 0.2], [0.2, 0, 0.8]]),
        lambda levels: levels * np.linspace(1, 0.9, levels.shape[2])[:, None],
    ],
    ids=["squared", "grey", "mixed", "shaded"],
)
def test_colours_that_a_tower_cannot_make_are_refused(change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def processor(images: list[np.ndarray], **_: Any) -> dict[str, Tensor]:
        return {"pixel_values": torch.from_numpy(change(np.stack(images) / 255)).permute(0, 3, 1, 2).float()}

    monkeypatch.setattr(t.AutoImageProcessor, "from_pretrained", lambda *_, **__: processor)
    with refused("image_tower.weights", tmp_path):
        build(vit(tmp_path))


def test_a_size_that_a_model_does_not_take_is_refused_with_one_that_it_takes(tmp_path: Path) -> None:
    with refused("image_tower.image_size", 48, remedy="image_tower.image_size=32"):
        build(vit(tmp_path / "vit"), 48)
    t.Dinov2Model(t.Dinov2Config(**SIZES)).save_pretrained(tmp_path / "dino")
    t.ViTImageProcessor().save_pretrained(tmp_path / "dino")
    assert build(tmp_path / "dino", 40).width == 16
    with refused("image_tower.image_size", 45, remedy="image_tower.image_size=40 or 48"):
        build(tmp_path / "dino", 45)


@pytest.mark.parametrize(
    ("model", "options", "size", "refusal"),  # the refusal: key, remedy
    [
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}, 256, None),
        ("cait_xxs24_224", {"embed_dim": 32, "depth": 1, "num_heads": 2}, 256, None),
        ("mixer_s32_224", {}, 256, None),
        ("hiera_tiny_224", {"embed_dim": 16, "num_heads": 1, "stages": (1, 1, 1, 1)}, 256, None),
        ("flexivit_small", {"embed_dim": 32, "depth": 1, "num_heads": 2}, 256, None),
        ("crossvit_tiny_240", {}, 256, ("image_size", "image_tower.image_size=240")),
        ("mixer_s32_224", {}, 250, ("image_size", "image_tower.image_size=224 or 256")),
        ("test_vit", {"depth": 1, "no_such": 1}, 64, ("model", "")),
    ],
)
def test_timm_is_asked_which_sizes_a_model_takes(
    model: str, options: dict[str, Any], size: int, refusal: tuple[str, str] | None
) -> None:
    settings = TimmSettings(name="timm", model=model, options=options, image_size=size)
    if refusal is None:
        assert settings.build().width > 0
        return
    with refused(f"image_tower.{refusal[0]}", model, size, *options, remedy=refusal[1]):
        settings.build()


@pytest.mark.parametrize("name", ["img_size", "num_classes", "in_chans", "checkpoint_path", "features_only"])
def test_options_that_would_change_what_a_tower_is_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"options.*\b{name}\b"):
        validate(TimmSettings, {"name": "timm", "model": "test_vit", "options": {name: 3}}, "c.yaml")


class Blocks(nn.Module):
    """Twelve equal blocks, of which every order has the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"q": nn.Linear(2, 2), "k": nn.Linear(2, 2)}) for _ in range(12))
        self.head = nn.Linear(2, 3)


def renamed(names: list[str], rule: Callable[[str], str]) -> dict[str, Tensor]:
    weights = Blocks().state_dict()
    return {rule(name): weights[name] for name in names}


def test_weights_of_other_names_are_placed_only_in_an_order_that_can_be_checked(tmp_path: Path) -> None:
    names = list(Blocks().state_dict())

    def rule(name: str) -> str:
        return name.replace("blocks", "layer").replace(".q.", ".query.").replace(".k.", ".key.").replace("head", "fc")

    given, target = renamed(names, rule), Blocks()
    torch.save(given, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", "k")
    assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), given.values(), strict=True))

    blocks = [name for name in names if name.startswith("blocks")]
    by_text = [n for number in sorted(map(str, range(12))) for n in blocks if n.startswith(f"blocks.{number}.")]
    swapped = [name.replace(".q.", ".K.").replace(".k.", ".q.").replace(".K.", ".k.") for name in names]
    wrong = {
        "sorted": renamed(sorted(names), rule),
        "blocks-as-text": renamed([*by_text, *names[-2:]], rule),
        "reversed": renamed([*reversed(blocks), *names[-2:]], rule),
        "keys-before-queries": renamed(swapped, lambda name: f"net.{name}"),
    }
    for about, weights in wrong.items():
        torch.save(weights, tmp_path / f"{about}.pth")
        with refused("k", f"{about}.pth"):
            load_weights(Blocks(), tmp_path / f"{about}.pth", "k")
    save_file(given, tmp_path / "w.safetensors")  # which keeps no order
    with refused("k", "w.safetensors"):
        load_weights(Blocks(), tmp_path / "w.safetensors", "k")


def test_a_classifier_may_be_any_and_a_training_checkpoint_gives_its_average(tmp_path: Path) -> None:
    weights, average = Blocks().state_dict(), Blocks().state_dict()
    del weights["head.bias"]
    weights["head.weight"] = torch.zeros(7, 2)
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, tmp_path / "w.pth")
    with refused("k", "w.pth", "head.bias"):
        load_weights(Blocks(), tmp_path / "w.pth", "k")
    target = Blocks()
    load_weights(target, tmp_path / "w.pth", "k", ("head.",))
    assert all(torch.equal(target.state_dict()[n], tensor) for n, tensor in weights.items() if not n.startswith("head"))
    torch.save({"state_dict": weights, "state_dict_ema": average}, tmp_path / "ema.pth")
    load_weights(target, tmp_path / "ema.pth", "k")
    assert all(torch.equal(target.state_dict()[name], tensor) for name, tensor in average.items())
    torch.save(average | {"blocks.12.q.weight": torch.zeros(2, 2)}, tmp_path / "deeper.pth")
    with refused("k", "deeper.pth", "blocks.12.q.weight"):
        load_weights(Blocks(), tmp_path / "deeper.pth", "k", ("head.",))


def test_a_file_of_open_clip_has_the_pixels_that_its_model_was_published_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 100, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "raylign-pixels.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(tmp_path)
    torch.save(open_clip.create_model("raylign-pixels", load_weights=False).state_dict(), tmp_path / "w.pt")
    settings = OpenClipImageSettings(name="open_clip", model="raylign-pixels", weights=str(tmp_path / "w.pt"), image_size=32)
    ways = {"one": {"mean": (0.5,) * 3, "std": (0.5,) * 3}}
    monkeypatch.setattr(OpenClipImageSettings, "_published", lambda self: ways)
    pixels = settings.build().pixels
    assert pixels.mean.flatten().tolist() == pixels.std.flatten().tolist() == [127.5] * 3
    ways["two"] = {"mean": (0.25,) * 3, "std": (0.5,) * 3}
    with refused("image_tower.weights", "raylign-pixels", "w.pt", "one, two", remedy="open_clip_config.json"):
        settings.build()
    theirs = ways["two"] | {"interpolation": "bilinear", "resize_mode": "squash", "fill_color": 7}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": theirs | {"size": 999}}))
    pixels = settings.build().pixels
    assert (pixels.mean.flatten().tolist(), pixels.std.flatten().tolist()) == ([63.75] * 3, [127.5] * 3)
    used: Any = settings.load("k")
    used = json.loads(json.dumps(used.visual.preprocess_cfg))
    assert {name: used[name] for name in theirs} == json.loads(json.dumps(theirs))


def test_a_tag_that_was_trained_with_another_activation_is_refused() -> None:
    with refused("image_tower.model", "ViT-B-32", "openai", remedy="image_tower.model=ViT-B-32-quickgelu"):
        OpenClipImageSettings(name="open_clip", model="ViT-B-32", weights="openai").build()
