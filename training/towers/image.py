"""Image towers: any timm model, any Hugging Face vision model, or a small convolutional net to train from scratch."""

import difflib
import importlib.util
import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pipelines.io import hub
from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from training.towers.base import Tower, TowerSettings, freeze_unreached, load_weights
from training.towers.pixels import Pixels, pixels_of_processor
from training.towers.pretrained import first_line, load_pretrained, measure, rebuild_pretrained


class ImageTowerSettings(TowerSettings):
    """Settings of all image towers."""

    image_size: int = Field(224, ge=8, description="side of its square input, in pixels")
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="frozen: keep the pretrained BatchNorm statistics while the rest trains"
    )

    @abstractmethod
    def build(self) -> "ImageTower":
        """The network with its weights."""

    def tower(self, network: nn.Module, pixels: Pixels, name: str, own_size: int | None) -> "ImageTower":
        """A network as a tower, after checking that it takes this size and gives one row, the same each time.

        `own_size`: the size that the model was made for, if known; `name` names the model in errors.
        """
        size, cut = self.image_size, []

        def look(patches: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(patches, nn.Conv2d)
            if given[0].shape[-1] % patches.stride[0]:
                cut.append(patches.stride[0])

        image = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        network.eval()
        patches = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.kernel_size == m.stride]
        hooks = [conv.register_forward_pre_hook(look) for conv in patches]
        way_out = "give another size" if own_size in (None, size) else f"pass image_size={own_size}"
        try:
            with torch.no_grad():
                rows = network(pixels(image))
        except Exception as error:  # each model raises its own errors
            what = f"image_tower.image_size: {size} pixels are not what {name} takes ({first_line(error)})"
            raise UserError(f"{what}; {way_out}, or another model") from None
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise UserError(f"image_tower: {name} gives {shape} for an image, not one row of features; give another model")
        if cut and size != own_size:
            raise UserError(
                f"image_tower.image_size: of {size} pixels, {name} would see {size - size % cut[0]}, in patches of {cut[0]}; "
                f"pass image_size={size - size % cut[0]} or {size - size % cut[0] + cut[0]}"
            )
        width = measure(lambda: network(pixels(image)), f"image_tower: {name}")
        freeze_unreached(network, lambda: network(pixels(image)))
        return self.finished(network, width, pixels)

    def finished(self, network: nn.Module, width: int, pixels: Pixels, **about: Any) -> "ImageTower":
        """A network as a tower that can be rebuilt from its width, its preprocessing, and what else its kind needs."""
        tower = ImageTower(network, width, pixels, self.batch_norm == "frozen")
        return tower.describe(width=width, pixels=pixels.about, **about)

    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        return self.finished(self.bare(about), about["width"], Pixels(**about["pixels"]))

    def bare(self, about: dict[str, Any]) -> nn.Module:
        """The network without its weights, in eval mode."""
        raise NotImplementedError


class ImageTower(Tower):
    """uint8 [b, 3, H, W] to float [b, width]."""

    def __init__(self, network: nn.Module, width: int, pixels: Pixels, freeze_batch_norm: bool):
        super().__init__()
        self.pixels = pixels
        # Channels last: half the time of a convolutional forward pass on CPUs, and the layout for tensor cores.
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


