"""From what tasks want to rows: embedded once through Ray Data, kept on disk, found again by whoever wants the same.

    CACHE/IDENTITY/rows.npy            float32 [n, D]; beside it what it was computed from, as for any bank of features

The identity is a digest of the embedder's fingerprint and of the images' or texts'. All that a model lacks is computed in one
pass of actors; killed, the same command goes on. An embedder that has no `fingerprint` is embedded anew by each command, for
nobody can tell whether it is still the same.
"""

import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation.data.base import Images
from evaluation.embedder import load_embedder
from evaluation.embeddings import Rows, Wanted, refuse_nan
from evaluation.model_settings import ModelSettings
from pipelines.features import feature_store
from pipelines.io.deadly import deadly
from pipelines.program.display import Display
from pipelines.program.errors import UserError

_ANEW = "anew-"  # fingerprint of an embedder that has none


class About(NamedTuple):
    """What an embedder tells of itself."""

    fingerprint: str | None
    scale: float | None
    has_features: bool


def describe(settings: ModelSettings) -> About:
    """Load an embedder somewhere in the cluster, and ask it. Raises `UserError` where it cannot be loaded."""
    import ray

    @ray.remote(num_cpus=1, max_calls=1)
    def ask() -> About:
        embedder = load_embedder(settings.embedder, settings.arguments())
        fingerprint, scale = getattr(embedder, "fingerprint", None), getattr(embedder, "scale", None)
        return About(fingerprint, None if scale is None else float(scale), hasattr(embedder, "image_features"))

    return ray.get(ask.remote())


def embed(
    name: str,
    key: str,
    settings: ModelSettings,
    wanted: Sequence[Wanted],
    cache: Path,
    pool: feature_store.Pool,
    display: Display,
) -> Rows:
    """Compute what is missing, in one pass. `name`: the model's; `key`: where the config names it, for errors.

    Features are embeddings where the embedder has none. Raises `UserError`, also for rows that are NaN or infinite.
    """
    about = describe(settings)
    if about.fingerprint is None:
        display.line(f"{name}: the embedder has no fingerprint, so all is embedded anew")
    rows = Rows(about.fingerprint or f"{_ANEW}{uuid.uuid4().hex}", settings.scale or about.scale)
    folder = cache if about.fingerprint else cache / rows.fingerprint
    asked = [one if about.has_features else one.embeddings for one in wanted]
    encoder = {"model": settings.embedder, "fingerprint": rows.fingerprint}
    found = [
        feature_store.Bank(
            folder, len(one.of), {"of": f"{one.kind} in order", "encoder": encoder, "data": one.fingerprint}, np.float32
        )
        for one in asked
    ]

    def load(number: int, ids: np.ndarray) -> Any:
        return _Piece(asked[number], ids)

    def culprit(number: int, ids: np.ndarray) -> UserError | None:
        one = asked[number]
        if one.kind == "texts":
            return None
        problem = deadly(partial(_image, one.of), lambda row: f"the image {one.of.name(row)} of {one.name}", ids.tolist())
        return UserError("data", problem, "repair or remove the file") if problem else None

    folder.mkdir(parents=True, exist_ok=True)
    arguments = settings, key, pool.threads
    feature_store.compute(found, load, _Encoder, arguments, pool, display, title=f"embed {name}", culprit=culprit)
    for one, given, bank in zip(wanted, asked, found, strict=True):
        rows.add(one, bank.path / "rows.npy", stand_in=one.kind != given.kind)
    return rows


def forget(rows: Rows, cache: Path) -> None:
    """Delete rows that nobody could find again."""
    if rows.fingerprint.startswith(_ANEW):
        shutil.rmtree(cache / rows.fingerprint, ignore_errors=True)


@dataclass(frozen=True)
class _Piece:
    wanted: Wanted
    ids: np.ndarray


class _Encoder:
    """In an actor: the embedder, and threads that decode for it."""

    def __init__(self, settings: ModelSettings, key: str, threads: int):
        self._embedder: Any = load_embedder(settings.embedder, settings.arguments())
        self._key, self._threads = key, ThreadPoolExecutor(threads)

    def __call__(self, piece: _Piece) -> np.ndarray:
        """float32 [n, D]."""
        wanted, ids = piece.wanted, piece.ids
        if wanted.kind == "texts":
            rows = self._embedder.embed_texts([wanted.of[i] for i in ids])
        else:
            work = self._embedder.image_features if wanted.kind == "features" else self._embedder.embed_images
            rows = work(list(self._threads.map(_image, repeat(wanted.of), ids)))
        rows = np.asarray(rows, dtype=np.float32)
        if rows.ndim != 2 or len(rows) != len(ids):
            raise UserError(f"{self._key}: {len(ids)} {wanted.kind} of {wanted.name} gave an array of shape {list(rows.shape)}")
        refuse_nan(self._key, wanted, rows, ids)
        return rows


def _image(images: Images, index: int) -> Any:
    (image,) = images.read(np.asarray([index]))
    return image
