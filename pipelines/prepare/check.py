"""`python -m pipelines CONFIG.yaml --check`: reports within a minute what preparing would find, and writes nothing.

The headers of up to 200 units are read (members of tars, footers and captions of tables), and a sample of their images is
decoded by the same code that preparing uses. Shares of the sample are given with their 95 % interval.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from pipelines.dataset.images import BadImage, open_image
from pipelines.dataset.prepared import split_of
from pipelines.io import child_process
from pipelines.io.image_bytes import read_locations
from pipelines.io.retry import shown
from pipelines.io.storage import Missing
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.curate import FILTERED, curate
from pipelines.prepare.repeated_captions import Repeats, quoted
from pipelines.prepare.shards import list_units
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings_base import digest
from pipelines.program.wilson import wilson
from pipelines.sources.base import Pair, Rejected, Unit, file_of, with_utf8_names

_UNITS = 200  # units whose headers are read
_IMAGES = 2000  # images that are decoded, over all units
_COMMON = 5  # most common captions of a unit, as candidates for the overall one
_EXAMPLES = 5  # pairs that are printed


def check(settings: PrepareSettings, display: Display) -> bool:
    """Print a report; returns whether preparing would succeed. Raises `UserError` for an empty source."""
    units = list_units(settings)
    if not units:
        raise UserError("source", f"{settings.source.title()} has no rows", "check the source's keys")
    cluster.start(display.verbose)
    sample = _spread(units, _UNITS)
    scans: list[dict[str, Any]] = []
    with display.task(f"check {settings.source.title()}", len(sample)) as task:
        for scan in _scan(sample, settings):
            scans.append(scan)
            task.update(len(scans))
    source_splits = Counter(chain.from_iterable(unit.splits or () for unit in units))
    return _report(scans, len(units), sum(unit.absent for unit in units), source_splits, settings, display)


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """Up to `count` items, evenly spaced."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def _scan(units: list[Unit], settings: PrepareSettings) -> Iterator[dict[str, Any]]:
    """Scan each unit in the cluster."""
    import ray.data

    per_unit = -(-_IMAGES // len(units))

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        return {"scan": [json.dumps(scan_unit(json.loads(batch["unit"][0]), per_unit, settings))]}

    items = [{"unit": json.dumps(unit.data)} for unit in units]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        cluster.errors_as_blocks(work), batch_size=1, max_retries=cluster.RETRIES, label_selector=settings.node_labels or None
    )
    for block in cluster.blocks(dataset, task=cluster.ONE_CPU._replace(labels=settings.node_labels)):
        yield json.loads(block["scan"][0])


def scan_unit(
    data: Any, images: int, settings: PrepareSettings, limits: child_process.Limits = child_process.LIMITS
) -> dict[str, Any]:
    """Read the headers of all rows of a unit and decode some of its images, in a child process as in preparing."""
    scan: dict[str, Any] = {"rows": 0, "header_reasons": Counter(), "examples": {}, "words": [], "keys": []}
    samples: list[_Sample] = []
    for item in child_process.each(partial(_scan_items, data, images, settings), limits):
        if isinstance(item, dict):
            scan |= item
        elif isinstance(item, _Sample):
            samples.append(item)
        elif item.about is not None:
            samples.append(_Sample({"reason": item.reason, "origin": item.about[1]}))
        else:
            scan["rows"] += 1
            scan["header_reasons"]["unreadable_file"] += 1
            scan["examples"]["unreadable_file"] = shown(file_of(data))
    seen = [sample.columns for sample in samples]
    return scan | {
        "examples": scan["examples"] | {row["reason"]: row["origin"] for row in seen if row.get("reason") is not None},
        "sampled": len(seen),
        "sample_reasons": Counter(row["reason"] for row in seen if row.get("reason") is not None),
        "formats": Counter(sample.format for sample in samples if sample.format),
        "sides": [sample.side for sample in samples if sample.format],
        "digests": [row["image_digest"] for row in seen if row.get("reason") is None],
    }


@dataclass(frozen=True)
class _Sample:
    """A row of `curate.ROW_SCHEMA`; for a usable image also its format and shorter side."""

    columns: dict[str, Any]
    format: str = ""
    side: int = 0


