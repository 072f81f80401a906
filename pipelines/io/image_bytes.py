"""Locations of encoded images, and fetching many of them at once.

An image is a range of bytes of a file (a file of its own, a member of a tar), or a row of a table (Parquet, Arrow). Ranges are
read one by one, so a batch costs the bytes it needs and no more. Tables are read by row group, and a few groups are kept.
"""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.io import storage, tables
from pipelines.io.storage import Missing

_THREADS = 32  # requests in flight, per process, to hide the latency of an object store
_AHEAD = 4 * _THREADS  # images that are fetched, or queued, ahead of the reader
_KEPT_BYTES = 512 << 20  # of row groups, per process

_lock = threading.Lock()
_groups: OrderedDict[tuple[str, int, str], Future[pa.ChunkedArray]] = OrderedDict()
_reading = threading.Semaphore(4)  # groups at a time: each can be large


@dataclass(frozen=True)
class Location:
    """A range of bytes, or, with `column`, a row of a table."""

    file: str  # path or URI
    start: int = 0  # first byte; of a table: the row group, or the record batch of an Arrow file
    length: int = -1  # bytes, -1: to the end; of a table: the row within the group
    column: str = ""  # of a table, dotted: "image.bytes" is the field of a struct


def read_location(location: Location) -> bytes:
    """The encoded bytes. Raises `Missing`."""
    if not location.column:
        return storage.read(location.file, location.start, location.length)
    group = read_group(location.file, location.start, location.column)
    if not 0 <= location.length < len(group):
        raise Missing(f"no row {location.length} among the {len(group)} of the group")
    value = group[location.length].as_py()
    if not isinstance(value, bytes):
        raise Missing(
            "the table holds " + ("no image" if value is None else f"{type(value).__name__}, not bytes,") + " in this row"
        )
    return value


def read_locations(locations: Sequence[Location]) -> Iterator[bytes | Missing]:
    """The bytes of each, in order; `Missing` for one that cannot be read. Remote ones are fetched in parallel and ahead.

    A reader that stops early waits for nothing.
    """
    if not any(storage.is_remote(location.file) for location in locations):
        yield from map(_attempt, locations)
        return
    # Ahead, but not all at once, so memory stays bounded.
    waiting: deque[Future[bytes | Missing]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for location in locations:
            waiting.append(pool.submit(_attempt, location))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _attempt(location: Location) -> bytes | Missing:
    try:
        return read_location(location)
    except Missing as missing:
        return missing


def read_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    """One column of a row group of a Parquet file, or of a record batch of an Arrow file. Raises `Missing`.

    Threads that ask for the same group at the same time share one reading of it.
    """
    key = (file, group, column)
    with _lock:
        column_values, first = _groups.get(key), key not in _groups
        if column_values is None:
            column_values = _groups[key] = Future()
        _groups.move_to_end(key)
    if first:
        try:
            with _reading:
                column_values.set_result(storage.retried(lambda: _read_group(file, group, column), file))
        except BaseException as error:
            with _lock:
                _groups.pop(key, None)
            column_values.set_exception(error)
        else:
            _forget_old_groups()
    return column_values.result()


def _forget_old_groups() -> None:
    with _lock:
        sizes = {key: kept.result().nbytes for key, kept in _groups.items() if kept.done()}
        total = sum(sizes.values())
        for key in list(sizes)[:-1]:  # the newest is kept, however large
            if total <= _KEPT_BYTES:
                break
            total -= sizes[key]
            del _groups[key]


def _read_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    name, *fields = column.split(".")
    try:
        with storage.open_random(file) as source:
            if storage.name_of(file).endswith(".arrow"):
                values = pa.chunked_array([_record_batch(source, group).column(name)])
            else:
                values = tables.open_parquet(source).read_row_group(group, columns=[column]).column(0)
        for field in fields:
            values = pc.struct_field(values, field)
    except (pa.ArrowException, KeyError, IndexError) as error:
        raise Missing(f"{type(error).__name__}: {error}") from None
    return values


def _record_batch(source: Any, group: int) -> pa.RecordBatch:
    try:
        reader = tables.open_file(source)
    except pa.ArrowInvalid:  # a stream, as Hugging Face's save_to_disk writes it
        source.seek(0)
        for index, batch in enumerate(tables.open_stream(source)):
            if index == group:
                return batch
        raise IndexError(f"no record batch {group}") from None
    if not 0 <= group < reader.num_record_batches:
        raise IndexError(f"no record batch {group}")
    return reader.get_batch(group)
