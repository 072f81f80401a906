"""`Embedder`: images and strings in, unit rows out. Preprocessing and tokenizing belong to it."""

from typing import Any, Protocol

import numpy as np
from PIL import Image

from pipelines.program.import_string import call, find

_EXAMPLE = "training.checkpoint:load_embedder"


class Embedder(Protocol):
    """Anything that embeds images and texts into one space.

    It may offer more; what it lacks, it leaves out:
        fingerprint: str - a digest of all that decides its rows: weights, preprocessing, tokenizer, and the libraries behind
            them. Embeddings are cached under it; without one they are computed anew each time.
        scale: float - the factor, 1/temperature, that turns its cosines into logits. Calibration reads it.
        image_features(images) - RGB images to features before the projection into the joint space, or what the trunk gives
            where there is none; float32 [n, F], of any length. Linear probes read them.
    """

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB images to unit rows, float32 [n, D]."""

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""


def load_embedder(name: str, arguments: dict[str, Any]) -> Embedder:
    """Call `module:function` with keyword arguments. Raises `UserError` where it cannot be found."""
    return call(name, arguments, "embedder", "embedder_arguments", _EXAMPLE)


def check_embedder(name: str, arguments: dict[str, Any]) -> None:
    """Raises `UserError` for what can be known before a cluster starts: that there is no such function, or what its `check` says.

    `check`: a function of the same keywords, which may be an attribute of the embedder's. A run of ours has none, and is not even
    imported here: that takes seconds.
    """
    if name != _EXAMPLE:
        getattr(find(name, arguments, "embedder", "embedder_arguments", _EXAMPLE), "check", lambda **_: None)(**arguments)