def _scan_items(data: Any, images: int, settings: PrepareSettings, first: int) -> Iterator[dict[str, Any] | _Sample]:
    """The summary of the headers, then the samples; begins with item number `first`."""
    try:
        every_row = with_utf8_names(settings.source.read(data, images=False))
        # There are thousands of rows, so images are dropped here; those of the sample are read again.
        rows = [replace(row, image=None) if isinstance(row, Pair) else row for row in every_row]
    except UserError:  # a source of which single images cannot be read
        rows = list(with_utf8_names(settings.source.read(data, images=True)))
    pairs = [row for row in rows if isinstance(row, Pair)]
    decode_all = settings.model_copy(update={"mode": "copy"})
    sample = _spread(pairs, images) if pairs else []
    words = [len(caption.split()) for pair in pairs for caption in pair.captions]
    if first == 0:
        yield {
            "rows": len(rows),
            "header_reasons": Counter(row.reason for row in rows if isinstance(row, Rejected)),
            "examples": {row.reason: shown(row.origin) for row in rows if isinstance(row, Rejected)},
            "words": words[:: max(1, len(words) // 500)],
            "keys": [row.key for row in pairs],
            "captions": _caption_counts(pairs, settings),
        }
    sample = sample[max(0, first - 1) :]
    for pair, row in zip(sample, curate(sample, decode_all), strict=True):
        yield _sample(pair, row.columns, settings)


def _sample(pair: Pair, columns: dict[str, Any], settings: PrepareSettings) -> _Sample:
    if columns.get("reason") is not None:
        return _Sample(columns)
    image = pair.image if pair.image is not None else next(read_locations([pair.location]))
    try:
        assert not isinstance(image, Missing)
        with child_process.limited():
            opened = open_image(image, svg_size=settings.image.size)
    except (BadImage, AssertionError):
        return _Sample(columns)
    return _Sample(columns, opened.format, min(opened.size))


def _caption_counts(pairs: Sequence[Pair], settings: PrepareSettings) -> dict[str, Any]:
    """How often captions, groups and splits occur in these pairs, by digest; and some examples."""
    texts = Counter(caption for pair in pairs for caption in set(pair.captions))
    splits: Counter[str] = Counter()
    if settings.splits != "source":
        splits.update(split_of(pair.group, settings.splits, settings.split_seed) for pair in pairs)
    return {
        "captions": {digest(text): count for text, count in texts.items()},
        "commonest": {digest(text): text for text, _ in texts.most_common(_COMMON)},
        "groups": Counter(digest(pair.group) for pair in pairs),
        "splits": splits,
        "examples": [[shown(pair.origin), pair.captions[0]] for pair in _spread(pairs, 1 if len(pairs) == 1 else 2)]
        if pairs
        else [],
    }


def _repeats(scans: list[dict[str, Any]]) -> Repeats:
    """Repetition over all scanned units."""
    captions, groups, texts = Counter[str](), Counter[str](), dict[str, str]()
    for counts in [scan["captions"] for scan in scans if "captions" in scan]:
        captions.update(counts["captions"])
        groups.update(counts["groups"])
        texts |= counts["commonest"]
    # A caption that is rare in every unit cannot have many rows.
    commonest = max(texts, key=lambda key: captions[key], default="")
    rows, largest = sum(groups.values()), max(groups.values(), default=0)
    return Repeats(rows, len(captions), len(groups), texts.get(commonest, ""), captions[commonest], largest)


def _weighted_share(scans: list[dict[str, Any]], kind: str, name: str, whole: bool) -> tuple[float, float, float]:
    """Estimated share of all pairs that are `name` in the counter `kind`, with the ends of its 95 % interval.

    Units are weighted by their pairs. The interval is Wilson's for the effective sample size, the number of independent draws
    with the variance of the weighted mean (Kish, Survey Sampling, 1965), with the finite population correction.

    Args:
        whole: whether every unit was sampled.
    """
    units = [(len(scan["keys"]), scan["sampled"], scan[kind].get(name, 0)) for scan in scans if scan["sampled"]]
    total = sum(pairs for pairs, _, _ in units)
    share = sum(pairs / total * count / sampled for pairs, sampled, count in units)
    spread = sum((pairs / total) ** 2 * (1 - whole * sampled / pairs) / sampled for pairs, sampled, _ in units)
    return (share, *(wilson(share / spread, 1 / spread) if spread > 1e-12 else (share, share)))


def _report(
    scans: list[dict[str, Any]],
    units: int,
    absent: int,
    source_splits: Counter[str],
    settings: PrepareSettings,
    display: Display,
) -> bool:
    """Print the result; `source_splits`: rows of the source's own splits."""
    rows = sum(scan["rows"] for scan in scans)
    sampled = sum(scan["sampled"] for scan in scans)
    headers, images = Counter[str](), Counter[str]()
    formats = Counter[str]()
    examples: dict[str, str] = {}
    for scan in scans:
        headers.update(scan["header_reasons"])
        images.update(scan["sample_reasons"])
        formats.update(scan["formats"])
        examples = scan["examples"] | examples
    keys = Counter(chain.from_iterable(scan["keys"] for scan in scans))
    repeated = [key for key, count in keys.items() if count > 1]
    digests = list(chain.from_iterable(scan["digests"] for scan in scans))
    display.line(
        f"{settings.source.title()}: {len(scans):,} of {units:,} units scanned, {rows:,} rows, {sampled:,} images decoded"
    )
    if absent:
        display.line(f"{absent:,} more rows were listed but not downloaded")
    table = [
        [reason, "headers", f"{count:,}", f"{count / rows:.2%}", examples[reason]] for reason, count in headers.most_common()
    ]
    shares = [0.0]
    for reason, count in images.most_common():
        share, low, high = _weighted_share(scans, "sample_reasons", reason, len(scans) == units)
        shares.append(share * (reason not in FILTERED))
        interval = f"{share:.2%}" if low == high else f"{low:.2%} to {high:.2%}"
        table.append([reason, "images", f"{count:,}", interval, examples[reason]])
    if repeated:
        table.append(["duplicate_key", "headers", f"{len(repeated):,}", f"{len(repeated) / rows:.2%}", repeated[0]])
    if table:
        display.table("would be left out", ["reason", "seen in", "rows", "share", "example"], table)
    same = len(digests) - len(set(digests))
    kinds = {name: _weighted_share(scans, "formats", name, True)[0] for name in formats}
    repeats, splits = _repeats(scans), _splits(scans, source_splits, settings)
    described = [
        ["shorter side, pixels", _quantiles(scans, "sides")],
        ["words per caption", _quantiles(scans, "words")],
        [
            "formats",
            ", ".join(f"{name} {kinds[name] / max(1e-12, sum(kinds.values())):.0%}" for name, _ in formats.most_common())
            or "none",
        ],
        ["duplicate images", f"{same:,} of {len(digests):,}"],
        ["different captions", f"{repeats.captions:,} of {repeats.rows:,} rows"],
        ["groups, each in one split", f"{repeats.groups:,}"],
        ["splits of the scanned rows", ", ".join(f"{name} {count:,}" for name, count in splits.items())],
    ]
    display.table("contents (lengths: quantiles 5 %, 50 %, 95 %)", ["", ""], described)
    for origin, caption in _spread(
        list(chain.from_iterable(scan["captions"]["examples"] for scan in scans if "captions" in scan)), _EXAMPLES
    ):
        display.line(f"for example {origin}: {quoted(caption)}")
    for warning in repeats.warnings(splits, {} if settings.splits == "source" else settings.splits):
        display.line(f"warning: {warning}")
    unusable = sum(count for reason, count in headers.items() if reason not in FILTERED)
    rate = (unusable + len(repeated)) / max(1, rows)
    rate += (1 - rate) * sum(shares)
    succeeds = rows > 0 and rate <= settings.max_rejected_rate
    verdict = "within" if succeeds else "more than"
    display.line(f"unusable: about {rate:.1%} of the rows, {verdict} max_rejected_rate={settings.max_rejected_rate:g}")
    return succeeds


def _splits(scans: list[dict[str, Any]], source_splits: Counter[str], settings: PrepareSettings) -> dict[str, int]:
    """Rows of every split."""
    if settings.splits == "source":
        return {name: source_splits[name] for name in sorted(source_splits) if name}
    counts = Counter[str]()
    for scan in scans:
        counts.update(scan.get("captions", {}).get("splits", {}))
    return {name: counts[name] for name in ("train", *sorted(settings.splits))}


def _quantiles(scans: list[dict[str, Any]], name: str) -> str:
    """Quantiles of sampled values; those of a unit together have the weight of all its pairs."""
    units = [(scan[name], len(scan["keys"]) / len(scan[name])) for scan in scans if scan[name]]
    if not units:
        return "none"
    values = np.concatenate([values for values, _ in units])
    weights = np.concatenate([np.full(len(values), weight) for values, weight in units])
    return ", ".join(f"{value:g}" for value in np.quantile(values, (0.05, 0.5, 0.95), method="inverted_cdf", weights=weights))
