"""The first half of preparing: groups a source's units into parts, each of which is read once, anywhere in the cluster.

A part writes two files into the dataset's content folder: `00012.tar` with the kept images (mode copy only), in the WebDataset
layout, which other libraries also read; and `00012.found.parquet` with a row of `curate.ROW_SCHEMA` for every row of the source.
The second is written last and marks the part as done, so a killed run resumes with the others.

Untrusted bytes are not read in Ray's own processes but in a child process; a row that crashes the child is rejected.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.io import child_process, storage
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.curate import ROW_SCHEMA, Row, curate, rejected
from pipelines.program.cluster import ONE_CPU, RETRIES, blocks, errors_as_blocks
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import in_one_line
from pipelines.sources.base import Pair, Rejected, Unit, file_of, with_utf8_names

_PARTS = 16  # a small source is divided into this many parts, to be read in parallel
_ROWS_AT_ONCE = 1024  # rows in memory before they are written
_EXTENSIONS = {"jpeg": "jpg", "png": "png", "webp": "webp"}


@dataclass(frozen=True)
class Part:
    """Consecutive units of a source that make one shard."""

    index: int
    units: tuple[Any, ...]  # their `data`
    rows: int | None  # None: unknown before reading
    absent: int
    weight: float
    splits: tuple[tuple[str, ...] | None, ...] = ()  # of each unit: the source's splits of its rows, None if they are drawn

    @property
    def name(self) -> str:
        """The name of its files, without suffixes."""
        return f"{self.index:05d}"


def list_units(settings: PrepareSettings) -> list[Unit]:
    """The source's units, with its splits if the config keeps them. Raises `UserError` if the source has none."""
    units = settings.source.units()
    if settings.splits != "source":
        return [replace(unit, splits=None) for unit in units]
    lacking = sum(unit.splits is None for unit in units)
    if lacking:
        how_many = "none" if lacking == len(units) else "not all"
        problem = f"source, but {how_many} of {settings.source.title()}'s files have splits, as Karpathy's json does"
        raise UserError("splits", problem, "pass 'splits={test: 0.1}' to draw them")
    return units


