"""Embedders in the caller's process, without Ray: load one, embed images and texts, and rank images by a query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.program.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from evaluation.embedder import Embedder

    AnyImage = str | Path | Image.Image


def load_run(path: str | Path) -> Embedder:
    """The embedder of a run's newest checkpoint, of the checkpoint at `path`, or of an export to safetensors.

    Raises `UserError` if there is none.
    """
    from training.checkpoint import load_embedder

    return load_embedder(str(path))


def load_open_clip(model: str, weights: str | None) -> Embedder:
    """An open_clip model with its own preprocessing; `weights`: one of open_clip's tags, or a path. Needs raylign[open_clip]."""
    from training.embedders import open_clip

    return open_clip(model, weights)


def load_huggingface(weights: str) -> Embedder:
    """A CLIP-like model of transformers with its own processor; `weights`: a hub name or a folder."""
    from training.embedders import huggingface

    return huggingface(weights)


def embed_images(embedder: Embedder, images: Sequence[AnyImage], batch_size: int = 64) -> np.ndarray:
    """Files or PIL images to unit rows, float32 [n, D]; `batch_size` of them are in memory at a time.

    Raises `UserError` if there are none, or a file cannot be read or decoded.
    """
    import numpy as np

    batches = [images[first : first + batch_size] for first in range(0, len(images), batch_size)]
    if not batches:
        raise UserError("images", "the list is empty", "give at least one image")
    return np.concatenate([embedder.embed_images([_read(image) for image in batch]) for batch in batches])


def embed_texts(embedder: Embedder, texts: Sequence[str], batch_size: int = 256) -> np.ndarray:
    """Strings to unit rows, float32 [n, D]. Raises `UserError` if there are none."""
    import numpy as np

    if isinstance(texts, str) or not texts:
        raise UserError("texts", f"must be a list of texts, and not empty (value {texts!r})", "give at least one text, in a list")
    return np.concatenate([embedder.embed_texts(list(texts[i : i + batch_size])) for i in range(0, len(texts), batch_size)])


def rank(embedder: Embedder, query: str | Image.Image, images: str | Path | Sequence[AnyImage]) -> list[tuple[AnyImage, float]]:
    """Images by their cosine similarity to a query, the most similar first, each with its cosine.

    Args:
        query: a sentence or a PIL image.
        images: files, PIL images, or a folder, for all images in it and its subfolders.
    """
    candidates = _images_in(Path(images)) if isinstance(images, str | Path) else list(images)
    target = embed_texts(embedder, [query]) if isinstance(query, str) else embed_images(embedder, [query])
    cosines = embed_images(embedder, candidates) @ target[0]
    return [(candidates[i], float(cosines[i])) for i in (-cosines).argsort(kind="stable")]


def _images_in(folder: Path) -> list[AnyImage]:
    """Image files in a folder and its subfolders, sorted by name, without hidden files. Raises `UserError` if there are none."""
    from pipelines.dataset.image_formats import is_hidden, is_image

    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    files: list[AnyImage] = [folder / name for name in names if is_image(name) and not is_hidden(name)]
    if not files:
        problem = f"{folder} {'contains no images' if folder.is_dir() else 'is not a folder'}"
        raise UserError("images", problem, "give a folder with images, or a list of files")
    return files


def _read(image: AnyImage) -> Image.Image:
    """RGB and upright, as a prepared dataset's images."""
    from pipelines.dataset.images import BadImage, decode

    if not isinstance(image, str | Path):
        return image.convert("RGB")
    try:
        return decode(Path(image).read_bytes())
    except OSError as error:
        raise UserError("images", f"{image} cannot be read: {error.strerror}", "give a file that exists") from None
    except BadImage as bad:
        raise UserError("images", f"{image} cannot be used: {bad.reason}, {bad.detail}", "leave it out") from None
