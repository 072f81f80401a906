"""Turns a source into a prepared dataset: reads parts in the cluster, assigns ids on the driver, and writes the manifest.

    OUTPUT/content-RECIPE/00012.tar, 00012.parquet     images (mode copy) and light columns of each shard
    OUTPUT/rejected.parquet                            every row that was left out, and why
    OUTPUT/manifest.json                               written last; a folder without it is not a dataset

The content folder is named after the recipe (config and source listing), so that a killed program resumes with the missing
parts, and an existing dataset stays intact until the new one replaces it.
"""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.dataset.prepared import FORMAT_VERSION, MANIFEST, Prepared
from pipelines.io import storage
from pipelines.io.retry import shown_tree
from pipelines.prepare.assign_ids import Totals, assign_ids
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.curate import FILTERED, NOT_FOUND
from pipelines.prepare.repeated_captions import warnings_of
from pipelines.prepare.shards import Part, counts_of, cut, list_units, read_parts, rows_file
from pipelines.program import cluster, interrupts, path_keys
from pipelines.program.code_version import code_version
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.settings import difference
from pipelines.program.settings_base import digest
from pipelines.sources.base import Unit

REJECTED_FILE = "rejected.parquet"
# Files that preparing writes: if it is killed, any of them may exist without a manifest.
_OURS = re.compile(r"content-[0-9a-f]{12}/|rejected\.parquet|manifest\.json\.partial-")
_ENOUGH = 1000  # rows from which the rejected rate is meaningful


def prepare(settings: PrepareSettings, display: Display) -> Prepared:
    """Prepare the dataset, or resume, or open it if it is done. Raises `UserError` for an empty source or too many bad rows."""
    units = list_units(settings)
    if not units or all(unit.rows == 0 for unit in units):
        raise UserError("source", f"{settings.source.title()} has no rows", "check the source's keys")
    listing = [unit.data if unit.splits is None else [unit.data, unit.splits] for unit in units]
    recipe = digest({"config": settings.recipe(), "listing": listing, "format": FORMAT_VERSION})
    done = _prepared_before(settings, recipe)
    if done is not None:
        display.line(f"{settings.output}: already prepared by this config from this source, {summary(done)}")
        _warn(done, display)
        return done
    start = time.monotonic()
    content = storage.join(settings.output, f"content-{recipe[:12]}")
    parts = cut(units, settings.shard_rows)
    counts = _read(parts, content, settings, display)
    if counts.kept == 0:
        problem = f"none of {counts.read} rows is usable ({counts.table()}{_example(parts, content)})"
        raise UserError("source", problem, "check the source's keys and files")
    totals = assign_ids(parts, content, settings, storage.join(settings.output, REJECTED_FILE))
    counts.reasons = totals.reasons
    _check_rate(counts, parts, content, settings, last=True)
    manifest = _manifest(settings, recipe, units, counts, totals)
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    if _fingerprint(settings.output) != totals.fingerprint:
        storage.delete(storage.join(settings.output, "features"))  # features of the content that is replaced
    with storage.written(storage.join(settings.output, MANIFEST)) as path:
        path.write_text(text, encoding="utf-8")
    _tidy(settings.output, content)
    prepared = Prepared.open(settings.output)
    display.line(f"{settings.output}: prepared in {time.monotonic() - start:.0f} s, {summary(prepared)}")
    if totals.reasons:
        rows = [[reason, f"{count:,}"] for reason, count in totals.reasons.most_common()]
        display.table(f"left out, listed in {storage.join(settings.output, REJECTED_FILE)}", ["reason", "rows"], rows)
    _warn(prepared, display)
    return prepared


def _warn(prepared: Prepared, display: Display) -> None:
    for warning in warnings_of(prepared.manifest):
        display.line(f"warning: {warning}")


