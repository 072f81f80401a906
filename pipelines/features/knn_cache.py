"""Neighbours of all samples in a whole split, computed once: rows of sample ids, stored next to the features.

    DATASET/features/IDENTITY/rows.npy   int64 [N, 2] by sample_id: nearest by image and by caption, -1 for none

The identity covers the features of images and captions, the dataset's content and the split's samples. Neighbours are computed,
resumed and checked like features.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipelines.dataset.prepared import Prepared
from pipelines.features.feature_store import StoredFeatures, compute, folder_of
from pipelines.features.frozen_encoders import FrozenFeatures
from pipelines.features.pool import Pool
from pipelines.io import storage
from pipelines.program.display import Display


def find_neighbours(frozen: FrozenFeatures, prepared: Prepared, pool: Pool, display: Display) -> Path | str:
    """The exact neighbours of all samples in the split, computed if missing. Raises `UserError`."""
    whole = replace(frozen, support=len(frozen.order.ids), search="exact", neighbours=None)
    stored = _stored(whole, prepared)
    compute([stored], lambda _, ids: ids, _Find, (whole, "cuda" if pool.use_gpu else "cpu"), pool, display, title="neighbours")
    return stored.place


def with_neighbours(frozen: FrozenFeatures, prepared: Prepared) -> FrozenFeatures:
    """The same with stored neighbours, if the support set is the whole split and they exist. Raises `UserError` for damage."""
    if frozen.support < len(frozen.order.ids):
        return frozen
    stored = _stored(frozen, prepared)
    if not stored.exists:
        return frozen
    stored.check()
    return replace(frozen, neighbours=stored.place)


def _stored(frozen: FrozenFeatures, prepared: Prepared) -> StoredFeatures:
    ids = hashlib.blake2b(frozen.order.ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
    about = {
        "of": "neighbours by sample_id",
        "images": storage.name_of(frozen.image_features),
        "texts": storage.name_of(frozen.text_features),
        "dataset": prepared.fingerprint,
        "split": frozen.order.split,
        "ids": ids,
    }
    return StoredFeatures(folder_of(prepared), prepared.num_samples, about, np.int64)


class _Find:
    """Sample ids [n] to the two nearest of each, int64 [n, 2]. Built once in an actor."""

    def __init__(self, frozen: FrozenFeatures, device: str):
        self._frozen, self._device = frozen, device

    def __call__(self, sample_ids: np.ndarray) -> np.ndarray:
        return self._frozen.near(sample_ids, 0, self._device)
