"""Parquet files with one image per row: Hugging Face's, img2dataset's, tables of paths or URLs.

The driver reads only the footers; row groups are read separately, a few rows at a time. With mode=index the column of images
is read only if the file's statistics say that some are null.
"""

from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipelines.io import storage, tables
from pipelines.io.http import is_web
from pipelines.io.retry import retried
from pipelines.io.storage import File, Missing
from pipelines.sources import rows
from pipelines.sources.base import Pair, Rejected, Unit
from pipelines.sources.columns import ROWS_PER_UNIT, ColumnsSource, Layout, Start, check_one_by_one, units_in
from pipelines.sources.rows import Paths, Unreadable

_ROWS_AT_ONCE = 64
_BUFFER = 8 << 20  # bytes of a column that are read ahead
_LARGEST = 64 << 20  # maximum bytes of images in a row group from which single rows are read


class ParquetSource(ColumnsSource):
    """Rows of Parquet files: an image, or its path or URL, and its captions."""

    name: Literal["parquet"]
    paths: Paths = Field(description="files, as paths, globs, {00..99} or {a,b}; a folder stands for the .parquet files below it")

    def title(self) -> str:
        return self.dataset or rows.title_of(self.paths[0])

    def units(self) -> list[Unit]:
        return rows.list_units(self.paths, (".parquet",), lambda file, prefix: units_of(self, file, prefix))

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        yield from read_unit(self, "paths", unit, images)


def units_of(source: ColumnsSource, file: File, prefix: str) -> list[Unit]:
    """The units of one file, from its footer. Raises `Unreadable`, `Missing`."""
    try:
        opened = retried(_Table(file.path).opened, file.path)
        source.layout(opened.schema_arrow)
    except pa.ArrowException as error:
        raise Unreadable(f"is not Parquet: {error}") from None
    sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
    data = {"file": file.path, "prefix": prefix, "size": file.size, "changed": file.changed}
    # A file on the web is downloaded as a whole.
    ranges = units_in(sizes, None if is_web(file.path) else ROWS_PER_UNIT)
    return [
        Unit({**data, "groups": groups, "first": first, "number": number}, rows=sum(groups)) for first, number, groups in ranges
    ]


def read_unit(source: ColumnsSource, key: str, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
    """The rows of a unit. Raises `UserError` about source.`key` if single images are needed and cannot be read."""
    if "damage" in unit:
        yield Rejected(unit["prefix"], unit["file"], "unreadable_file", unit["damage"])
        return
    file, number, table = unit["file"], unit["number"], _Table(unit["file"])
    for group, size in enumerate(unit["groups"], unit["first"]):
        done = 0
        try:
            layout = source.layout(retried(table.opened, file).schema_arrow)
            if group >= table.opened().num_row_groups:
                raise Unreadable("has fewer row groups than when it was listed")
            columns = layout.dotted(images or _some_are_null(table.opened(), group, layout, key, file))
            while (batch := retried(lambda: table.batch(group, done, columns), file)) is not None:  # noqa: B023 - called at once
                yield from source.pairs(batch, layout, Start(file, unit["prefix"], group, done, number + done), images)
                done += len(batch)
            problem = "the row group ends too early"
        except (Missing, Unreadable, pa.ArrowException) as error:
            problem = str(error)
        for row in range(done, size):
            yield Start(file, unit["prefix"], group, 0, number).lost(row, "unreadable_file", problem)
        number += size


def _some_are_null(table: pq.ParquetFile, group: int, layout: Layout, key: str, path: str) -> bool:
    """Whether images may be null, so that their column must be read. Raises `UserError` as `read_unit` does."""
    if layout.encoded is None:
        return False
    row_group, leaf = table.metadata.row_group(group), ".".join(layout.encoded)
    chunk = next(c for c in map(row_group.column, range(row_group.num_columns)) if c.path_in_schema == leaf)
    size = chunk.total_uncompressed_size
    large = f"row group {group} holds {size >> 20} MiB of images" if size > _LARGEST else ""
    check_one_by_one(key, path, layout, "it is behind http(s)" if is_web(path) else large)
    return not (chunk.statistics and chunk.statistics.has_null_count and chunk.statistics.null_count == 0)


class _Table:
    """An open file, read batch by batch. After a failure it is opened again, and reading continues where it stopped."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: pq.ParquetFile | None = None
        self._at: tuple[int, int] | None = None  # row group, and row in it, of the next batch
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def opened(self) -> pq.ParquetFile:
        """Raises `OSError`, `Missing`, `ArrowException`."""
        if self._opened is None:
            self._opened = tables.open_parquet(storage.open_random(self._path), buffer_size=_BUFFER, pre_buffer=False)
        return self._opened

    def batch(self, group: int, row: int, columns: list[str]) -> pa.RecordBatch | None:
        """Rows of a group from `row`, where another batch ended; None at its end. Raises like `opened`."""
        try:
            if self._at != (group, row):
                batches = self.opened().iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns)
                self._batches = (batch for batch, end in _with_ends(batches) if end > row)
            batch = next(self._batches, None)
        except BaseException:
            self._opened = self._at = None
            raise
        self._at = (group, row + len(batch)) if batch is not None else None
        return batch


def _with_ends(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, int]]:
    end = 0
    for batch in batches:
        end += len(batch)
        yield batch, end
