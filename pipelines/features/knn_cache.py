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
from pipelines.features.frozen_encoders import Guides
from pipelines.features.pool import Pool
from pipelines.io import storage
from pipelines.program.display import Display


def find_neighbours(guides: Guides, prepared: Prepared, pool: Pool, display: Display) -> Path | str:
    """The exact neighbours of all samples in the guides' split, computed if missing. Raises `UserError`."""
    whole = replace(guides, support=len(guides.order.ids), search="exact", neighbours=None)
    stored = _stored(whole, prepared)
    compute([stored], lambda _, ids: ids, _Find, (whole, "cuda" if pool.use_gpu else "cpu"), pool, display, title="neighbours")
    return stored.place


def with_neighbours(guides: Guides, prepared: Prepared) -> Guides:
    """The guides with stored neighbours, if the support set is the whole split and they exist. Raises `UserError` for damage."""
    if guides.support < len(guides.order.ids):
        return guides
    stored = _stored(guides, prepared)
    if not stored.exists:
        return guides
    stored.check()
    return replace(guides, neighbours=stored.place)


def _stored(guides: Guides, prepared: Prepared) -> StoredFeatures:
    ids = hashlib.blake2b(guides.order.ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
    about = {
        "of": "neighbours by sample_id",
        "images": storage.name_of(guides.image_features),
        "texts": storage.name_of(guides.text_features),
        "dataset": prepared.fingerprint,
        "split": guides.order.split,
        "ids": ids,
    }
    return StoredFeatures(folder_of(prepared), prepared.num_samples, about, np.int64)


class _Find:
    """Sample ids [n] to the two nearest of each, int64 [n, 2]. Built once in an actor."""

    def __init__(self, guides: Guides, device: str):
        self._guides, self._device = guides, device

    def __call__(self, sample_ids: np.ndarray) -> np.ndarray:
        return self._guides.near(sample_ids, 0, self._device)