def summary(prepared: Prepared) -> str:
    """One clause about a prepared dataset."""
    splits = ", ".join(f"{name} {count:,}" for name, count in prepared.manifest["splits"].items())
    kept = f"{coverage(prepared.manifest)} ({splits})"
    if prepared.manifest["config"]["captions"]["shuffled"]:
        kept += f", captions of {prepared.shuffled:,} rows shuffled"
    return f"{kept}, fingerprint {prepared.fingerprint[:12]}"


def coverage(manifest: dict[str, Any]) -> str:
    """How many of the listed rows are kept: "901 of 1,000 rows kept", and how many were found if some were not."""
    counts = manifest["counts"]
    text = f"{counts['kept']:,} of {counts['listed']:,} rows kept"
    return text if counts["found"] == counts["listed"] else f"{text}, {counts['found']:,} found"


class _Counts:
    """Row counts of all parts that are done."""

    def __init__(self) -> None:
        self.read = 0
        self.reasons: Counter[str] = Counter()

    @property
    def kept(self) -> int:
        return self.read - self.reasons.total()

    @property
    def unusable(self) -> int:
        """Rejected rows that were not left out on request."""
        return sum(count for reason, count in self.reasons.items() if reason not in FILTERED)

    def add(self, rows: int, reasons: Counter[str]) -> None:
        self.read += rows
        self.reasons += reasons

    def table(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.reasons.most_common()) or "none"


def _read(parts: list[Part], content: Place, settings: PrepareSettings, display: Display) -> _Counts:
    """Read the parts that are not done yet. Raises `UserError` as soon as too many rows are unusable."""
    counts, done = _Counts(), _done(parts, content)
    for part in done:
        counts.add(*counts_of(content, part))
    written = {part.index for part in done}
    missing = [part for part in parts if part.index not in written]
    if done or storage.files_below(content):  # a start that was killed in its first part left nothing to resume from
        display.line(f"{settings.output}: resuming, {len(done)} of {len(parts)} parts are done")
    _check_rate(counts, parts, content, settings, last=not missing)
    if not missing:
        return counts
    cluster.start(display.verbose)
    row_counts = [part.rows for part in parts if part.rows is not None]
    total = sum(row_counts) if len(row_counts) == len(parts) else None
    with (
        display.task(f"prepare {settings.source.title()}", total or len(parts)) as task,
        # Parts count once they are written, which may be before they are reported here.
        interrupts.keeping(lambda: f"{len(_done(parts, content))} of {len(parts)} parts are kept"),
    ):
        for finished, (rows, reasons) in enumerate(read_parts(missing, content, settings), len(done) + 1):
            counts.add(rows, reasons)
            note = f"{counts.reasons.total():,} left out"
            task.update(counts.read if total else finished, note if total else f"parts, {counts.read:,} rows, {note}")
            _check_rate(counts, parts, content, settings, last=finished == len(parts))
    return counts


def _check_rate(counts: _Counts, parts: list[Part], content: Place, settings: PrepareSettings, last: bool) -> None:
    if (counts.read < _ENOUGH and not last) or counts.kept == 0 or counts.unusable <= settings.max_rejected_rate * counts.read:
        return
    problem = (
        f"{counts.unusable} of {counts.read} rows are unusable, more than {settings.max_rejected_rate:.0%} "
        f"({counts.table()}{_example(parts, content)})"
    )
    rate = min(1.0, counts.unusable / counts.read + 0.01)
    raise UserError("max_rejected_rate", problem, f"repair the source, or pass max_rejected_rate={rate:.2f}")


def _example(parts: list[Part], content: Place) -> str:
    """A clause about the first rejected row; empty if there is none."""
    for row in _rejected_rows(parts, content):
        return f"; the first: {row['origin']}: {row['detail']}"
    return ""


def _rejected_rows(parts: list[Part], content: Place) -> Iterator[dict[str, Any]]:
    for part in _done(parts, content):
        rows = storage.read_table(rows_file(content, part), ["origin", "reason", "detail"]).to_pylist()
        yield from (row for row in rows if row["reason"] is not None and row["reason"] not in FILTERED)


