"""Embedders for published models, with the preprocessing and the tokenizer that they were published with.

    embedder: training.embedders:open_clip     embedder_arguments: {model: ViT-B-32, weights: laion2b_s34b_b79k}
    embedder: training.embedders:huggingface   embedder_arguments: {weights: openai/clip-vit-base-patch32}

None of our own preprocessing is applied to an image or a text, so scores are comparable with published ones. The optional
attributes of an embedder are explained in evaluation/embedder.py.
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
_KEY = "embedder_arguments.weights"
_LONG = 10_000  # words of a text that any tokenizer with a maximum length truncates


class OpenClipEmbedder:
    """An open_clip model."""

    def __init__(self, model: str, weights: str | None):
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._device = _device()
        settings = OpenClipImageSettings(name="open_clip", model=model, weights=weights)
        network: Any = settings.load()
        self._config = settings.config()
        self._network = network.eval().to(self._device)
        self.scale = _scale(network)
        self._features = open_clip_features(network.visual)
        if self._features is not None:
            self.image_features = self._image_features
        self._preprocess = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self._tokenizer = open_clip.get_tokenizer(model)
        tells_apart(self.embed_texts, "embedder_arguments.model", model)

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
        if hasattr(self._tokenizer, "tokenizer"):  # of transformers; open_clip's own goes by its version
            about.append(of_tokenizer(self._tokenizer.tokenizer))
        return fingerprint(self._network, about)

    @torch.inference_mode()
    def _image_features(self, images: list[Image.Image]) -> np.ndarray:
        assert self._features is not None
        return self._features(self._pixels(images)).float().cpu().numpy()

    def _pixels(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([self._preprocess(image) for image in images]).to(self._device)


class HuggingFaceEmbedder:
    """A CLIP-like model of transformers: CLIP, SigLIP, VisionTextDualEncoder and their like."""

    def __init__(self, weights: str):
        from transformers import AutoProcessor

        network = load_pretrained(weights, _KEY, lambda network: _dual(network, weights))
        try:
            self._processor: Any = AutoProcessor.from_pretrained(resolve(weights, _KEY) or weights, trust_remote_code=False)
        except Exception as error:  # the hub, json and each processor raise their own errors
            raise UserError(f"{_KEY}: {weights}: {first_line(error)}; give a folder or a hub name") from None
        self._device = _device()
        self._network = network.to(self._device)
        self._text_options = self._how_texts_are_read(weights)
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
        given = self._processor(text=texts, return_tensors="pt", **self._text_options).to(self._device)
        return _rows(self._network.get_text_features(**given).pooler_output)

    @torch.inference_mode()
    def _how_texts_are_read(self, weights: str) -> dict[str, Any]:
        """Cut to what the processor cuts to and the model has positions for; padded to that where the model reads its padding."""
        tokenizer, usable = self._processor.tokenizer, positions(text_half(self._network))
        if tokenizer.pad_token is None:
            raise UserError(f"{_KEY}: the tokenizer of {weights} names no pad_token; name it in its tokenizer_config.json")
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
            # Pad on the right, since models count positions from the left: a text's row is then the same alone and next to longer
            # texts.
            options["padding"], tokenizer.padding_side = True, "right"
        return options

    def _text_rows(self, ids: Tensor, mask: Tensor) -> Tensor:
        given = {"input_ids": ids.to(self._device), "attention_mask": mask.to(self._device)}
        return self._network.get_text_features(**given).pooler_output

    @cached_property
    def fingerprint(self) -> str:
        # The location of a model is not part of its identity.
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
        raise UserError(f"{_KEY}: {weights} is a {type(network).__name__}, which does not embed images and texts")
    return network


def _checked_by(check: Callable[..., None]) -> Callable[[F], F]:
    """Attach to a function what evaluation checks before a cluster starts (evaluation/embedder.py)."""

    def mark(function: F) -> F:
        setattr(function, "check", check)  # noqa: B010  functions have no such attribute, says mypy
        return function

    return mark


def _check_open_clip(model: str, weights: str | None = None) -> None:
    OpenClipImageSettings(name="open_clip", model=model, weights=weights).check_source("embedder_arguments")


def _check_huggingface(weights: str) -> None:
    HuggingFaceVisionSettings(name="huggingface", weights=weights).check_source("embedder_arguments")


@_checked_by(_check_open_clip)
def open_clip(model: str, weights: str | None = None) -> OpenClipEmbedder:
    """`weights`: open_clip's tag, or a path; None: random ones. Raises `UserError` if they are not available."""
    return OpenClipEmbedder(model, weights)


@_checked_by(_check_huggingface)
def huggingface(weights: str) -> HuggingFaceEmbedder:
    """`weights`: a hub name, or a folder with config.json and what a processor needs. Raises `UserError`."""
    return HuggingFaceEmbedder(weights)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _scale(network: Any) -> float:
    """The logit scale by which a model multiplies cosines; AIMv2 caps it."""
    return float(network.logit_scale.detach().clamp(max=getattr(network, "max_log_logit_scale", math.inf)).exp())


def _rows(features: Tensor) -> np.ndarray:
    return unit(features.float()).cpu().numpy()
