"""`start`: a whole dual encoder to begin from, by one key: both halves, their projections and width, temperature and bias.

    start: {name: open_clip, model: ViT-B-32, weights: laion2b_s34b_b79k}
    start: {name: huggingface, weights: google/siglip2-base-patch16-224}
    start: {name: run, path: runs/demo}

It fills in `image_tower`, `text_tower`, both heads and `embed_dim` before the config is checked (`filled`), so that everything
else sees towers as they are written by hand. Keys beside it, such as `image_tower.mode`, stay as they are. The config in the
folder of a run has all of them, so that it is read without the start. Temperature and bias are numbers among the weights: the
plan reads them (`with_temperature`).
"""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError

from pipelines.io.artifacts import resolve
from pipelines.program.config_errors import plain
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import Settings
from training.checkpoint_registry import ABOUT
from training.towers import ImageTowerSettings, TextTowerSettings
from training.towers.from_run import RunImageSettings
from training.towers.image import HuggingFaceVisionSettings
from training.towers.open_clip import OpenClipImageSettings
from training.towers.pretrained import first_line, load_pretrained
from training.towers.text_reading import positions, text_half

if TYPE_CHECKING:
    from training.config import TrainSettings

_CLOSE = 1e-3  # half-precision checkpoints have 100.03 for a cap of 100


class Sizes(NamedTuple):
    """What a dual encoder reads and gives."""

    image_size: int | None  # pixels; None: its config does not say
    max_tokens: int | None
    embed_dim: int


class _StartSettings(Settings):
    temperature: bool = Field(
        True, description="begin with its temperature, and its bias if the objective has one; false: with the objective's keys"
    )

    @abstractmethod
    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keys of the image and the text tower that name its halves, with their projections. Reads nothing."""

    @abstractmethod
    def sizes(self) -> Sizes:
        """From its config. Raises `UserError` if there is no such model."""

    @abstractmethod
    def scale_and_bias(self) -> tuple[float | None, float | None]:
        """1/temperature and what is added to the scaled cosines, from its weights; None for what it does not have."""

    def check_source(self) -> None:
        """Raises `UserError` if its weights are neither on this machine nor available for download."""

    @abstractmethod
    def label(self) -> str:
        """Its name, for people."""


class OpenClipStart(_StartSettings):
    """A model of open_clip."""

    name: Literal["open_clip"]
    model: str = Field(description="open_clip's name of the model, such as ViT-B-32; needs raylign[open_clip]")
    weights: str | None = Field(
        None, description="open_clip's tag, such as laion2b_s34b_b79k, a path, or null for random weights"
    )

    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        half = {"name": "open_clip", "model": self.model, "weights": self.weights}
        return half, half

    def sizes(self) -> Sizes:
        config = self._image().config("start")
        size = config["vision_cfg"].get("image_size")
        return Sizes(size if isinstance(size, int) else None, config["text_cfg"].get("context_length", 77), config["embed_dim"])

    def scale_and_bias(self) -> tuple[float | None, float | None]:
        return _of_network(self._image().load("start"))

    def check_source(self) -> None:
        self._image().check_source("start")

    def label(self) -> str:
        return f"open_clip's {self.model} ({self.weights or 'random weights'})"

    def _image(self) -> OpenClipImageSettings:
        return OpenClipImageSettings(name="open_clip", model=self.model, weights=self.weights)


class HuggingFaceStart(_StartSettings):
    """A CLIP-like model of transformers: CLIP, SigLIP, SigLIP 2 at a fixed size, VisionTextDualEncoder, ..."""

    name: Literal["huggingface"]
    weights: str = Field(description="hub name, folder with config.json, processor and tokenizer, or package:NAME/FILE.zip")

    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        half = {"name": "huggingface", "weights": self.weights, "projected": True}
        return half, half

    def sizes(self) -> Sizes:
        from transformers import AutoConfig, AutoModel

        try:
            place = resolve(self.weights, "start.weights") or self.weights
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
            with torch.device("meta"):  # shapes without data
                network = AutoModel.from_config(config, trust_remote_code=False)
        except UserError:
            raise
        except Exception as error:  # the hub, json and each model raise their own errors
            problem = f"{self.weights} cannot be opened: {first_line(error)}"
            raise UserError("start.weights", problem, "give a folder or a hub name that transformers can load") from None
        network = self._dual(network)
        size = getattr(network.config.vision_config, "image_size", None)
        if not isinstance(size, int):
            problem = f"{self.weights} does not have one image size, which towers need"
            raise UserError("start.weights", problem, "give a model of a fixed size")
        with torch.no_grad():
            images = network.get_image_features(pixel_values=torch.zeros(1, 3, size, size, device="meta")).pooler_output
        return Sizes(size, positions(text_half(network)), images.shape[-1])

    def scale_and_bias(self) -> tuple[float | None, float | None]:
        return _of_network(load_pretrained(self.weights, "start.weights", self._dual))

    def check_source(self) -> None:
        HuggingFaceVisionSettings(name="huggingface", weights=self.weights).check_source("start")

    def label(self) -> str:
        return self.weights

    def _dual(self, network: Any) -> Any:
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            problem = f"{self.weights} is a {type(network).__name__}, which does not embed images and texts"
            raise UserError("start.weights", problem, "choose a CLIP-like model, or name it as image_tower or text_tower")
        return network


class RunStart(_StartSettings):
    """A run of ours."""

    name: Literal["run"]
    path: Place = Field(description="a run such as runs/demo or s3://bucket/runs/demo, or one of its checkpoints")

    def halves(self) -> tuple[dict[str, Any], dict[str, Any]]:
        half = {"name": "run", "path": str(self.path)}
        return half, half

    def sizes(self) -> Sizes:
        settings = self._half().load().settings
        return Sizes(settings.image_tower.image_size, settings.text_tower.max_tokens, settings.embed_dim)

    def scale_and_bias(self) -> tuple[float | None, float | None]:
        trained = self._half().load()
        return trained.scale, trained.bias

    def label(self) -> str:
        return str(self.path)

    def _half(self) -> RunImageSettings:
        return RunImageSettings(name="run", path=self.path)


StartSettings = OpenClipStart | HuggingFaceStart | RunStart
StartUnion = Annotated[StartSettings, Field(discriminator="name")]
_START: TypeAdapter[StartSettings] = TypeAdapter(StartUnion)


def _of_network(network: Any) -> tuple[float | None, float | None]:
    """Of a network of open_clip or transformers; AIMv2 caps its scale."""
    scale, bias = getattr(network, "logit_scale", None), getattr(network, "logit_bias", None)
    most = getattr(network, "max_log_logit_scale", math.inf)
    return (
        None if scale is None else float(scale.detach().float().clamp(max=most).exp()),
        None if bias is None else float(bias.detach()),
    )


@lru_cache(maxsize=8)  # the runs of a sweep ask again
def _sizes_of(start: StartSettings) -> Sizes:
    return start.sizes()


@lru_cache(maxsize=8)
def _scale_and_bias_of(start: StartSettings) -> tuple[float | None, float | None]:
    return start.scale_and_bias()


def filled(tree: Any) -> Any:
    """A config with the keys that its `start` gives, where it does not have them; one without a valid `start` as it is.

    Raises `ValueError` for a tower that is not a half of the start, and `UserError` if the start cannot be found.
    """
    if not isinstance(tree, Mapping) or tree.get("start") is None:
        return tree
    try:
        start = _START.validate_python(tree["start"])
    except ValidationError:  # reported with the key's own type
        return tree
    result = dict(tree)
    towers = ("image_tower", "text_tower")
    for key, half in zip(towers, start.halves(), strict=True):
        own = _as_tree(tree.get(key))
        if own is None:
            return tree
        for name, value in half.items():
            if name in own and str(own[name]) != str(value):
                raise ValueError(
                    f"{key}.{name}: {plain(own[name])}, but start's half has {plain(value)}; leave out {key}.{name}, or start"
                )
        result[key] = half | own
    for key in ("image_head", "text_head"):
        if result.get(key) is None:
            result[key] = {"name": "identity"}
    needed = {"image_tower": "image_size", "text_tower": "max_tokens"}
    if "embed_dim" in result and all(size in result[key] for key, size in needed.items()):
        return result
    sizes = _sizes_of(start)
    for key, size in needed.items():
        value = getattr(sizes, size)
        if value is not None:
            result[key].setdefault(size, value)
    result.setdefault("embed_dim", sizes.embed_dim)
    return result


def _as_tree(tower: Any) -> dict[str, Any] | None:
    """A tower's keys in a config; None for what is none."""
    if isinstance(tower, ImageTowerSettings | TextTowerSettings):
        return tower.model_dump(mode="json")
    return {} if tower is None else dict(tower) if isinstance(tower, Mapping) else None


