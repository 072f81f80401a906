"""Processing of one pair: captions, filters, the image. The result is a row that is kept, or a rejected one with its reason.

The result depends only on the pair and the settings, so it can be computed anywhere in the cluster, and repeated. What depends
on other rows (duplicates, ids) is decided in `assign_ids.py`, from the digests computed here.

Two images are equal if the source has the same encoded bytes for them; two SVGs, whose bytes describe a drawing, if they are
rendered to the same pixels. Both modes use this rule, so that equal ids mask the same pairs in either: mode index, which does
not decode training images, still reads each one for its digest.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from pipelines.dataset.images import BadImage, Opened, encode, is_svg, open_image, resize_shorter
from pipelines.dataset.prepared import split_of
from pipelines.io import child_process
from pipelines.io.image_bytes import read_locations
from pipelines.io.retry import shown
from pipelines.io.storage import Missing
from pipelines.prepare.captions import usable
from pipelines.prepare.config import PrepareSettings
from pipelines.sources.base import Pair, Rejected

ROW_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("origin", pa.string()),
        ("reason", pa.string()),  # null: to be kept
        ("detail", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("group", pa.string()),
        ("split", pa.string()),
        ("labels", pa.string()),  # JSON
        ("file", pa.string()),
        ("start", pa.int64()),
        ("length", pa.int64()),
        ("column", pa.string()),
        # Digests: equal values have equal digests.
        ("key_digest", pa.uint64()),
        ("image_digest", pa.uint64()),
        ("text_digest", pa.list_(pa.uint64())),
        ("content_digest", pa.uint64()),
        ("near_hash", pa.uint64()),  # perceptual hash, if near duplicates are to be removed
    ]
)
# Left out on request: counted and listed, but not a sign of broken data.
FILTERED = frozenset(
    (
        "too_small",
        "aspect_ratio",
        "too_few_words",
        "language",
        "duplicate_pair",
        "duplicate_image",
        "near_duplicate",
        "unknown_file",  # in folders, which may contain other files besides images
        # Of sets of icons, what nobody asked for.
        "licence",
        "hidden",
        "alias",
        "animated",
    )
)
# Rows whose image does not exist.
NOT_FOUND = frozenset(("missing_image",))
_AHEAD = 512  # pairs whose images are fetched together
_REDUCING = 3  # a JPEG may be decoded at a reduced size, but at least this many times the stored size


@dataclass(frozen=True)
class Row:
    """A row of `ROW_SCHEMA`, and the encoded image if it is to be written."""

    columns: dict[str, Any]
    image: bytes | None = None


def curate(pairs: Iterable[Pair | Rejected], settings: PrepareSettings) -> Iterator[Row]:
    """A row for every pair or rejected row, in order."""
    pairs = iter(pairs)
    while chunk := list(islice(pairs, 1 if child_process.again() else _AHEAD)):
        items = [_check_captions(pair, settings) for pair in chunk]
        fetched = read_locations(
            [item.pair.location for item in items if isinstance(item, _Candidate) and item.pair.image is None]
        )
        for item in items:
            if isinstance(item, Rejected):
                yield rejected(item)
                continue
            child_process.begin((item.pair.key, item.pair.origin))
            data = next(fetched) if item.pair.image is None else item.pair.image
            with child_process.limited():
                row = _check_image(item, data, settings)
            yield row


@dataclass(frozen=True)
class _Candidate:
    """A pair whose captions can be used."""

    pair: Pair
    split: str
    is_decoded: bool


def _check_captions(pair: Pair | Rejected, settings: PrepareSettings) -> "_Candidate | Rejected":
    if isinstance(pair, Pair):
        pair = usable(pair, settings.captions)
    if isinstance(pair, Rejected):
        return pair
    filters = settings.filters
    fewest = min(len(caption.split()) for caption in pair.captions)
    if filters.min_words is not None and fewest < filters.min_words:
        return Rejected(pair.key, pair.origin, "too_few_words", f"{fewest} words")
    if filters.languages is not None:
        for caption in pair.captions:
            language = _language(caption)
            if language not in filters.languages:
                return Rejected(pair.key, pair.origin, "language", language)
    split = pair.split if settings.splits == "source" else split_of(pair.group, settings.splits, settings.split_seed)
    needs_pixels = (
        filters.min_side or filters.max_aspect or settings.deduplicate.exact != "none" or settings.deduplicate.near is not None
    )
    decoded = settings.mode == "copy" or settings.verify == "all" or split != "train" or bool(needs_pixels)
    return _Candidate(pair, split, decoded)


def _check_image(item: _Candidate, data: bytes | Missing, settings: PrepareSettings) -> Row:
    pair = item.pair
    if isinstance(data, Missing):
        return rejected(Rejected(pair.key, pair.origin, data.reason or "missing_image", str(data)))
    if not item.is_decoded and not is_svg(data):
        return Row(_kept(item, data, data, None))
    try:
        opened = open_image(data, settings.image.background, svg_size=settings.image.size)
        filtered = _filtered_by_size(opened.size, settings)
        if filtered is not None:
            return rejected(Rejected(pair.key, pair.origin, *filtered))
        scale = settings.image.size / min(opened.size)
        least = tuple(round(_REDUCING * side * scale) for side in opened.size)
        # Reduced even if nothing is written, so that both modes compute perceptual hashes from the same pixels.
        image = opened.rgb((least[0], least[1])) if scale < 1 else opened.rgb()
        is_drawing = opened.format == "SVG"
        stays = settings.mode == "index" or _stays(opened, settings)
        encoded = data if stays and not is_drawing else _encoded(image, settings)
    except BadImage as bad:
        return rejected(Rejected(pair.key, pair.origin, bad.reason, bad.detail))
    except MemoryError:  # of resizing and encoding
        return rejected(Rejected(pair.key, pair.origin, "decompression_bomb", "not enough memory"))
    near = _perceptual_hash(image) if settings.deduplicate.near is not None else None
    copied = settings.mode == "copy"
    return Row(_kept(item, encoded if is_drawing else data, encoded if copied else data, near), encoded if copied else None)


def _filtered_by_size(size: tuple[int, int], settings: PrepareSettings) -> tuple[str, str] | None:
    """(reason, detail) if a filter leaves images of this size out."""
    filters, (width, height) = settings.filters, size
    if filters.min_side is not None and min(size) < filters.min_side:
        return "too_small", f"{width} x {height} pixels"
    if filters.max_aspect is not None and max(size) > filters.max_aspect * min(size):
        return "aspect_ratio", f"{width} x {height} pixels"
    return None


def _stays(opened: Opened, settings: PrepareSettings) -> bool:
    """Whether the bytes can be written as they are; re-encoding would only lose quality."""
    return opened.plain and opened.format == settings.image.format.upper() and min(opened.size) <= settings.image.size


def _encoded(image: Any, settings: PrepareSettings) -> bytes:
    return encode(resize_shorter(image, settings.image.size), settings.image.format, settings.image.quality)


def rejected(row: Rejected) -> Row:
    """The row of an unusable pair."""
    texts = {"key": row.key, "origin": row.origin, "detail": row.detail}
    return Row({name: shown(text) for name, text in texts.items()} | {"reason": row.reason})


def _kept(item: _Candidate, identity: bytes, kept: bytes, near: int | None) -> dict[str, Any]:
    """The row's columns. `identity`: bytes that are equal for equal images; `kept`: the bytes that the dataset has."""
    pair, location = item.pair, item.pair.location
    labels = json.dumps(pair.labels, sort_keys=True, ensure_ascii=False)
    content = json.dumps([pair.key, _digest64(kept), pair.captions, labels, pair.group, item.split], ensure_ascii=False)
    return {
        "key": pair.key,
        "origin": pair.origin,
        "captions": pair.captions,
        "group": pair.group,
        "split": item.split,
        "labels": labels,
        "file": location.file,
        "start": location.start,
        "length": location.length,
        "column": location.column,
        "key_digest": _digest64(pair.key),
        "image_digest": _digest64(identity),
        "text_digest": [_digest64(caption) for caption in pair.captions],
        "content_digest": _digest64(content),
        "near_hash": near,
    }


def _digest64(value: str | bytes) -> int:
    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _perceptual_hash(image: Any) -> int:
    """64 bits of the image's low frequencies (imagehash.phash)."""
    import imagehash

    bits = imagehash.phash(image).hash.ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def _language(caption: str) -> str:
    import py3langid  # loads its model on the first call

    return py3langid.classify(caption)[0]
