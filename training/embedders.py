"""Embedders of published models, each with the preprocessing and the tokenizer that it was published with.

    embedder: training.embedders:open_clip     embedder_arguments: {model: ViT-B-32, weights: laion2b_s34b_b79k}
    embedder: training.embedders:huggingface   embedder_arguments: {weights: openai/clip-vit-base-patch32}

Images and texts get none of our own preprocessing, so scores are comparable with published ones. evaluation/embedder.py explains
the optional attributes of an embedder.
"""

import json
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError
from training.fingerprint import fingerprint, of_tokenizer
from training.precision import unit
from training.towers.image import HuggingFaceVisionSettings
from training.towers.open_clip import OpenClipImageSettings
from training.towers.pretrained import first_line, load_pretrained
from training.towers.text_reading import positions, reads_padding, tells_apart, text_half
from training.trunk_features import hugging_face_features, open_clip_features

F = TypeVar("F", bound=Callable)
_ARGUMENTS = "embedder_arguments"
_KEY = f"{_ARGUMENTS}.weights"
_LONG = 10_000  # words of a text that any tokenizer with a maximum length truncates


class OpenClipEmbedder:
    """An open_clip model."""

    def __init__(self, model: str, weights: str | None):
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._device = _device()
        settings = OpenClipImageSettings(name="open_clip", model=model, weights=weights)
        network: Any = settings.load(_ARGUMENTS)
        self._config = settings.config(_ARGUMENTS)
        self._network = network.eval().to(self._device)
        self.scale = _scale(network)
        self._features = open_clip_features(network.visual)
        if self._features is not None:
            self.image_features = self._image_features
        self._preprocess = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self._tokenizer = open_clip.get_tokenizer(model)
        tells_apart(self.embed_texts, f"{_ARGUMENTS}.model", model)

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB images to unit rows, float32 [n, D]."""
        return _rows(self._network.encode_image(self._pixels(images)))

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""
        return _rows(self._network.encode_text(self._tokenizer(texts).to(self._device)))

    @cached_property
    def fingerprint(self) -> str:
        about = [self._config, self._network.visual.preprocess_cfg, self._tokenizer.context_length]
        if hasattr(self._tokenizer, "tokenizer"):  # of transformers; open_clip's own is the same for all models
            about.append(of_tokenizer(self._tokenizer.tokenizer))
        return fingerprint(self._network, about)

    @torch.inference_mode()
    def _image_features(self, images: list[Image.Image]) -> np.ndarray:
        assert self._features is not None
        return self._features(self._pixels(images)).float().cpu().numpy()

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([self._preprocess(image) for image in images]).to(self._device)


class HuggingFaceEmbedder:
    """A CLIP-like model of transformers, such as CLIP, SigLIP or VisionTextDualEncoder."""

    def __init__(self, weights: str):
        from transformers import AutoProcessor

        network = load_pretrained(weights, _KEY, lambda network: _dual(network, weights))
        try:
            self._processor: Any = AutoProcessor.from_pretrained(resolve(weights, _KEY) or weights, trust_remote_code=False)
        except Exception as error:  # the hub, json and each processor raise their own errors
            problem = f"{weights} has no processor that can be loaded: {first_line(error)}"
            raise UserError(_KEY, problem, "save the model's processor beside its weights") from None
        self._device = _device()
        self._network = network.to(self._device)
        self._text_options = self._tokenizer_options(weights)
        if hasattr(network, "logit_scale"):
            self.scale = _scale(network)
        self._features = hugging_face_features(network)
        if self._features is not None:
            self.image_features = self._image_features
        tells_apart(self.embed_texts, _KEY, weights)

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB images to unit rows, float32 [n, D]."""
        return _rows(self._network.get_image_features(**self._pixels(images)).pooler_output)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]; long texts are truncated."""
        inputs = self._processor(text=texts, return_tensors="pt", **self._text_options).to(self._device)
        return _rows(self._network.get_text_features(**inputs).pooler_output)

    @torch.inference_mode()
    def _tokenizer_options(self, weights: str) -> dict[str, Any]:
        """Cut texts to the processor's length and the model's positions, and pad them to that if the model reads its padding."""
        tokenizer, usable = self._processor.tokenizer, positions(text_half(self._network))
        if tokenizer.pad_token is None:
            raise UserError(_KEY, f"the tokenizer of {weights} has no pad_token", "name it in its tokenizer_config.json")
        if usable is not None:  # some tokenizers have no maximum length, and say 1e30
            tokenizer.model_max_length = min(tokenizer.model_max_length, usable)
        (ids,) = self._processor(text=["word " * _LONG], truncation=True)["input_ids"]
        length = len(ids) if usable is None else min(len(ids), usable)
        options: dict[str, Any] = {"truncation": True} | ({"max_length": length} if length < _LONG else {})
        if "attention_mask" not in tokenizer.model_input_names or (
            length < _LONG and reads_padding(self._text_rows, length // 2, length)
        ):
            options["padding"] = "max_length"
        else:
            # On the right, since models count positions from the left: a text's row does not depend on the texts beside it.
            options["padding"], tokenizer.padding_side = True, "right"
        return options

    def _text_rows(self, ids: Tensor, mask: Tensor) -> Tensor:
        inputs = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        return self._network.get_text_features(**inputs).pooler_output

    @cached_property
    def fingerprint(self) -> str:
        # Where a model is stored is not part of its identity.
        config = json.loads(
            self._network.config.to_json_string(use_diff=False),
            object_hook=lambda tree: {key: value for key, value in tree.items() if key != "_name_or_path"},
        )
        images = self._processor.image_processor.to_dict()
        return fingerprint(self._network, [config, images, of_tokenizer(self._processor.tokenizer), self._text_options])

    @torch.inference_mode()
    def _image_features(self, images: list[Image.Image]) -> np.ndarray:
        assert self._features is not None
        return self._features(**self._pixels(images)).float().cpu().numpy()

    def _pixels(self, images: list[Image.Image]) -> Any:
        return self._processor(images=images, return_tensors="pt").to(self._device)


def _dual(network: Any, weights: str) -> Any:
    if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
        problem = f"{weights} is a {type(network).__name__}, which does not embed images and texts"
        raise UserError(_KEY, problem, "choose a CLIP-like model")
    return network


def _checked_by(check: Callable[..., None]) -> Callable[[F], F]:
    """Attach `check` to a function: evaluation calls it with the same arguments before it starts (evaluation/embedder.py)."""

    def mark(function: F) -> F:
        setattr(function, "check", check)  # noqa: B010  functions have no such attribute, says mypy
        return function

    return mark


def _check_open_clip(model: str, weights: str | None = None) -> None:
    OpenClipImageSettings(name="open_clip", model=model, weights=weights).check_source(_ARGUMENTS)


def _check_huggingface(weights: str) -> None:
    HuggingFaceVisionSettings(name="huggingface", weights=weights).check_source(_ARGUMENTS)


@_checked_by(_check_open_clip)
def open_clip(model: str, weights: str | None = None) -> OpenClipEmbedder:
    """`weights`: open_clip's tag, or a path; None: random ones. Raises `UserError` if they cannot be loaded."""
    _check_open_clip(model, weights)  # a hub that cannot be reached is told at once
    return OpenClipEmbedder(model, weights)


@_checked_by(_check_huggingface)
def huggingface(weights: str) -> HuggingFaceEmbedder:
    """`weights`: a hub name, or a folder with config.json and a processor. Raises `UserError` if they cannot be loaded."""
    _check_huggingface(weights)
    return HuggingFaceEmbedder(weights)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _scale(network: Any) -> float:
    """The logit scale, by which a model multiplies cosines; AIMv2 caps it."""
    return float(network.logit_scale.detach().clamp(max=getattr(network, "max_log_logit_scale", math.inf)).exp())


def _rows(features: Tensor) -> np.ndarray:
    return unit(features.float()).cpu().numpy()
