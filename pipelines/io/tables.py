"""Opens all Parquet and Arrow files; a table that could run code is refused because of its schema, before any cell is read.

A column may have an extension type, which a library has registered with Arrow. Ray registers one whose cells are pickles
(`ray.data.arrow_pickled_object`), and unpickling runs whatever code the file's author wants. Arrow's own types and Ray's tensors
are known to contain only numbers and text; their parameters are JSON.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from pipelines.io.retry import Missing
from pipelines.program.ray_data import TENSOR_TYPES

_NAME = b"ARROW:extension:name"  # metadata key of a field whose type is not registered
_HARMLESS = frozenset(
    f"arrow.{name}"
    for name in ("bool8", "fixed_shape_tensor", "json", "opaque", "parquet.variant", "timestamp_with_offset", "uuid")
) | {"arrow.variable_shape_tensor", *TENSOR_TYPES}


class Refused(Missing):
    """A table that could run code."""


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """A Parquet file. Raises `OSError`, `ArrowException`, `Refused`."""
    try:
        opened = pq.ParquetFile(source, **options)
        _check(opened.schema_arrow)
    except (ValueError, TypeError) as error:
        raise _unlike(error) from None
    return opened


def read_parquet(source: Any, columns: Sequence[str] | None, filters: Any) -> pa.Table:
    """Columns of a Parquet file, all by default. Raises as `open_parquet` does."""
    from pyarrow import dataset  # which imports pandas: half a second that a process for one image need not wait for

    options = dataset.ParquetFragmentScanOptions(pre_buffer=True)
    form = dataset.ParquetFileFormat(default_fragment_scan_options=options)
    try:
        fragment = form.make_fragment(source)
        _check(fragment.physical_schema)
    except (ValueError, TypeError) as error:
        raise _unlike(error) from None
    return dataset.FileSystemDataset([fragment], fragment.physical_schema, form, fragment.filesystem).to_table(
        columns=None if columns is None else list(columns),
        filter=None if filters is None else pq.filters_to_expression(filters),
    )


def open_stream(source: Any) -> pa.RecordBatchReader:
    """An Arrow stream. Raises as `open_parquet` does."""
    return _opened(pa.ipc.open_stream, source)


def open_file(source: Any) -> Any:
    """An Arrow file, for reading any of its batches. Raises as `open_parquet` does."""
    return _opened(pa.ipc.open_file, source)


def _opened(opening: Any, source: Any) -> Any:
    try:
        reader = opening(source)
        _check(reader.schema)
    except (ValueError, TypeError) as error:
        raise _unlike(error) from None
    return reader


def _unlike(error: ValueError | TypeError) -> Exception:
    """Arrow's own error unchanged; any other comes from a library that cannot read its type's parameters."""
    first = str(error).strip().partition("\n")[0]
    return error if isinstance(error, pa.ArrowException) else Refused(f"has a type with invalid parameters: {first}")


def _check(schema: pa.Schema) -> None:
    for field in schema:
        for name in _extensions(field):
            if name not in _HARMLESS:
                raise Refused(
                    f"column '{field.name}' is of the Arrow extension type {name}, and reading such types can run code; "
                    "write the table again without it"
                )


def _extensions(field: pa.Field) -> Iterator[str]:
    """Names of all extension types of a column, at any depth."""
    if _NAME in (field.metadata or {}):
        yield field.metadata[_NAME].decode("utf-8", "replace")
    waiting = [field.type]
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, pa.BaseExtensionType):
            yield kind.extension_name
            waiting.append(kind.storage_type)
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            waiting.append(kind.value_type)
        else:
            for inner in (kind.field(index) for index in range(kind.num_fields)):
                yield from _extensions(inner)
