"""Arrow streams, as Hugging Face's `save_to_disk` writes them: a sequence of record batches.

A local stream is memory-mapped, so that skipped batches and images that are not needed are not read. A remote one is a single
unit, and is copied to a temporary file while it is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.io import storage, tables
from pipelines.io.retry import retried
from pipelines.io.storage import File, Missing
from pipelines.sources.base import Pair, Rejected, Unit
from pipelines.sources.columns import ColumnsSource, Start, check_one_by_one, units_in
from pipelines.sources.rows import Unreadable

_DAMAGED = (pa.ArrowException, OSError)


def units_of(source: ColumnsSource, file: File, prefix: str) -> list[Unit]:
    """The units of one stream. Raises `Unreadable`, `Missing`."""
    data = {"file": file.path, "prefix": prefix, "size": file.size, "changed": file.changed}
    if storage.is_remote(file.path):
        source.layout(retried(lambda: _schema(file.path), file.path))
        return [Unit({**data, "batches": None, "first": 0, "number": 1}, rows=None)]
    sizes: list[int] = []
    damage = ""
    try:
        with _stream(Path(file.path)) as batches:
            source.layout(batches.schema)
            sizes.extend(map(len, batches))
    except _DAMAGED as error:
        if not sizes:
            raise Unreadable(f"is not an Arrow stream: {error}") from None
        damage = str(error)
    units = [
        Unit({**data, "batches": batch_sizes, "first": first, "number": number}, rows=sum(batch_sizes))
        for first, number, batch_sizes in units_in(sizes)
    ]
    if damage:
        units.append(Unit({**data, "batches": [], "first": 0, "number": 1, "cut": damage}, rows=1))
    return units


def _schema(path: str) -> pa.Schema:
    """Raises `OSError`, `Missing`, `Unreadable`."""
    with storage.open_random(path) as file:
        try:
            return tables.open_stream(file).schema
        except pa.ArrowException as error:
            raise Unreadable(f"is not an Arrow stream: {error}") from None


def read_unit(source: ColumnsSource, key: str, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
    """The rows of a unit. Raises `UserError` about source.`key` if single images are needed and cannot be read."""
    file, prefix, sizes = unit["file"], unit["prefix"], unit["batches"]
    done, end = 0, None if sizes is None else unit["first"] + len(sizes)
    try:
        if "cut" in unit:
            raise pa.ArrowInvalid(unit["cut"])
        with storage.local_copy(file) as copy, _stream(copy) as batches:
            layout = source.layout(batches.schema)
            if not images:
                check_one_by_one(key, file, layout, "it is not on this machine's disks" if storage.is_remote(file) else "")
            for index, batch in enumerate(islice(batches, unit["first"], end), unit["first"]):
                yield from source.pairs(batch, layout, Start(file, prefix, index, 0, unit["number"] + done), images)
                done += len(batch)
        if sizes is not None and done < sum(sizes):
            raise Unreadable(f"has lost {sum(sizes) - done} rows since it was listed")
    except (Missing, Unreadable) as error:
        yield Rejected(prefix, file, "unreadable_file", str(error))
    except _DAMAGED as error:
        yield Rejected(prefix, file, "truncated_archive", f"{error}; the rows before it are kept")


@contextmanager
def _stream(path: Path) -> Iterator[pa.RecordBatchReader]:
    """A stream on disk, mapped into memory. Raises `Missing`, and the errors of `_DAMAGED`."""
    try:
        opened = pa.memory_map(str(path))
    except OSError as error:
        raise Missing(f"{error.strerror or error}") from None
    with opened as mapped, tables.open_stream(mapped) as batches:
        yield batches
