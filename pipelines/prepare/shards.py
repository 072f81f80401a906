"""The first half of preparing: a source's units gathered into parts, each read once somewhere in the cluster.

A part leaves two files in the dataset's content folder: `00012.tar` with the images that are kept (mode copy only), in the
WebDataset layout that others read too, and `00012.found.parquet` with a row of `curate.FOUND` for every row of the source.
The second is put there last: a part that has it is done, so a killed run resumes with the others.

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
from pipelines.prepare.curate import FOUND, Row, examine, rejected
from pipelines.program.cluster import RETRIES, blocks, errors_as_blocks
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
    rows: int | None  # where it is known beforehand
    absent: int
    weight: float
    splits: tuple[tuple[str, ...] | None, ...] = ()  # of each unit: its source's own, None where they are drawn

    @property
    def name(self) -> str:
        """The name of its files, without suffixes."""
        return f"{self.index:05d}"


def list_units(settings: PrepareSettings) -> list[Unit]:
    """All work; units have splits if the config keeps the source's own. Raises `UserError` if the source has none."""
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
    """Parts of about `shard_rows` rows each, fewer if the source is small; no unit is divided, and a part's units have one
    weight."""
    known = [unit.rows for unit in units if unit.rows is not None]
    size = min(shard_rows, -(-sum(known) // _PARTS)) if len(known) == len(units) else shard_rows
    gathered: list[list[Unit]] = []
    rows = 0
    for unit in units:
        # A unit of unknown size (a tar) is a part of its own.
        if not gathered or rows >= size or unit.rows is None or unit.weight != gathered[-1][-1].weight:
            gathered.append([])
            rows = 0
        gathered[-1].append(unit)
        rows += unit.rows if unit.rows is not None else size
    return [
        Part(
            index,
            tuple(unit.data for unit in some),
            None if any(unit.rows is None for unit in some) else sum(unit.rows or 0 for unit in some),
            sum(unit.absent for unit in some),
            some[0].weight,
            tuple(unit.splits for unit in some),
        )
        for index, some in enumerate(gathered)
    ]


def found_file(content: Place, part: Part) -> Place:
    """The file that marks a part as done."""
    return storage.join(content, f"{part.name}.found.parquet")


def read_parts(parts: list[Part], content: Place, settings: PrepareSettings) -> Iterator[tuple[int, Counter[str]]]:
    """Read parts in the cluster; (rows, reasons of the rejected) as each is done. Kept rows never pass through this process."""
    import ray.data

    def work(batch: dict[str, Any]) -> dict[str, Any]:
        part = Part(**json.loads(batch["part"][0]))
        counts = read_part(part, content, settings)
        return {"counts": [json.dumps(counts)]}

    items = [{"part": json.dumps(vars(part))} for part in parts]
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = False  # as they are done
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            errors_as_blocks(work), batch_size=1, max_retries=RETRIES
        )
        for block in blocks(dataset):
            counts = Counter(json.loads(block["counts"][0]))
            yield counts.pop(""), counts


def read_part(
    part: Part, content: Place, settings: PrepareSettings, limits: child_process.Limits = child_process.LIMITS
) -> dict[str, int]:
    """Read one part and write its files. Returns the number of rows by reason; the empty reason counts all rows."""
    counts: Counter[str] = Counter({"": 0})
    with storage.written(found_file(content, part)) as found:
        if settings.mode == "copy":
            with storage.written(storage.join(content, f"{part.name}.tar")) as tar:
                _write(_copied(part, settings, tar, content, limits), found, counts)
        else:
            _write(_indexed(part, settings, limits), found, counts)
    return dict(counts)


def counts_of(content: Place, part: Part) -> tuple[int, Counter[str]]:
    """(rows, reasons of the rejected) of a part that is done."""
    reasons = storage.read_table(found_file(content, part), ["reason"])["reason"]
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
                yield rejected(Rejected(file, file, "unreadable_file", f"{row.why}; what comes before is kept"))


def _rows_of(unit: Any, splits: Sequence[str] | None, settings: PrepareSettings, first: int) -> Iterator[Row]:
    """The rows of a unit, from one on."""
    found = with_utf8_names(settings.source.read(unit, images=settings.mode == "copy"))
    yield from examine(islice(found if splits is None else _in_splits(found, splits), first, None), settings)


def _in_splits(found: Iterator[Pair | Rejected], splits: Sequence[str]) -> Iterator[Pair | Rejected]:
    """Rows of a unit, each pair with its source's split; a pair that has none cannot be used."""
    for row, split in zip(found, splits, strict=True):
        if isinstance(row, Rejected):
            yield row
        else:
            yield replace(row, split=split) if split else Rejected(row.key, row.origin, "bad_row", "it names no split")


def _indexed(part: Part, settings: PrepareSettings, limits: child_process.Limits) -> Iterator[dict[str, Any]]:
    for row in _rows(part, settings, limits):
        file = row.columns.get("file")
        yield row.columns | ({"file": str(storage.absolute(file))} if file else {})


def _copied(
    part: Part, settings: PrepareSettings, path: Path, content: Place, limits: child_process.Limits
) -> Iterator[dict[str, Any]]:
    """Write the images into a tar, and their locations in it into their rows."""
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
    with pq.ParquetWriter(path, FOUND) as writer:
        waiting: list[dict[str, Any]] = []
        for row in rows:
            counts[""] += 1
            if row.get("reason") is not None:
                counts[row["reason"]] += 1
            waiting.append(row)
            if len(waiting) >= _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(waiting, schema=FOUND))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema=FOUND))
