"""The halves of a dual encoder, and the actors that compute a locked tower's features."""

import numpy as np
import torch

from pipelines.tokenizer import TextTokenizer
from training.towers.image import ImageTowerSettings, ImageTowerUnion
from training.towers.text import TextTowerSettings, TextTowerUnion

__all__ = [
    "ImageFeatures",
    "ImageTowerSettings",
    "ImageTowerUnion",
    "TextFeatures",
    "TextTowerSettings",
    "TextTowerUnion",
]


class ImageFeatures:
    """A locked image tower: uint8 [n, 3, H, W] to float32 [n, F]. Built once in an actor."""

    def __init__(self, settings: ImageTowerSettings):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tower = settings.build().eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._tower(torch.from_numpy(images).to(self._device)).float().cpu().numpy()


class TextFeatures:
    """A locked text tower: strings to float32 [n, F]. Built once in an actor."""

    def __init__(self, settings: TextTowerSettings, tokenizer: TextTokenizer):
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._tokenizer = tokenizer
        self._tower = settings.build(tokenizer.vocabulary_size).eval().to(self._device)

    @torch.inference_mode()
    def __call__(self, texts: np.ndarray) -> np.ndarray:
        ids, mask = (torch.from_numpy(a).to(self._device) for a in self._tokenizer(list(texts)))
        return self._tower(ids, mask).float().cpu().numpy()