def with_temperature(settings: "TrainSettings", checkpoint: Path | None) -> "TrainSettings":
    """The settings whose objective begins with the start's temperature and bias; of a run that resumes, with those it began with.

    Raises `UserError` if the config has another temperature, or does not allow the start's.
    """
    start, objective = settings.start, settings.objective
    if start is None or not start.temperature:
        return settings
    names: list[str] = [name for name in ("temperature", "bias") if name in type(objective).model_fields]
    if checkpoint is not None:
        about = json.loads((checkpoint / ABOUT).read_text(encoding="utf-8"))["config"]["objective"]
        found = {name: about[name] for name in names if name in about}
    else:
        found = _began(start, objective, names)
    changed = type(objective).model_validate(objective.model_dump() | found)
    return settings.model_copy(update={"objective": changed})


def _began(start: StartSettings, objective: Any, names: list[str]) -> dict[str, float]:
    scale, bias = _scale_and_bias_of(start)
    if scale is None:
        problem = f"{start.label()} has no temperature"
        raise UserError("start.temperature", problem, "pass start.temperature=false, and objective.temperature")
    if getattr(objective, "learn_temperature", False):
        most: float = objective.max_scale
        if scale > most * (1 + _CLOSE):
            problem = f"{most:g}, but {start.label()} has 1/temperature = {scale:.6g}"
            raise UserError("objective.max_scale", problem, f"pass objective.max_scale={math.ceil(scale)}")
        if scale < 1:
            problem = f"{start.label()} has 1/temperature = {scale:.6g}, and a learned one is kept at 1 or more"
            raise UserError("start.temperature", problem, "pass start.temperature=false, or objective.learn_temperature=false")
        scale = min(scale, most)
    found = {"temperature": 1 / scale} | ({} if bias is None or "bias" not in names else {"bias": bias})
    for name, value in found.items():
        given = getattr(objective, name)
        if name in objective.model_fields_set and not math.isclose(given, value, rel_tol=1e-4):
            problem = f"{given:g}, but the run starts from {start.label()} with {value:.6g}"
            raise UserError(f"objective.{name}", problem, f"leave out objective.{name}, or pass start.temperature=false")
    return found
