"""The settings of all towers, and the actors that compute a locked tower's features."""

from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from pydantic import Field

from pipelines.dataset.tokenizer import TextTokenizer
from training.towers.from_run import RunImageSettings, RunTextSettings
from training.towers.image import ConvSettings, HuggingFaceVisionSettings, ImageTowerSettings, TimmSettings
from training.towers.open_clip import OpenClipImageSettings, OpenClipTextSettings
from training.towers.padding import Padded
from training.towers.text import BagSettings, HuggingFaceTextSettings, TextTowerSettings, TransformerSettings
from training.towers.text_reading import tells_apart

if TYPE_CHECKING:
    from training.saved_towers import Frozen

ImageTowerUnion = Annotated[
    TimmSettings | HuggingFaceVisionSettings | ConvSettings | OpenClipImageSettings | RunImageSettings,
    Field(discriminator="name"),
]
TextTowerUnion = Annotated[
    HuggingFaceTextSettings | BagSettings | TransformerSettings | OpenClipTextSettings | RunTextSettings,
    Field(discriminator="name"),
]

__all__ = [
    "ImageFeatures",
    "ImageTowerSettings",
    "ImageTowerUnion",
    "TextFeatures",
    "TextTowerSettings",
    "TextTowerUnion",
]


class ImageFeatures:
    """A locked image tower: uint8 [n, 3, H, W] to float32 [n, F]. Built once per actor."""

    def __init__(self, tower: "Frozen"):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tower = tower.build().eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._tower(torch.from_numpy(images).to(self._device)).float().cpu().numpy()


class TextFeatures:
    """A locked text tower: strings to float32 [n, F]. Built once per actor."""

    def __init__(self, tower: "Frozen", tokenizer: TextTokenizer):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tower = tower.build(tokenizer.vocabulary_size).eval().to(self._device)
        self._padded = Padded(self._tower, tokenizer)
        tells_apart(lambda texts: self(np.asarray(texts, dtype=object)), f"{tower.key}.weights", str(tower.weights_name()))

    @torch.inference_mode()
    def __call__(self, texts: np.ndarray) -> np.ndarray:
        ids, mask = self._padded(list(texts))
        return self._tower(ids.to(self._device), mask.to(self._device)).float().cpu().numpy()
