"""Image towers: any timm model, any Hugging Face vision model, or a small convolutional net to train from scratch."""

import difflib
from abc import abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pipelines.artifacts import resolve
from pipelines.settings import UserError
from training.towers.base import Pixels, Tower, TowerSettings, freeze_all_but, load_weights


class ImageTowerSettings(TowerSettings):
    """Settings of all image towers."""

    image_size: int = Field(224, ge=8, description="pixels of the square that it sees")
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="frozen: keep the pretrained BatchNorm statistics while the rest trains"
    )

    @abstractmethod
    def build(self) -> "ImageTower":
        """The network with its weights."""


class ImageTower(Tower):
    """uint8 [b, 3, H, W] to float [b, width]."""

    def __init__(self, network: nn.Module, width: int, mean: tuple, std: tuple, freeze_batch_norm: bool):
        super().__init__()
        self.pixels = Pixels(mean, std)
        # Channels last: half the time of a convolutional forward on CPUs, and what tensor cores want.
        self.network = network.to(memory_format=torch.channels_last)
        self.width = width
        self._freeze_batch_norm = freeze_batch_norm

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.pixels(images).contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> "ImageTower":
        super().train(mode)
        if self._freeze_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


class TimmSettings(ImageTowerSettings):
    """Any model of timm, by name."""

    name: Literal["timm"]
    model: str = Field(description="timm's name of the model, such as vit_small_patch16_224")
    weights: str | None = Field(None, description="hub, a path, package:NAME/FILE, or null for random weights")
    options: dict[str, Any] = Field(default_factory=dict, description="passed on to timm.create_model")

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        import timm

        if not timm.is_model(value):
            near = difflib.get_close_matches(value, timm.list_models(), n=4, cutoff=0.5)
            raise ValueError(f"timm has no '{value}'" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        return value

    def weights_name(self) -> str | None:
        return self.weights

    def build(self) -> ImageTower:
        import timm

        hub = self.weights == "hub"
        options = dict(self.options)
        if self.model.startswith(("vit_", "deit", "eva", "beit")):
            options.setdefault("img_size", self.image_size)
        network = timm.create_model(self.model, pretrained=hub, **options)
        if self.weights and not hub:
            path = resolve(self.weights, "image_tower.weights")
            if path is None:
                raise UserError(f"image_tower.weights: '{self.weights}' is no file; give a path, package:NAME/FILE, hub or null")
            load_weights(network, path, "image_tower.weights")
        network.reset_classifier(0)
        config = network.pretrained_cfg
        with torch.no_grad():
            width = network.eval()(torch.zeros(1, 3, self.image_size, self.image_size)).shape[-1]
        return ImageTower(network, width, config["mean"], config["std"], self.batch_norm == "frozen")


class HuggingFaceVisionSettings(ImageTowerSettings):
    """Any vision model of transformers, from the hub or a local folder."""

    name: Literal["huggingface"]
    weights: str = Field(description="hub name, folder with config.json, or package:NAME/FILE.zip")
    projected: bool = Field(False, description="of a CLIP-like model: its image half with the projection into the joint space")

    def weights_name(self) -> str | None:
        return self.weights

    def build(self) -> ImageTower:
        from transformers import AutoImageProcessor, AutoModel

        path = resolve(self.weights, "image_tower.weights")
        try:
            network = AutoModel.from_pretrained(path or self.weights)
        except (OSError, ValueError) as error:
            raise UserError(
                f"image_tower.weights: {self.weights}: {str(error).splitlines()[0]}; give a folder or a hub name"
            ) from None
        if self.projected:
            if not hasattr(network, "get_image_features"):
                raise UserError(f"image_tower.projected: {self.weights} is no CLIP-like model; pass projected=false")
            network.text_model = None
            freeze_all_but(network, "vision_model", "visual_projection")
        else:
            network = getattr(network, "vision_model", network)
        try:
            processor = AutoImageProcessor.from_pretrained(path or self.weights)
            mean, std = tuple(processor.image_mean), tuple(processor.image_std)
        except (OSError, ValueError, ImportError):  # a folder without preprocessor_config.json
            mean = std = (0.5, 0.5, 0.5)
        pooled = _Pooled(network, self.projected)
        with torch.no_grad():
            width = pooled.eval()(torch.zeros(1, 3, self.image_size, self.image_size)).shape[-1]
        return ImageTower(pooled, width, mean, std, self.batch_norm == "frozen")


class _Pooled(nn.Module):
    """The pooled output where a model has one, else its first token; or the joint space."""

    def __init__(self, network: Any, projected: bool):
        super().__init__()
        self.network, self._projected = network, projected

    def forward(self, pixels: Tensor) -> Tensor:
        if self._projected:
            return self.network.get_image_features(pixel_values=pixels).pooler_output
        out = self.network(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


class ConvSettings(ImageTowerSettings):
    """A small depthwise convolutional net, for training from scratch on little data."""

    name: Literal["conv"]
    image_size: int = Field(48, ge=8, description="pixels of the square that it sees")
    channels: tuple[int, ...] = Field((24, 48, 96, 144), min_length=1, description="of the stages; each halves the resolution")

    @field_validator("channels")
    @classmethod
    def _whole_groups(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(channels < 8 or channels % 8 for channels in value):
            raise ValueError(f"each must be a multiple of 8, for GroupNorm's 8 groups; got {list(value)}")
        return value

    def weights_name(self) -> str | None:
        return None

    def build(self) -> ImageTower:
        stem = self.channels[0]
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2, padding=1), nn.GroupNorm(8, stem), nn.GELU()]
        for inner, outer in zip(self.channels, self.channels[1:], strict=False):
            layers += [_Block(inner), nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.GELU()]
        layers += [_Block(self.channels[-1]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(self.channels[-1])]
        half = (0.5, 0.5, 0.5)
        return ImageTower(nn.Sequential(*layers), self.channels[-1], half, half, False)


class _Block(nn.Module):
    """Residual depthwise 5x5 and pointwise MLP. GroupNorm, not BatchNorm: the same on any number of workers."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.GroupNorm(8, channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)
