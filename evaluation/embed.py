"""Embeds the inputs of all tasks: once per model, through Ray Data, kept on disk for the next command.

    CACHE/IDENTITY/rows.npy            float32 [n, D], and beside it what it was computed from, as for all stored features

The identity is a digest of the embedder's fingerprint and of the images or texts. One pass of the actors computes everything that
a model lacks; after a kill, the same command resumes. An embedder without a `fingerprint` is run again by each command, because
nobody can tell whether it is still the same.
"""

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.data.base import Images
from evaluation.embedder import load_embedder
from evaluation.embeddings import Inputs, Rows, check_finite
from evaluation.model_settings import ModelSettings
from pipelines.features import feature_store
from pipelines.io import storage
from pipelines.io.deadly import deadly
from pipelines.program.cluster import ONE_CPU, wait_for_room
from pipelines.program.display import Display
from pipelines.program.errors import UserError

_UNNAMED = "anew-"  # begins the fingerprint of an embedder that has none


class EmbedderInfo(NamedTuple):
    """An embedder's optional attributes (`Embedder`)."""

    fingerprint: str | None
    scale: float | None
    has_features: bool


def describe(settings: ModelSettings, labels: Mapping[str, str]) -> EmbedderInfo:
    """Load an embedder in a Ray task and read its optional attributes. Raises `UserError` where it cannot be loaded.

    `labels`: Ray's, of the nodes where it may run.
    """
    import ray

    @ray.remote(num_cpus=1, max_calls=1, label_selector=dict(labels) or None)
    def load() -> EmbedderInfo:
        embedder = load_embedder(settings.embedder, settings.arguments())
        fingerprint, scale = getattr(embedder, "fingerprint", None), getattr(embedder, "scale", None)
        return EmbedderInfo(fingerprint, None if scale is None else float(scale), hasattr(embedder, "image_features"))

    wait_for_room(ONE_CPU._replace(labels=labels))
    return ray.get(load.remote())


def embed(
    name: str,
    key: str,
    settings: ModelSettings,
    every: Sequence[Inputs],
    cache: Path | str,
    pool: feature_store.Pool,
    display: Display,
) -> Rows:
    """Compute the missing rows of every input in one pass. `name`: the model's; `key`: where the config names it, for errors.

    An embedder without features gives embeddings in their place. Raises `UserError`, also for rows that are NaN or infinite.
    """
    info = describe(settings, pool.labels)
    if info.fingerprint is None:
        display.line(f"{name}: the embedder has no fingerprint, so everything is embedded again")
    rows = Rows(info.fingerprint or f"{_UNNAMED}{uuid.uuid4().hex}", settings.scale or info.scale)
    folder = cache if info.fingerprint else storage.join(cache, rows.fingerprint)
    embedded = [inputs if info.has_features else inputs.fallback for inputs in every]
    encoder = {"model": settings.embedder, "fingerprint": rows.fingerprint}
    stored = [
        feature_store.StoredFeatures(
            folder,
            len(inputs.items),
            {"of": f"{inputs.kind} in order", "encoder": encoder, "data": inputs.fingerprint},
            np.float32,
        )
        for inputs in embedded
    ]

    def load(number: int, ids: np.ndarray) -> Any:
        return _Batch(embedded[number], ids)

    def culprit(number: int, ids: np.ndarray) -> UserError | None:
        inputs = embedded[number]
        if inputs.kind == "texts":
            return None
        images = inputs.items
        problem = deadly(partial(_image, images), lambda row: f"the image {images.name(row)} of {inputs.name}", ids.tolist())
        return UserError("data", problem, "repair or remove the file") if problem else None

    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = settings, key, pool.threads
    feature_store.compute(stored, load, _Encoder, arguments, pool, display, title=f"embed {name}", culprit=culprit)
    for inputs, computed, features in zip(every, embedded, stored, strict=True):
        rows.add(inputs, features.path / "rows.npy", fallback=inputs.kind != computed.kind)
    return rows


def forget(rows: Rows, cache: Path | str) -> None:
    """Delete the rows of an embedder without a fingerprint, which no later command could find."""
    if rows.fingerprint.startswith(_UNNAMED):
        storage.delete(storage.join(cache, rows.fingerprint))


@dataclass(frozen=True)
class _Batch:
    inputs: Inputs
    ids: np.ndarray


class _Encoder:
    """In an actor: the embedder, and threads that decode images for it."""

    def __init__(self, settings: ModelSettings, key: str, threads: int):
        self._embedder: Any = load_embedder(settings.embedder, settings.arguments())
        self._key, self._threads = key, ThreadPoolExecutor(threads)

    def __call__(self, batch: _Batch) -> np.ndarray:
        """float32 [n, D]."""
        inputs, ids = batch.inputs, batch.ids
        if inputs.kind == "texts":
            rows = self._embedder.embed_texts([inputs.items[i] for i in ids])
        else:
            method = self._embedder.image_features if inputs.kind == "features" else self._embedder.embed_images
            rows = method(list(self._threads.map(_image, repeat(inputs.items), ids)))
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(ids):
            raise UserError(
                self._key,
                f"{len(ids)} {inputs.kind} of {inputs.name} gave an array of shape {list(rows.shape)}",
                f"return one row for each of them: [{len(ids)}, width]",
            )
        check_finite(self._key, inputs, rows, ids)
        return rows


def _image(images: Images, index: int) -> Any:
    (image,) = images.read(np.asarray([index]))
    return image
