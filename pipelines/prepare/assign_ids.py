"""The second half of preparing: removes duplicates, assigns dense ids, shuffles captions, and writes the shards' columns.

It runs on the driver over the rows that the parts produced, without images: the digests of all rows at once as arrays,
everything else part by part. The same parts give the same files and the same fingerprint, wherever and however often they were
read.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.dataset.row_ids import RowIds
from pipelines.io import storage
from pipelines.prepare.captions import exchange
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.duplicates import NOT_REJECTED, Digests, duplicates, read_digests
from pipelines.prepare.repeated_captions import Repeats
from pipelines.prepare.shards import Part, rows_file
from pipelines.program.path_keys import Place
from pipelines.program.randomness import generator

REJECTED = pa.schema([(name, pa.string()) for name in ("key", "origin", "reason", "detail")])


@dataclass
class Totals:
    """Totals over all kept rows, for the manifest."""

    kept: int = 0
    images: int = 0
    texts: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    splits: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    captions: Counter[str] = field(default_factory=lambda: Counter(chosen=0, shuffled=0))
    reasons: Counter[str] = field(default_factory=Counter)
    tables: bool = False  # whether images are in tables, which are read by row group
    fingerprint: str = ""
    repeats: Repeats | None = None


def assign_ids(parts: list[Part], content: Place, settings: PrepareSettings, rejected_file: Place) -> Totals:
    """Write `00012.parquet` for every part with kept rows, and the list of rejected rows. Can be repeated."""
    digests = read_digests(parts, content)
    duplicate = duplicates(digests, settings)
    kept = duplicate == ""
    text_kept = np.repeat(kept, digests.captions)
    starts = np.concatenate([[0], np.cumsum(digests.captions[kept])])
    ids = RowIds(first_seen(digests.image[kept]), starts, first_seen(digests.texts[text_kept]))
    result = Totals(kept=int(kept.sum()), images=_count(ids.images), texts=_count(ids.texts))
    hasher = hashlib.blake2b(digest_size=16)
    hasher.update(digests.content[kept].tobytes())
    givers = _shuffle(ids, digests.train[kept], settings, result.captions)
    if givers is not None:
        hasher.update(givers.tobytes())
    shuffled_captions = _captions_of(parts, content, duplicate, digests, givers) if givers is not None else None
    first, offset = 0, 0
    groups, rows_of_text = [np.empty(0, np.int64)], np.bincount(ids.texts, minlength=1)
    commonest, text = int(rows_of_text.argmax()), None
    with storage.written(rejected_file) as path, pq.ParquetWriter(path, REJECTED) as rejected:
        for part, rows in zip(parts, digests.rows_of_part, strict=True):
            table = storage.read_table(rows_file(content, part))
            reasons = duplicate[offset : offset + rows]
            offset += rows
            table, bad = _split_off(table, reasons, settings)
            result.reasons.update(bad["reason"].to_pylist())
            rejected.write_table(bad)
            if not len(table):
                continue
            samples = np.arange(first, first + len(table))
            first += len(table)
            caption_rows = samples if givers is None else givers[samples]
            table = _with_ids(table, samples, ids.image(samples), ids.lists(caption_rows), digests.labels, result.labels)
            groups.append(np.fromiter(map(hash, table["group"].to_pylist()), np.int64, len(table)))
            text = _text_of(commonest, table) if text is None and givers is None else text
            if shuffled_captions is not None:
                table = table.set_column(
                    table.schema.get_field_index("captions"),
                    "captions",
                    pa.array([shuffled_captions[i] for i in caption_rows], pa.list_(pa.string())),
                ).append_column("shuffled", pa.array(caption_rows != samples))
            with storage.written(storage.join(content, f"{part.name}.parquet")) as shard:
                pq.write_table(table, shard)
            result.tables |= any(pc.unique(table["column"]).to_pylist())
            splits = Counter(table["split"].to_pylist())
            result.splits += splits
            entry: dict[str, Any] = {
                "file": f"{storage.name_of(content)}/{part.name}.parquet",
                "rows": len(table),
                "splits": dict(sorted(splits.items())),
            }
            if part.weight != 1:
                entry["weight"] = part.weight
            result.shards.append(entry)
            # The order of samples depends on the shard boundaries and weights.
            hasher.update(np.asarray([len(table), part.weight]).tobytes())
    if shuffled_captions is not None and result.kept:
        place = int((ids.texts == commonest).argmax())
        row = int(np.searchsorted(ids.starts, place, side="right")) - 1
        text = shuffled_captions[row][place - ids.starts[row]]
    sizes = np.unique(np.concatenate(groups), return_counts=True)[1]
    most = int(rows_of_text.max()), int(sizes.max(initial=0))
    result.repeats = Repeats(result.kept, result.texts, len(sizes), text or "", *most)
    result.fingerprint = hasher.hexdigest()
    return result


def _text_of(text_id: int, table: pa.Table) -> str | None:
    """The caption with this id, if these rows have it."""
    places = pc.index(pc.list_flatten(table["text_id"]), text_id).as_py()
    return None if places < 0 else pc.list_flatten(table["captions"])[places].as_py()


def first_seen(values: np.ndarray) -> np.ndarray:
    """Dense ids of values, in order of first appearance. int64 [n]."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _count(ids: np.ndarray) -> int:
    return int(ids.max()) + 1 if len(ids) else 0