def _registered(name: str) -> bool:
    """Whether timm's source registers a model of this name: importing timm takes seconds, and a mistake should be reported at
    once."""
    found = importlib.util.find_spec("timm")
    folder = Path(found.submodule_search_locations[0]) / "models" if found and found.submodule_search_locations else Path()
    model = re.compile(rf"^@register_model\ndef {re.escape(name.partition('.')[0])}\(", re.MULTILINE)
    return any(model.search(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.py")))


class TimmSettings(ImageTowerSettings):
    """Any model of timm, by name."""

    name: Literal["timm"]
    model: str = Field(
        description="timm's name of the model, such as vit_small_patch16_224; a tag, as in vit_small_patch16_224.dino, names "
        "weights and how their pixels are normalised"
    )
    weights: str | None = Field(None, description="hub, a path, package:NAME/FILE, or null for random weights")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to timm.create_model")

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        if _registered(value):
            return value
        import timm

        if not timm.is_model(value):
            near = difflib.get_close_matches(value, timm.list_models(), n=4, cutoff=0.5)
            raise ValueError(f"timm has no '{value}'" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        return value

    @field_validator("options")
    @classmethod
    def _ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {"img_size": "set image_size", "pretrained": "set weights", "checkpoint_path": "set weights"}
        ours |= {"num_classes": "a tower has no classes", "in_chans": "images have 3", "features_only": "a tower gives one row"}
        for name in value.keys() & ours.keys():
            raise ValueError(f"{name} is not passed on to timm; leave it out: {ours[name]}")
        return value

    def weights_name(self) -> str | None:
        return self.weights

    def check_source(self, key: str) -> None:
        import timm

        if self.weights != "hub":
            super().check_source(key)
            return
        about = timm.get_pretrained_cfg(self.model)
        if about is not None and about.hf_hub_id:
            hub.check_repository(about.hf_hub_id.partition("@")[0], f"{key}.weights", f"timm's {self.model}")
        elif about is not None and about.url:
            file = Path(torch.hub.get_dir()) / "checkpoints" / about.url.rpartition("/")[2]
            hub.check_file(about.url, file, f"{key}.weights", f"timm's {self.model}")

    def build(self) -> ImageTower:
        import timm
        from timm.data import resolve_data_config

        of_hub, path = self.weights == "hub", None
        if self.weights and not of_hub:
            path = resolve(self.weights, "image_tower.weights")
            if path is None:
                raise UserError(f"image_tower.weights: '{self.weights}' is no file; give a path, package:NAME/FILE, hub or null")
        about = timm.get_pretrained_cfg(self.model)
        own_size = about.input_size[-1] if about is not None else None
        size = self._size()
        try:
            network = timm.create_model(self.model, pretrained=of_hub, **size, **self.options)
        except Exception as error:  # the hub and each model raise their own errors
            sizes = f", pass image_size={own_size}" if size and self.image_size != own_size else ""
            raise UserError(
                f"image_tower.model: timm cannot build {self.model} for image_size={self.image_size}, weights={self.weights} and "
                f"options={self.options} ({first_line(error)}); change one of them{sizes}"
            ) from None
        if path is not None:
            classifier = network.pretrained_cfg.get("classifier") or ()
            names = (classifier,) if isinstance(classifier, str) else classifier
            load_weights(network, path, "image_tower.weights", tuple(f"{name}." for name in names))
        network.reset_classifier(0)
        config = resolve_data_config(model=network)
        if config["input_size"][0] != 3:
            raise UserError(f"image_tower.model: {self.model} does not see images of 3 channels; give another model")
        return self.tower(network, Pixels(config["mean"], config["std"]), f"timm's {self.model}", own_size)

    def bare(self, about: dict[str, Any]) -> nn.Module:
        import timm

        network = timm.create_model(self.model, pretrained=False, **self._size(), **self.options)
        network.reset_classifier(0)
        return network.eval()

    def _size(self) -> dict[str, int]:
        """Options that give a timm model another size, if timm says that it is made for one size."""
        import timm

        about = timm.get_pretrained_cfg(self.model)
        return {"img_size": self.image_size} if about is not None and about.fixed_input_size else {}


class HuggingFaceVisionSettings(ImageTowerSettings):
    """Any vision model of transformers, from the hub or a local folder."""

    name: Literal["huggingface"]
    weights: str = Field(description="hub name, folder with config.json and its image processor, or package:NAME/FILE.zip")
    projected: bool = Field(False, description="of a CLIP-like model: its image half with the projection into the joint space")

    def weights_name(self) -> str | None:
        return self.weights

    def build(self) -> ImageTower:
        key = "image_tower.weights"
        # A file saved from a classifier has no pooler if the classifier reads the first token itself.
        network = load_pretrained(self.weights, key, self._image_half, () if self.projected else ("pooler",))
        pixels = pixels_of_processor(self.weights, self.image_size, key)
        config = getattr(network.config, "vision_config", network.config)
        own_size = getattr(config, "image_size", None)
        name = f"{self.weights} ({type(network).__name__})"
        own = own_size if isinstance(own_size, int) else None
        tower = self.tower(_Pooled(network, self.projected), pixels, name, own)
        return tower.describe(**tower.about, source=network.source)

    def bare(self, about: dict[str, Any]) -> nn.Module:
        return _Pooled(rebuild_pretrained(about["source"], self._image_half), self.projected).eval()

    def _image_half(self, network: Any) -> Any:
        if not self.projected:
            return getattr(network, "vision_model", network)
        if not hasattr(network, "get_image_features"):
            raise UserError(f"image_tower.projected: {self.weights} is no CLIP-like model; pass projected=false")
        network.text_model = None
        return network


class _Pooled(nn.Module):
    """The projection; else the pooled output if the model has one, else its class token, else the mean over positions."""

    def __init__(self, network: Any, projected: bool):
        super().__init__()
        self.network, self._projected = network, projected
        self._class_token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in network.named_parameters())

    def forward(self, pixels: Tensor) -> Tensor:
        if self._projected:
            return self.network.get_image_features(pixel_values=pixels).pooler_output
        out = self.network(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        states = out.last_hidden_state
        if states.ndim == 4:
            return states.mean((2, 3))
        return states[:, 0] if self._class_token else states.mean(1)


class ConvSettings(ImageTowerSettings):
    """A small depthwise convolutional net, for training from scratch on little data."""

    name: Literal["conv"]
    image_size: int = Field(48, ge=8, description="side of its square input, in pixels")
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
        half = (0.5, 0.5, 0.5)
        return self.finished(self.bare({}), self.channels[-1], Pixels(half, half))

    def bare(self, about: dict[str, Any]) -> nn.Module:
        stem = self.channels[0]
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2, padding=1), nn.GroupNorm(8, stem), nn.GELU()]
        for inner, outer in zip(self.channels, self.channels[1:], strict=False):
            layers += [_Block(inner), nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.GELU()]
        layers += [_Block(self.channels[-1]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(self.channels[-1])]
        return nn.Sequential(*layers)


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
