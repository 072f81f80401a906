"""Embedders of other people's models, with the preprocessing and the tokenizer that they were published with.

    embedder: training.embedders:open_clip     embedder_arguments: {model: ViT-B-32, weights: laion2b_s34b_b79k}
    embedder: training.embedders:huggingface   embedder_arguments: {weights: openai/clip-vit-base-patch32}

Nothing of ours touches a picture or a text on its way: the same picture in, the same score out.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.artifacts import resolve
from pipelines.settings import UserError
from training.precision import unit
from training.towers.open_clip import OpenClipImageSettings


class OpenClipEmbedder:
    """An open_clip model."""

    def __init__(self, model: str, weights: str | None):
        import open_clip
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self._device = _device()
        network: Any = OpenClipImageSettings(name="open_clip", model=model, weights=weights).load()
        self._network = network.eval().to(self._device)
        self._preprocess = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
        self._tokenizer = open_clip.get_tokenizer(model)

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB pictures to unit rows, float32 [n, D]."""
        pixels = torch.stack([self._preprocess(image) for image in images])
        return _rows(self._network.encode_image(pixels.to(self._device)))

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""
        return _rows(self._network.encode_text(self._tokenizer(texts).to(self._device)))


class HuggingFaceEmbedder:
    """A CLIP-like model of transformers: CLIP, SigLIP, VisionTextDualEncoder and their like."""

    def __init__(self, weights: str):
        from transformers import AutoModel, AutoProcessor

        path = resolve(weights, "embedder_arguments.weights") or weights
        try:
            network: Any = AutoModel.from_pretrained(path)
            self._processor: Any = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"embedder_arguments.weights: {weights}: {str(error).splitlines()[0]}; give a folder or a hub name"
            ) from None
        if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
            raise UserError(
                f"embedder_arguments.weights: {weights} is a {type(network).__name__}, which does not embed pictures and texts"
            )
        self._device = _device()
        self._network = network.eval().to(self._device)
        # SigLIP reads its texts padded to their full length, as it was trained.
        self._padding = "max_length" if "siglip" in network.config.model_type else True

    @torch.inference_mode()
    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB pictures to unit rows, float32 [n, D]."""
        given = self._processor(images=images, return_tensors="pt").to(self._device)
        return _rows(self._network.get_image_features(**given).pooler_output)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]; what is too long is cut."""
        given = self._processor(text=texts, return_tensors="pt", padding=self._padding, truncation=True).to(self._device)
        return _rows(self._network.get_text_features(**given).pooler_output)


def open_clip(model: str, weights: str | None = None) -> OpenClipEmbedder:
    """`weights`: open_clip's tag, or a path; None: random ones. Raises `UserError` where they are not to be had."""
    return OpenClipEmbedder(model, weights)


def huggingface(weights: str) -> HuggingFaceEmbedder:
    """`weights`: a hub name, or a folder with config.json and what a processor needs. Raises `UserError`."""
    return HuggingFaceEmbedder(weights)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _rows(features: Tensor) -> np.ndarray:
    return unit(features.float()).cpu().numpy()
