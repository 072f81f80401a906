"""Image towers: any model of timm, any vision model of Hugging Face, or a small convolutional network to train from scratch."""

import difflib
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from pipelines.io import hub
from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from training import timm_names
from training.towers.base import Tower, TowerSettings, freeze_unreached, load_weights
from training.towers.image_states import rows_and_states, without
from training.towers.pixels import Pixels, pixels_of_processor
from training.towers.pretrained import first_line, load_pretrained, measure, rebuild_pretrained


class ImageTowerSettings(TowerSettings):
    """Settings of all image towers."""

    image_size: int = Field(224, ge=8, description="side of its square input, in pixels")
    batch_norm: Literal["train", "frozen"] = Field(
        "train", description="frozen: keep the pretrained BatchNorm statistics while the rest trains"
    )

    @abstractmethod
    def build(self, key: str = "image_tower") -> "ImageTower":
        """The network with its weights. Raises `UserError`, about a setting of `key`, if there is no such network."""

    def tower(self, network: nn.Module, pixels: Pixels, name: str, own_size: int | None, key: str) -> "ImageTower":
        """A network as a tower, after checking that it takes images of this size and gives one row, the same each time.

        Args:
            name: the model's name, for errors.
            own_size: the size that the model was made for, in pixels, if known.
        """
        size, cut = self.image_size, []

        def record_cut(patches: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(patches, nn.Conv2d)
            if inputs[0].shape[-1] % patches.stride[0]:
                cut.append(patches.stride[0])

        image = torch.randint(0, 256, (1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        network.eval()
        patches = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.kernel_size == m.stride]
        hooks = [conv.register_forward_pre_hook(record_cut) for conv in patches]
        try:
            with torch.no_grad():
                rows = network(pixels(image))
        except Exception as error:  # each model raises its own errors
            remedy = "another size" if own_size in (None, size) else f"{key}.image_size={own_size}"
            problem = f"{name} does not take {size} pixels ({first_line(error)})"
            raise UserError(f"{key}.image_size", problem, f"pass {remedy}, or choose another model") from None
        finally:
            for hook in hooks:
                hook.remove()
        if not isinstance(rows, Tensor) or rows.ndim != 2:
            shape = list(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise UserError(key, f"{name} gives {shape} for an image, not one row of features", "choose another model")
        if cut and size != own_size:
            seen = size - size % cut[0]
            problem = f"of {size} pixels, {name} would see {seen}, in patches of {cut[0]}"
            raise UserError(f"{key}.image_size", problem, f"pass {key}.image_size={seen} or {seen + cut[0]}")
        width = measure(lambda: network(pixels(image)), key, name)
        freeze_unreached(network, lambda: network(pixels(image)))
        return self.finished(network, width, pixels)

    def finished(self, network: nn.Module, width: int, pixels: Pixels, **about: Any) -> "ImageTower":
        """A network as a tower that can be rebuilt from its width, its preprocessing and `about`."""
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

    def with_states(self, images: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows, float [b, width], and from the same forward pass a state for every place of a grid, float [b, P, S].

        `hidden`: bool [b, P], places whose pixels the network does not see. To a transformer, whose places are its patches, each
        of them is one and the same token, the bias of its patch embedding, with its position.
        """
        pixels = self.pixels(images)
        pixels = pixels if hidden is None else without(pixels, hidden)
        return rows_and_states(self.network, pixels.contiguous(memory_format=torch.channels_last))

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
    model: str = Field(
        description="timm's name of the model, such as vit_small_patch16_224; a tag, as in vit_small_patch16_224.dino, names "
        "weights and how their pixels are normalised"
    )
    weights: str | None = Field(None, description="hub, a path, package:NAME/FILE, or null for random weights")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to timm.create_model")

    @field_validator("model")
    @classmethod
    def _known(cls, value: str) -> str:
        if not timm_names.is_model(value):
            near = difflib.get_close_matches(value, sorted(timm_names.models()), n=4, cutoff=0.5)
            raise ValueError(f"timm has no '{value}'" + (f"; did you mean {' or '.join(near)}?" if near else ""))
        return value

    @field_validator("options")
    @classmethod
    def _reserved(cls, value: dict[str, Any]) -> dict[str, Any]:
        reserved = {"img_size": "set image_size", "pretrained": "set weights", "checkpoint_path": "set weights"}
        reserved |= {"num_classes": "a tower has no classes", "in_chans": "images have 3 channels"}
        reserved |= {"features_only": "a tower gives one row"}
        for name in value.keys() & reserved.keys():
            raise ValueError(f"{name} is not passed on to timm; leave it out: {reserved[name]}")
        return value

    def weights_name(self) -> str | None:
        return self.weights

    def check_source(self, key: str) -> None:
        if self.weights != "hub":
            super().check_source(key)
            return
        import timm

        about = timm.get_pretrained_cfg(self.model)
        if about is not None and about.hf_hub_id:
            hub.check_repository(about.hf_hub_id.partition("@")[0], f"{key}.weights", f"timm's {self.model}")
        elif about is not None and about.url:
            file = Path(torch.hub.get_dir()) / "checkpoints" / about.url.rpartition("/")[2]
            hub.check_file(about.url, file, f"{key}.weights", f"timm's {self.model}")

    def build(self, key: str = "image_tower") -> ImageTower:
        import timm
        from timm.data import resolve_data_config

        from_hub, path = self.weights == "hub", None
        if self.weights and not from_hub:
            path = resolve(self.weights, f"{key}.weights")
            if path is None:
                problem = f"there is no file '{self.weights}'"
                raise UserError(f"{key}.weights", problem, "give a path, package:NAME/FILE, hub or null")
        about = timm.get_pretrained_cfg(self.model)
        own_size = about.input_size[-1] if about is not None else None
        size = self.size_option()
        try:
            network = timm.create_model(self.model, pretrained=from_hub, **size, **self.options)
        except Exception as error:  # the hub and each model raise their own errors
            raise UserError(
                f"{key}.model",
                f"timm cannot build {self.model} for image_size={self.image_size}, weights={self.weights} and "
                f"options={self.options} ({first_line(error)})",
                f"pass {key}.image_size={own_size}" if size and self.image_size != own_size else "change one of them",
            ) from None
        if path is not None:
            classifier = network.pretrained_cfg.get("classifier") or ()
            names = (classifier,) if isinstance(classifier, str) else classifier
            load_weights(network, path, f"{key}.weights", tuple(f"{name}." for name in names))
        network.reset_classifier(0)
        config = resolve_data_config(model=network)
        if config["input_size"][0] != 3:
            raise UserError(f"{key}.model", f"{self.model} does not take images of 3 channels", "choose another model")
        return self.tower(network, Pixels(config["mean"], config["std"]), f"timm's {self.model}", own_size, key)

    def bare(self, about: dict[str, Any]) -> nn.Module:
        import timm

        network = timm.create_model(self.model, pretrained=False, **self.size_option(), **self.options)
        network.reset_classifier(0)
        return network.eval()

    def size_option(self) -> dict[str, int]:
        """The option that sets the image size of a timm model which is made for one size."""
        import timm

        about = timm.get_pretrained_cfg(self.model)
        return {"img_size": self.image_size} if about is not None and about.fixed_input_size else {}


class HuggingFaceVisionSettings(ImageTowerSettings):
    """Any vision model of transformers, from the hub or a local folder."""

    name: Literal["huggingface"]
    weights: str = Field(description="hub name, folder with config.json and its image processor, or package:NAME/FILE.zip")
    projected: bool = Field(False, description="for a CLIP-like model: its image half with the projection into the joint space")

    def weights_name(self) -> str | None:
        return self.weights

    def build(self, key: str = "image_tower") -> ImageTower:
        def image_half(network: Any) -> Any:
            return self._image_half(network, key)

        # A file saved from a classifier has no pooler if the classifier reads the first token itself.
        network = load_pretrained(self.weights, f"{key}.weights", image_half, () if self.projected else ("pooler",))
        pixels = pixels_of_processor(self.weights, self.image_size, f"{key}.weights")
        config = getattr(network.config, "vision_config", network.config)
        own_size = getattr(config, "image_size", None)
        name = f"{self.weights} ({type(network).__name__})"
        own = own_size if isinstance(own_size, int) else None
        tower = self.tower(_Pooled(network, self.projected), pixels, name, own, key)
        return tower.describe(**tower.about, source=network.source)

    def bare(self, about: dict[str, Any]) -> nn.Module:
        return _Pooled(rebuild_pretrained(about["source"], self._image_half), self.projected).eval()

    def _image_half(self, network: Any, key: str = "image_tower") -> Any:
        if not self.projected:
            return getattr(network, "vision_model", network)
        if not hasattr(network, "get_image_features"):
            problem = f"{self.weights} is not a CLIP-like model, so it has no projection"
            raise UserError(f"{key}.projected", problem, f"pass {key}.projected=false")
        network.text_model = None
        return network


class _Pooled(nn.Module):
    """One row per image: the projection; else the pooled output if there is one, else the class token, else the mean over
    positions."""

    def __init__(self, network: Any, projected: bool):
        super().__init__()
        self.network, self._projected = network, projected
        self._class_token = any(name.endswith(("cls_token", "class_embedding")) for name, _ in network.named_parameters())

    def forward(self, pixels: Tensor) -> Tensor:
        return self._row(self._run(pixels))

    def with_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        out = self._run(pixels)
        return self._row(out), out.last_hidden_state

    def _run(self, pixels: Tensor) -> Any:
        return (self.network.get_image_features if self._projected else self.network)(pixel_values=pixels)

    def _row(self, out: Any) -> Tensor:
        if self._projected:
            return out.pooler_output
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        states = out.last_hidden_state
        if states.ndim == 4:
            return states.mean((2, 3))
        return states[:, 0] if self._class_token else states.mean(1)


class ConvSettings(ImageTowerSettings):
    """A small depthwise convolutional network, for training from scratch on little data."""

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

    def build(self, key: str = "image_tower") -> ImageTower:
        half = (0.5, 0.5, 0.5)
        return self.finished(self.bare({}), self.channels[-1], Pixels(half, half))

    def bare(self, about: dict[str, Any]) -> nn.Module:
        stem = self.channels[0]
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, stride=2, padding=1), nn.GroupNorm(8, stem), nn.GELU()]
        for inner, outer in zip(self.channels, self.channels[1:], strict=False):
            layers += [_Block(inner), nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GroupNorm(8, outer), nn.GELU()]
        layers += [_Block(self.channels[-1]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(self.channels[-1])]
        return _Conv(*layers)


class _Conv(nn.Sequential):
    """Layers of a feature map, and three that make a row of it."""

    def with_states(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        states = self[:-3](pixels)
        return self[-3:](states), states


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
