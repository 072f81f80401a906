"""Rows that duplicate an earlier one: the same key, the same image or pair, or nearly the same image.

Found from the digests of all rows, which fit into memory as arrays.
"""

import json
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.io import storage
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.shards import Part, rows_file
from pipelines.program.path_keys import Place

NOT_REJECTED = pc.field("reason").is_null()  # of a part's rows


@dataclass
class Digests:
    """Digests of all rows that were not rejected when read, in order."""

    rows_of_part: np.ndarray  # int64 [parts]
    key: np.ndarray  # uint64 [n]
    image: np.ndarray
    content: np.ndarray
    near: np.ndarray
    texts: np.ndarray  # uint64 [m], captions of all rows concatenated
    captions: np.ndarray  # int64 [n], number of captions of each row
    train: np.ndarray  # bool [n]
    labels: list[str]  # names of all labels, in order of appearance


def read_digests(parts: list[Part], content: Place) -> Digests:
    """The digests of all parts, in order."""
    columns = ["key_digest", "image_digest", "content_digest", "near_hash", "text_digest", "split"]
    tables, names = [], dict[str, None]()
    for part in parts:
        table = storage.read_table(rows_file(content, part), [*columns, "labels"], NOT_REJECTED)
        for labels in pc.unique(table["labels"]).to_pylist():
            names |= dict.fromkeys(json.loads(labels))
        tables.append(table.drop_columns("labels"))
    table = pa.concat_tables(tables)
    texts = table["text_digest"]
    return Digests(
        np.asarray([len(table) for table in tables]),
        table["key_digest"].to_numpy(),
        table["image_digest"].to_numpy(),
        table["content_digest"].to_numpy(),
        table["near_hash"].fill_null(0).to_numpy(),
        pc.list_flatten(texts).to_numpy(),
        pc.list_value_length(texts).to_numpy().astype(np.int64),
        pc.equal(table["split"], "train").to_numpy(),
        list(names),
    )


def duplicates(digests: Digests, settings: PrepareSettings) -> np.ndarray:
    """The rejection reason of each row that duplicates an earlier one, "" for the others. str [n].

    If the splits are the source's own, held-out rows take precedence, so a published test split loses only its own duplicates.
    If they are drawn, only the order of rows decides.
    """
    reasons = np.full(len(digests.key), "", dtype=object)
    order = np.argsort(digests.train, kind="stable") if settings.splits == "source" else np.arange(len(reasons))

    def reject_repeated(values: np.ndarray, reason: str) -> None:
        left = order[reasons[order] == ""]
        first = np.zeros(len(left), dtype=bool)
        first[np.unique(values[left], return_index=True, axis=0)[1]] = True
        reasons[left[~first]] = reason

    reject_repeated(digests.key, "duplicate_key")
    if settings.deduplicate.exact == "image":
        reject_repeated(digests.image, "duplicate_image")
    if settings.deduplicate.exact == "pair":
        starts = np.cumsum(digests.captions) - digests.captions
        # The digests are uniform, so equal sums mean equal captions, in any order.
        captions = np.add.reduceat(digests.texts, starts) if len(starts) else digests.texts
        reject_repeated(np.stack([digests.image, captions], axis=1), "duplicate_pair")
    if settings.deduplicate.near is not None:
        left, references = order[reasons[order] == ""], None
        if settings.deduplicate.near_scope == "held_out":
            left = left[np.argsort(digests.train[left], kind="stable")]
            references = int((~digests.train[left]).sum())
        reasons[left[near_duplicates(digests.near[left], settings.deduplicate.near, references)]] = "near_duplicate"
    return reasons


def near_duplicates(hashes: np.ndarray, bits: int, references: int | None = None) -> np.ndarray:
    """Rows whose 64-bit hash differs in at most `bits` bits from that of an earlier row that is not itself a duplicate. bool [n].

    Args:
        references: number of first rows that alone can make another one a duplicate, and are never one; None: all rows.

    Two such hashes are equal in at least one of `bits + 1` bands, so only rows that share a band are compared.
    """
    edges = np.linspace(0, 64, bits + 2).round().astype(int)
    bands = [((1 << int(b - a)) - 1, int(a)) for a, b in pairwise(edges)]
    seen: list[dict[int, list[int]]] = [{} for _ in bands]
    is_duplicate = np.zeros(len(hashes), dtype=bool)
    for row, value in enumerate(hashes.tolist()):
        places = [(where, (value >> shift) & mask) for where, (mask, shift) in zip(seen, bands, strict=True)]
        is_tested = references is None or row >= references
        if is_tested and any((value ^ other).bit_count() <= bits for where, key in places for other in where.get(key, ())):
            is_duplicate[row] = True
        elif references is None or not is_tested:
            for where, key in places:
                where.setdefault(key, []).append(value)
    return is_duplicate