def cut(units: list[Unit], shard_rows: int) -> list[Part]:
    """Parts of about `shard_rows` rows each, fewer if the source is small. No unit is divided; a part's units have one weight."""
    row_counts = [unit.rows for unit in units if unit.rows is not None]
    size = min(shard_rows, -(-sum(row_counts) // _PARTS)) if len(row_counts) == len(units) else shard_rows
    groups: list[list[Unit]] = []
    rows = 0
    for unit in units:
        # A unit of unknown size (a tar) is a part of its own.
        if not groups or rows >= size or unit.rows is None or unit.weight != groups[-1][-1].weight:
            groups.append([])
            rows = 0
        groups[-1].append(unit)
        rows += unit.rows if unit.rows is not None else size
    return [
        Part(
            index,
            tuple(unit.data for unit in group),
            None if any(unit.rows is None for unit in group) else sum(unit.rows or 0 for unit in group),
            sum(unit.absent for unit in group),
            group[0].weight,
            tuple(unit.splits for unit in group),
        )
        for index, group in enumerate(groups)
    ]


def rows_file(content: Place, part: Part) -> Place:
    """The file with a part's rows, which marks the part as done."""
    return storage.join(content, f"{part.name}.found.parquet")


def read_parts(parts: list[Part], content: Place, settings: PrepareSettings) -> Iterator[tuple[int, Counter[str]]]:
    """Read parts in the cluster; yields (rows, rejection reasons) of each when done. Rows do not pass through the driver."""
    import ray.data

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        part = Part(**json.loads(batch["part"][0]))
        counts = read_part(part, content, settings)
        return {"counts": [json.dumps(counts)]}

    items = [{"part": json.dumps(vars(part))} for part in parts]
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = False  # in the order in which they finish
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            errors_as_blocks(work), batch_size=1, max_retries=RETRIES, label_selector=settings.node_labels or None
        )
        for block in blocks(dataset, task=ONE_CPU._replace(labels=settings.node_labels)):
            counts = Counter(json.loads(block["counts"][0]))
            yield counts.pop(""), counts


def read_part(
    part: Part, content: Place, settings: PrepareSettings, limits: child_process.Limits = child_process.LIMITS
) -> dict[str, int]:
    """Read one part and write its files. Returns the number of rejected rows by reason, and of all rows under ""."""
    counts: Counter[str] = Counter({"": 0})
    with storage.written(rows_file(content, part)) as rows:
        if settings.mode == "copy":
            with storage.written(storage.join(content, f"{part.name}.tar")) as tar:
                _write(_copied(part, settings, tar, content, limits), rows, counts)
        else:
            _write(_indexed(part, settings, limits), rows, counts)
    return dict(counts)


def counts_of(content: Place, part: Part) -> tuple[int, Counter[str]]:
    """(rows, rejection reasons) of a part that is done."""
    reasons = storage.read_table(rows_file(content, part), ["reason"])["reason"]
    return len(reasons), Counter(reason for reason in reasons.to_pylist() if reason is not None)


def _rows(part: Part, settings: PrepareSettings, limits: child_process.Limits) -> Iterator[Row]:
    for unit, splits in zip(part.units, part.splits, strict=True):
        for row in child_process.each(partial(_rows_of, unit, splits, settings), limits):
            if isinstance(row, Row):
                yield row
            elif row.about is not None:
                key, origin = row.about
                yield rejected(Rejected(key, origin, row.reason, row.why))
            else:
                file = file_of(unit)
                yield rejected(Rejected(file, file, "unreadable_file", f"{row.why}; the rows before it are kept"))


def _rows_of(unit: Any, splits: Sequence[str] | None, settings: PrepareSettings, first: int) -> Iterator[Row]:
    """The rows of a unit, from number `first`."""
    pairs = with_utf8_names(settings.source.read(unit, images=settings.mode == "copy"))
    yield from curate(islice(pairs if splits is None else _with_splits(pairs, splits), first, None), settings)


def _with_splits(pairs: Iterator[Pair | Rejected], splits: Sequence[str]) -> Iterator[Pair | Rejected]:
    """The rows of a unit, each pair with its split in the source; a pair without one is rejected."""
    for row, split in zip(pairs, splits, strict=True):
        if isinstance(row, Rejected):
            yield row
        else:
            yield replace(row, split=split) if split else Rejected(row.key, row.origin, "bad_row", "it has no split")


def _indexed(part: Part, settings: PrepareSettings, limits: child_process.Limits) -> Iterator[dict[str, Any]]:
    for row in _rows(part, settings, limits):
        file = row.columns.get("file")
        yield row.columns | ({"file": str(storage.absolute(file))} if file else {})


def _copied(
    part: Part, settings: PrepareSettings, path: Path, content: Place, limits: child_process.Limits
) -> Iterator[dict[str, Any]]:
    """Write the images into a tar; yields the rows with their locations in it."""
    folder = storage.name_of(content)
    extension = _EXTENSIONS[settings.image.format]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index, row in enumerate(_rows(part, settings, limits)):
            if row.image is None:
                yield row.columns
                continue
            stem = f"{part.name}{index:06d}"
            start = _add(tar, f"{stem}.{extension}", row.image)
            _add(tar, f"{stem}.txt", "\n".join(map(in_one_line, row.columns["captions"])).encode())
            yield row.columns | {"file": f"{folder}/{part.name}.tar", "start": start, "length": len(row.image), "column": ""}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Add a member; returns the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    blocks = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - blocks


def _write(rows: Iterator[dict[str, Any]], path: Path, counts: Counter[str]) -> None:
    with pq.ParquetWriter(path, ROW_SCHEMA) as writer:
        waiting: list[dict[str, Any]] = []
        for row in rows:
            counts[""] += 1
            if row.get("reason") is not None:
                counts[row["reason"]] += 1
            waiting.append(row)
            if len(waiting) >= _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(waiting, schema=ROW_SCHEMA))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema=ROW_SCHEMA))
