"""`Embedder`, the interface of every model that is evaluated: images and strings in, unit rows out."""

from typing import Any, Protocol

import numpy as np
from PIL import Image

from pipelines.program.errors import UserError
from pipelines.program.import_string import call, find

_EXAMPLE = "training.checkpoint:load_embedder"


class Embedder(Protocol):
    """Embeds images and texts into one space, and does its own preprocessing and tokenizing.

    Optional attributes:
        fingerprint: str - a digest of everything that decides its rows: weights, preprocessing, tokenizer, and the libraries
            behind them. It is the key of cached embeddings; without it, they are computed again each time.
        scale: float - the factor, 1/temperature, that turns its cosines into logits. Calibration reads it.
        image_features(images) - RGB images to features before the projection into the joint space, or the trunk's output where
            there is no projection; float32 [n, F], of any length. Linear probes read them.
    """

    def embed_images(self, images: list[Image.Image]) -> np.ndarray:
        """RGB images to unit rows, float32 [n, D]."""

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """Strings to unit rows, float32 [n, D]."""


def load_embedder(name: str, arguments: dict[str, Any]) -> Embedder:
    """Call `module:function` with keyword arguments. Raises `UserError` where it cannot be found."""
    return call(name, arguments, "embedder", "embedder_arguments", _EXAMPLE)


def check_embedder(name: str, arguments: dict[str, Any]) -> None:
    """Find mistakes before a cluster starts. Raises `UserError` where there is no such function, or where its `check` raises one.

    `check` is an optional attribute of the function: a function of the same keywords. The function that opens our own runs has
    none, and is not imported here, because that takes seconds.
    """
    if name == _EXAMPLE:
        if arguments.keys() - {"wise_ft"} != {"checkpoint"}:
            problem = f"{name} takes a checkpoint, wise_ft and nothing else, not {', '.join(map(repr, arguments))}"
            raise UserError("embedder_arguments", problem, "pass checkpoint=RUN, such as runs/demo")
    else:
        getattr(find(name, arguments, "embedder", "embedder_arguments", _EXAMPLE), "check", lambda **_: None)(**arguments)