def _done(parts: Sequence[Part], content: Place) -> list[Part]:
    """The parts that are written, in order."""
    names = {storage.name_of(file.path) for file in storage.files_below(content)}
    return [part for part in parts if storage.name_of(rows_file(content, part)) in names]


def _prepared_before(settings: PrepareSettings, recipe: str) -> Prepared | None:
    output = settings.output
    path_keys.check_folder(output, "output")
    if not storage.exists(storage.join(output, MANIFEST)):
        foreign = [name for name in _names_below(output) if not _OURS.match(name)]
        if foreign and not settings.overwrite:
            problem = f"{output} is neither empty nor a prepared dataset: it has {foreign[0]}"
            raise UserError("output", problem, "choose another output, or pass overwrite=true")
        return None
    try:
        prepared = Prepared.open(output)
    except UserError:
        if settings.overwrite:
            return None
        raise
    if prepared.manifest["recipe"] == recipe:
        return prepared
    if settings.overwrite:
        return None
    changed = difference(prepared.manifest["config"], shown_tree(settings.recipe()))
    difference_text = "; ".join(changed[:3]) if changed else "the source's files changed"
    problem = f"{output} was prepared differently ({difference_text})"
    raise UserError("output", problem, "choose another output, or pass overwrite=true")


def _fingerprint(output: Place) -> str | None:
    """The fingerprint of the dataset to be replaced; None if there is none that this version can read."""
    try:
        return Prepared.open(output).fingerprint
    except UserError:
        return None


def _tidy(output: Place, content: Place) -> None:
    """Delete what the dataset does not need: intermediate rows, unfinished files of a killed run, and other recipes' content."""
    current = storage.name_of(content)
    names = [name for name in _names_below(output) if _OURS.match(name)]
    for folder in {name.split("/")[0] for name in names if "/" in name} - {current}:
        storage.delete(storage.join(output, folder))
    for name in names:
        if name.split("/")[0] in (current, name) and (name.endswith(".found.parquet") or ".partial-" in name):
            storage.delete(storage.join(output, *name.split("/")))


def _names_below(output: Place) -> list[str]:
    """Files below a folder, as paths relative to it."""
    return [file.path[len(str(output)) :].lstrip("/") for file in storage.files_below(output)]


def _manifest(settings: PrepareSettings, recipe: str, units: list[Unit], counts: _Counts, totals: Totals) -> dict[str, Any]:
    absent = sum(unit.absent for unit in units)
    lost = sum(totals.reasons[reason] for reason in NOT_FOUND)
    shares = settings.splits
    if shares == "source":
        held_out = {split for unit in units for split in unit.splits or ()} - {"train", ""}
        shares = {name: totals.splits[name] / totals.kept for name in sorted(held_out)}
    return {
        "format_version": FORMAT_VERSION,
        "name": settings.source.title(),
        "mode": settings.mode,
        "tables": totals.tables,
        "num_samples": totals.kept,
        "num_images": totals.images,
        "num_texts": totals.texts,
        "splits": {name: totals.splits[name] for name in ["train", *sorted(shares)]},
        "split_shares": shares,
        "labels": {name: dict(sorted(values.items())) for name, values in totals.labels.items()},
        "image": {"size": settings.image.size, "format": settings.image.format, "background": settings.image.background},
        "captions": dict(totals.captions),
        "repeats": asdict(totals.repeats) if totals.repeats else None,
        "fingerprint": totals.fingerprint,
        "counts": {
            "listed": counts.read + absent,
            "found": counts.read - lost,
            "read": counts.read,
            "kept": totals.kept,
            "rejected": dict(totals.reasons),
        },
        "licence": settings.source.licence(),
        "attribution": settings.source.attribution(),
        "recipe": recipe,
        "config": shown_tree(settings.recipe()),
        "code_version": code_version(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "shards": totals.shards,
    }
