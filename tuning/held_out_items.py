"""Results of final runs on each test item, and the variance of a difference between cells over test items.

    SWEEP/trials/NAME/items.npz   of a final run: for each dataset the groups of its test items, and their parts of every score

An item is a group of the data, which splits keep together: its images are not drawn independently. The file is small: one
number per image and score.
"""

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import items
from evaluation.suite import HeldOut
from pipelines.dataset.prepared import Prepared

FILE = "items.npz"


@dataclass(frozen=True)
class Items:
    """A final run's score by item: one entry per group of test items, in the order of `keys`."""

    keys: np.ndarray  # int64 [K], distinct: the item's dataset and group
    of: np.ndarray  # int64 [K]: number of the dataset
    parts: np.ndarray  # float64 [K]: parts that add up to the score
    shares: np.ndarray  # float64 [K]: the item's share of its dataset's items
    reach: tuple[float, ...]  # for each dataset, how far its items could move the score, from none right to all right


def write_items(place: Path, scored: Sequence[tuple[Prepared, HeldOut, Mapping[str, np.ndarray]]]) -> None:
    """Write the items of each held-out split, from its data and embeddings (images, texts, prompts), atomically."""
    arrays = _arrays(scored)
    partial = place / f"{FILE}.partial-{os.getpid()}"
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)
    partial.rename(place / FILE)


def _arrays(scored: Sequence[tuple[Prepared, HeldOut, Mapping[str, np.ndarray]]]) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for number, (prepared, data, rows) in enumerate(scored):
        parts = items.contributions(data, rows["images"], rows["texts"], rows["prompts"])
        groups = prepared.rows(data.sample_ids, ("group",))["group"].to_pylist()
        arrays[f"groups-{number}"] = np.array([_key(f"{data.dataset}\0{group}") for group in groups])
        arrays[f"metrics-{number}"] = np.array(list(parts))
        arrays[f"parts-{number}"] = np.array(list(parts.values()), dtype=np.float32)
    return arrays


def read_items(trial: Path, score: Sequence[str]) -> Items | None:
    """The items in a trial's folder; None if there are none, they are unreadable, or a metric of the score is missing."""
    try:
        with np.load(trial / FILE) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError):
        return None
    return _items(arrays, score)


def items_of(prepared: Prepared, data: HeldOut, rows: Mapping[str, np.ndarray], scores: Sequence[str]) -> dict[str, Items]:
    """Of each score alone, of a single split, where it has items."""
    arrays = _arrays([(prepared, data, rows)])
    found = {score: _items(arrays, [score]) for score in scores}
    return {score: items for score, items in found.items() if items is not None}


def _items(arrays: Mapping[str, Any], score: Sequence[str]) -> Items | None:
    missing = set(score)
    keys, of, parts, shares = [], [], [], []
    reach: list[float] = []
    for number in range(sum(name.startswith("groups-") for name in arrays)):
        stored = dict(zip(arrays[f"metrics-{number}"].tolist(), arrays[f"parts-{number}"].astype(np.float64), strict=True))
        by_metric = {metric: part for metric in score if (part := items.contributions_to(stored, metric)) is not None}
        if not by_metric:
            continue
        groups, where, counts = np.unique(arrays[f"groups-{number}"], return_inverse=True, return_counts=True)
        total = np.sum(list(by_metric.values()), axis=0) / len(score)
        keys.append(groups)
        of.append(np.full(len(groups), len(reach)))
        parts.append(np.bincount(where, weights=total, minlength=len(groups)) / len(total))
        shares.append(counts / len(total))
        reach.append(100.0 * len(by_metric) / len(score))
        missing -= by_metric.keys()
    if missing:
        return None
    return Items(np.concatenate(keys), np.concatenate(of), np.concatenate(parts), np.concatenate(shares), tuple(reach))


def variance(pairs: Sequence[tuple[Items, Items]]) -> tuple[float, int] | None:
    """Variance over test items of a mean difference between two cells, and its degrees of freedom.

    There is a pair of runs for each seed, on the same items; seeds may share items or have their own. Each item's part of the
    mean difference, minus the part expected from its share of the items, is squared and summed: the cluster-robust variance
    (Liang & Zeger, 1986). For items that all seeds share it is the variance over items of their mean over seeds, divided by
    their number. As in the paired counterpart of Wilson's interval (Bonett & Price, 2012), one pseudo-item with the largest
    possible effect is added on either side: that hits never differed does not prove that they never would.

    None if a pair has different items, or there are fewer than two items.
    """
    rests = []
    for first, second in pairs:
        if not np.array_equal(first.keys, second.keys):
            return None
        parts = first.parts - second.parts
        rests.append(parts - first.shares * np.bincount(first.of, weights=parts)[first.of])
    if not pairs:
        return None
    keys, of = (np.concatenate([getattr(first, name) for first, _ in pairs]) for name in ("keys", "of"))
    _, chosen, where = np.unique(keys, return_index=True, return_inverse=True)
    counts = np.bincount(of[chosen])
    freedom = len(chosen) - len(counts)
    if freedom < 1:
        return None
    effects = np.bincount(where, weights=np.concatenate(rests)) / len(pairs)
    unseen = sum(2 * (reach / count) ** 2 for reach, count in zip(pairs[0][0].reach, counts.tolist(), strict=True))
    return float((effects**2).sum()) + unseen, freedom


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
