"""`python -m pipelines CONFIG.yaml --check`: what preparing would meet, told in a minute and without writing anything.

The headers of up to some hundred units are read (members of tars, footers and captions of tables), and a sample of their
pictures is decoded by the same code that preparing uses. Shares of the sample come with their 95 % interval.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from pipelines import apart, cluster
from pipelines.config import PrepareSettings
from pipelines.display import Display
from pipelines.examine import FILTERED, examine
from pipelines.images import BadImage, open_picture
from pipelines.locations import read_locations
from pipelines.parts import list_units
from pipelines.remote import shown
from pipelines.settings import UserError
from pipelines.sources.base import Pair, Rejected, Unit, file_of, with_names
from pipelines.storage import Missing
from pipelines.wilson import wilson

_UNITS = 200  # whose headers are read
_PICTURES = 2000  # that are decoded, over all units


def check(settings: PrepareSettings, display: Display) -> bool:
    """Print tables; whether preparing would do. Raises `UserError` for an empty source."""
    units = list_units(settings)
    if not units:
        raise UserError(f"source: nothing to read for {settings.source.title()}; check the source's keys")
    cluster.start(display.verbose)
    some = _spread(units, _UNITS)
    found: list[dict[str, Any]] = []
    with display.task(f"check {settings.source.title()}", len(some)) as task:
        for one in _scan(some, settings):
            found.append(one)
            task.update(len(found))
    return _tell(found, len(units), sum(unit.absent for unit in units), settings, display)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` items, evenly spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _scan(units: list[Unit], settings: PrepareSettings) -> Iterator[dict[str, Any]]:
    """What was found in each unit, from the cluster."""
    import ray.data

    per_unit = -(-_PICTURES // len(units))

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        return {"found": [json.dumps(scan_unit(json.loads(batch["unit"][0]), per_unit, settings))]}

    items = [{"unit": json.dumps(unit.data)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        cluster.telling(work), batch_size=1, max_retries=cluster.RETRIES
    )
    for block in cluster.blocks(dataset):
        yield json.loads(block["found"][0])


def scan_unit(data: Any, pictures: int, settings: PrepareSettings, limits: apart.Limits = apart.LIMITS) -> dict[str, Any]:
    """Headers of all rows of a unit, and so many of its pictures decoded, apart from this process as in preparing."""
    found: dict[str, Any] = {"rows": 0, "header_reasons": Counter(), "examples": {}, "words": [], "keys": []}
    samples: list[_Sample] = []
    for item in apart.each(partial(_looked_at, data, pictures, settings), limits):
        if isinstance(item, dict):
            found |= item
        elif isinstance(item, _Sample):
            samples.append(item)
        elif item.about is not None:
            samples.append(_Sample({"reason": item.reason, "origin": item.about[1]}))
        else:
            found["rows"] += 1
            found["header_reasons"]["unreadable_file"] += 1
            found["examples"]["unreadable_file"] = shown(file_of(data))
    seen = [sample.columns for sample in samples]
    return found | {
        "examples": found["examples"] | {row["reason"]: row["origin"] for row in seen if row.get("reason") is not None},
        "sampled": len(seen),
        "sample_reasons": Counter(row["reason"] for row in seen if row.get("reason") is not None),
        "formats": Counter(sample.format for sample in samples if sample.format),
        "sides": [sample.side for sample in samples if sample.format],
        "digests": [row["image_digest"] for row in seen if row.get("reason") is None],
    }


@dataclass(frozen=True)
class _Sample:
    """A row of `examine.FOUND`, and of an image that can be used its format and shorter side."""

    columns: dict[str, Any]
    format: str = ""
    side: int = 0


def _looked_at(data: Any, pictures: int, settings: PrepareSettings, first: int) -> Iterator[dict[str, Any] | _Sample]:
    """What the headers say, and then the samples; from one of these items on."""
    try:
        found = with_names(settings.source.read(data, pictures=False))
        # Thousands at once; those of the sample are read again.
        rows = [replace(row, image=None) if isinstance(row, Pair) else row for row in found]
    except UserError:  # it can only be copied
        rows = list(with_names(settings.source.read(data, pictures=True)))
    pairs = [row for row in rows if isinstance(row, Pair)]
    every = settings.model_copy(update={"way": "copy"})
    sample = _spread(pairs, pictures) if pairs else []
    words = [len(caption.split()) for pair in pairs for caption in pair.captions]
    if first == 0:
        yield {
            "rows": len(rows),
            "header_reasons": Counter(row.reason for row in rows if isinstance(row, Rejected)),
            "examples": {row.reason: shown(row.origin) for row in rows if isinstance(row, Rejected)},
            "words": words[:: max(1, len(words) // 500)],
            "keys": [row.key for row in pairs],
        }
    sample = sample[max(0, first - 1) :]
    for pair, row in zip(sample, examine(sample, every), strict=True):
        yield _sample(pair, row.columns, settings)


def _sample(pair: Pair, columns: dict[str, Any], settings: PrepareSettings) -> _Sample:
    if columns.get("reason") is not None:
        return _Sample(columns)
    image = pair.image if pair.image is not None else next(read_locations([pair.location]))
    try:
        assert not isinstance(image, Missing)
        with apart.limited():
            opened = open_picture(image, svg_size=settings.image.size)
    except (BadImage, AssertionError):
        return _Sample(columns)
    return _Sample(columns, opened.format, min(opened.size))


def _tell(found: list[dict[str, Any]], units: int, absent: int, settings: PrepareSettings, display: Display) -> bool:
    rows = sum(one["rows"] for one in found)
    sampled = sum(one["sampled"] for one in found)
    headers, pictures = Counter[str](), Counter[str]()
    formats = Counter[str]()
    examples: dict[str, str] = {}
    for one in found:
        headers.update(one["header_reasons"])
        pictures.update(one["sample_reasons"])
        formats.update(one["formats"])
        examples = one["examples"] | examples
    keys = Counter(chain.from_iterable(one["keys"] for one in found))
    twice = [key for key, count in keys.items() if count > 1]
    digests = list(chain.from_iterable(one["digests"] for one in found))
    display.line(
        f"{settings.source.title()}: {len(found):,} of {units:,} units scanned, {rows:,} rows, {sampled:,} pictures decoded"
    )
    if absent:
        display.line(f"{absent:,} more rows were listed and never fetched")
    table = [
        [reason, "headers", f"{count:,}", f"{count / rows:.2%}", examples[reason]] for reason, count in headers.most_common()
    ]
    for reason, count in pictures.most_common():
        low, high = wilson(count, sampled)
        table.append([reason, "pictures", f"{count:,}", f"{low:.2%} to {high:.2%}", examples[reason]])
    if twice:
        table.append(["duplicate_key", "headers", f"{len(twice):,}", f"{len(twice) / rows:.2%}", twice[0]])
    if table:
        display.table("would be left out", ["reason", "seen in", "rows", "share", "for example"], table)
    same = len(digests) - len(set(digests))
    described = [
        ["shorter side, pixels", _quantiles(list(chain.from_iterable(one["sides"] for one in found)))],
        ["words of a caption", _quantiles(list(chain.from_iterable(one["words"] for one in found)))],
        [
            "formats",
            ", ".join(f"{name} {count / max(1, formats.total()):.0%}" for name, count in formats.most_common()) or "none",
        ],
        ["pictures equal to an earlier one", f"{same:,} of {len(digests):,}"],
    ]
    display.table("what is there (of lengths: 5 %, half, 95 %)", ["", ""], described)
    rate = (sum(headers.values()) + len(twice)) / max(1, rows)
    bad = sum(count for reason, count in pictures.items() if reason not in FILTERED)
    rate += (1 - rate) * bad / max(1, sampled)
    fine = rows > 0 and rate <= settings.max_rejected_rate
    verdict = "within" if fine else "more than"
    display.line(f"unusable: about {rate:.1%} of the rows, {verdict} max_rejected_rate={settings.max_rejected_rate:g}")
    return fine


def _quantiles(values: list[int]) -> str:
    return ", ".join(f"{value:g}" for value in np.quantile(values, (0.05, 0.5, 0.95), method="nearest")) if values else "none"
