"""Guides: for every sample, the samples that two frozen encoders find nearest to it, and their features.

The encoders' features lie in banks (`pipelines.banks`). Neighbours are looked for in a support set: samples of the training
split, chosen anew in every epoch, the same on every worker without a word exchanged. The search is exact: one product of a
batch's features with those of the support set, on the worker's device.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.lookup import bank_rows, id_columns
from pipelines.order import Order
from pipelines.randomness import generator

_BYTES = 1 << 28  # of one block of similarities


@dataclass(frozen=True)
class Guides:
    """Two banks and the split whose samples may be neighbours. Picklable; the same on every worker."""

    order: Order
    image_bank: Path  # rows by sample_id
    text_bank: Path  # rows by text_id; a sample's first caption stands for it
    support: int  # samples in the support set, at most the split's

    @property
    def widths(self) -> tuple[int, int]:
        """Of the features of pictures and captions."""
        return bank_rows(self.image_bank).shape[1], bank_rows(self.text_bank).shape[1]

    def columns(self, sample_ids: np.ndarray, epoch: int, device: str) -> dict[str, np.ndarray]:
        """`guide_ids` int64 [b, 3]: each sample, and those nearest to its picture and to its caption (-1: there is none); and the
        unit features of all three, `guide_images` [b, 3, F] and `guide_texts` [b, 3, G].
        """
        support = _support(self, epoch)
        own = _features(self, sample_ids)
        image_ids = id_columns(str(self.order.path), self.order.fingerprint)[0]
        same = image_ids[sample_ids]
        near = [nearest(query, keys, same, support.image_ids, device) for query, keys in zip(own, support.features, strict=True)]
        ids = np.stack([sample_ids, *(np.where(place < 0, -1, support.ids[place]) for place in near)], axis=1)
        images, texts = _features(self, np.where(ids < 0, sample_ids[:, None], ids).ravel())
        shape = (len(sample_ids), 3, -1)
        return {"guide_ids": ids, "guide_images": images.reshape(shape), "guide_texts": texts.reshape(shape)}

    def own(self, sample_ids: np.ndarray, text_ids: np.ndarray) -> dict[str, np.ndarray]:
        """Unit features of each sample's picture and one of its captions: `guide_images` [b, 1, F], `guide_texts` [b, 1, G]."""
        images, texts = bank_rows(self.image_bank)[sample_ids], bank_rows(self.text_bank)[text_ids]
        return {"guide_images": _unit(images)[:, None], "guide_texts": _unit(texts)[:, None]}


@dataclass(frozen=True)
class _Support:
    ids: np.ndarray  # [Q] sample ids, ascending
    image_ids: np.ndarray  # [Q]
    features: tuple[np.ndarray, np.ndarray]  # unit rows [Q, F] and [Q, G]


@functools.lru_cache(maxsize=2)
def _support(guides: Guides, epoch: int) -> _Support:
    order = guides.order
    ids = order.ids
    if guides.support < len(ids):
        ids = np.sort(generator("support", order.seed, epoch).choice(ids, guides.support, replace=False))
    elif epoch:
        return _support(guides, 0)  # all of them, whatever the epoch
    return _Support(ids, id_columns(str(order.path), order.fingerprint)[0][ids], _features(guides, ids))


def _features(guides: Guides, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of pictures and of first captions, float32."""
    text_ids = id_columns(str(guides.order.path), guides.order.fingerprint)[1]
    firsts = np.asarray([text_ids[i][0] for i in sample_ids])
    return _unit(bank_rows(guides.image_bank)[sample_ids]), _unit(bank_rows(guides.text_bank)[firsts])


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(queries: np.ndarray, keys: np.ndarray, groups: np.ndarray, key_groups: np.ndarray, device: str = "cpu") -> np.ndarray:
    """int64 [n]: of each query, the key with the largest product that is of another group; the first of equal ones, -1 for none.

    Args:
        queries, keys: float32 [n, F] and [Q, F].
        groups, key_groups: int64 [n] and [Q].
    """
    import torch

    found = np.full(len(queries), -1)
    if not len(keys):
        return found
    there, there_groups = torch.from_numpy(keys).to(device), torch.from_numpy(key_groups).to(device)
    step = max(1, _BYTES // (4 * len(keys)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        products = torch.from_numpy(queries[part]).to(device) @ there.T
        products.masked_fill_(torch.from_numpy(groups[part]).to(device)[:, None] == there_groups, -torch.inf)
        best, place = products.max(1)
        found[part] = torch.where(best.isinf(), -1, place).cpu().numpy()
    return found