def _shuffle(ids: RowIds, train: np.ndarray, settings: PrepareSettings, counts: Counter[str]) -> np.ndarray | None:
    """The row whose captions each row gets, int64 [kept], as the seed decides; None if nothing is shuffled."""
    if not settings.captions.shuffled:
        return None
    givers = np.arange(len(ids.images))
    rows = np.flatnonzero(train)
    random = generator("captions", settings.captions.shuffle_seed, 0)
    captions = [tuple(ids.texts[ids.starts[i] : ids.starts[i + 1]].tolist()) for i in rows]
    exchanged = exchange(captions, settings.captions.shuffled, random)
    for row, giver in exchanged.items():
        givers[rows[row]] = rows[giver]
    counts.update(chosen=len(exchanged), shuffled=int((givers != np.arange(len(givers))).sum()))
    return givers


def _captions_of(
    parts: list[Part], content: Place, duplicate: np.ndarray, digests: Digests, givers: np.ndarray
) -> list[list[str]]:
    """The captions of all kept rows; to be shuffled they must fit into memory."""
    captions: list[list[str]] = []
    offset = 0
    for part, rows in zip(parts, digests.rows_of_part, strict=True):
        texts_of_part = storage.read_table(rows_file(content, part), ["captions"], NOT_REJECTED)["captions"].to_pylist()
        reasons = duplicate[offset : offset + rows]
        captions += [texts for texts, reason in zip(texts_of_part, reasons, strict=True) if not reason]
        offset += rows
    return captions


def _split_off(table: pa.Table, duplicate: np.ndarray, settings: PrepareSettings) -> tuple[pa.Table, pa.Table]:
    """The kept rows, and the rejected ones with reason and detail. `duplicate`: the reasons of rows that had none, in order."""
    reasons = np.asarray(table["reason"].to_pylist(), dtype=object)
    details = np.asarray(table["detail"].to_pylist(), dtype=object)
    undecided = np.flatnonzero(table["reason"].is_null().to_numpy())
    reasons[undecided] = [reason or None for reason in duplicate]
    earlier = "an earlier or held-out row" if settings.splits == "source" else "an earlier row"
    details[undecided[duplicate != ""]] = f"{earlier} is the same"
    keep = np.asarray([reason is None for reason in reasons], dtype=bool)
    bad = pa.table(
        {
            "key": table["key"],
            "origin": table["origin"],
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array(details, pa.string()),
        }
    )
    return table.filter(pa.array(keep)), bad.filter(pa.array(~keep)).cast(REJECTED)


def _with_ids(
    table: pa.Table,
    sample_ids: np.ndarray,
    image_ids: np.ndarray,
    text_ids: pa.ListArray,
    label_names: list[str],
    counted: dict[str, Counter[str]],
) -> pa.Table:
    columns: dict[str, Any] = {
        "sample_id": pa.array(sample_ids),
        "image_id": pa.array(image_ids),
        "text_id": text_ids,
        **{name: table[name] for name in ("key", "group", "split", "captions")},
        **{name: table[name] for name in ("file", "start", "length", "column")},
    }
    labels = [json.loads(text) for text in table["labels"].to_pylist()]
    for name in label_names:
        values = [row.get(name) for row in labels]
        columns[f"label_{name}"] = pa.array(values, pa.string())
        counted.setdefault(name, Counter()).update(value for value in values if value is not None)
    return pa.table(columns)
