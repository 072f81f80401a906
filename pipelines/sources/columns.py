"""What Parquet and Arrow sources have in common: which column holds what, and how a row becomes a pair.

An image is bytes in the table (a column, or a field of Hugging Face's struct {bytes, path}), or a path or URL. Text is kept as
it is in the table; text that is not UTF-8 rejects its row only.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from pipelines.io.image_bytes import Location
from pipelines.io.retry import shown_place
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.sources import rows
from pipelines.sources.base import Pair, Rejected, Source
from pipelines.sources.inside import Outside
from pipelines.sources.rows import Unreadable

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_path", "filepath", "file_name", "path", "url", "URL")
CAPTIONS = ("caption", "captions", "text", "TEXT", "txt", "title")
ROWS_PER_UNIT = 512  # up to which small row groups and record batches are joined
_ERROR = "error_message"  # img2dataset's column of the reason for a missing image


@dataclass(frozen=True)
class Layout:
    """Which column of a file holds what."""

    encoded: tuple[str, ...] | None  # the image's bytes: a column, or a column and the field of its struct
    path: tuple[str, ...] | None  # the image's path or URL, likewise
    columns: dict[str, str]  # the columns of caption, label, group, key and error, of those that exist; of columns:NAME, NAME
    label_names: tuple[str, ...] | None  # the names that numeric labels stand for

    def dotted(self, encoded: bool) -> list[str]:
        """The dotted names of all columns to read, with or without the encoded images."""
        leaves = [self.path, self.encoded if encoded else None]
        return [*dict.fromkeys(self.columns.values()), *(".".join(leaf) for leaf in leaves if leaf)]


@dataclass(frozen=True)
class Start:
    """Where a batch begins in its file."""

    file: str
    prefix: str  # of keys
    group: int  # row group, or record batch
    row: int  # of the first row, within the group
    number: int  # of the first row, within the file, from 1

    def lost(self, index: int, reason: str, detail: str) -> Rejected:
        """A rejected row of the batch."""
        return Rejected(self.key(index), self.origin(index), reason, detail)

    def key(self, index: int) -> str:
        return f"{self.prefix}:{self.number + index}"

    def origin(self, index: int) -> str:
        return f"{self.file}, row {self.number + index}"


class ColumnsSource(Source):
    """Base of the sources that read Parquet and Arrow: settings that name the columns."""

    image: str | None = Field(
        None, description=f"column of images (bytes, or {{bytes, path}}), paths or URLs; null: {', '.join(IMAGES)}"
    )
    caption: str | None = Field(None, description=f"column of captions, one or a list; null: {', '.join(CAPTIONS)}")
    label: str | None = Field(None, description="column of a label")
    columns: tuple[str, ...] = Field(
        (), description="further columns, kept as labels too: hard negatives, weights, or more classes"
    )
    group: str | None = Field(None, description="column of groups, which stay in one split; null: the first caption")
    key: str | None = Field(None, description="column of unique names of the rows; null: FILE:ROW")
    root: Place | None = Field(None, description="where relative paths of images start; null: the file's folder")
    outside: Outside = False

    def layout(self, schema: pa.Schema) -> Layout:
        """Which column holds what in a file of this schema. Raises `Unreadable`."""
        names = schema.names
        image = self.image or rows.usual_name("image", IMAGES, names)
        wanted = {"caption": self.caption or rows.usual_name("caption", CAPTIONS, names)}
        wanted |= {key: name for key in ("label", "group", "key") if (name := getattr(self, key)) is not None}
        wanted |= {f"columns:{name}": name for name in self.columns}
        for key, name in {"image": image, **wanted}.items():
            if names.count(name) != 1:
                problem = f"has {'no column' if name not in names else 'several columns'} '{name}'"
                raise Unreadable(problem, key.partition(":")[0], f"its columns are: {', '.join(map(repr, names))}")
        caption = schema.field(wanted["caption"])
        if not (_is_text(caption.type) or (_is_list(caption.type) and _is_text(caption.type.value_type))):
            problem = f"has no captions in column '{caption.name}': its type is {caption.type}, not text"
            raise Unreadable(problem, "caption", "pass source.caption=NAME")
        for key in wanted.keys() - {"caption"}:
            kind = schema.field(wanted[key]).type
            if pa.types.is_nested(kind) or _is_binary(kind):
                setting, _, further = key.partition(":")
                problem = f"has no {setting} in column '{wanted[key]}': its type is {kind}, not text or a number"
                raise Unreadable(problem, setting, f"leave '{further}' out" if further else f"pass source.{key}=NAME")
        if names.count(_ERROR) == 1 and _is_text(schema.field(_ERROR).type):
            wanted["error"] = _ERROR
        return Layout(*_image_leaves(schema.field(image)), wanted, _label_names(schema, self.label))

    def pairs(self, batch: pa.RecordBatch, layout: Layout, start: Start, images: bool) -> Iterator[Pair | Rejected]:
        """The rows of a batch. A batch without the column of encoded images is of a file in which none of them is null."""
        cells = {name: _values(batch.column(column)) for name, column in layout.columns.items()}
        empty = [None] * len(batch)
        encoded = _leaf(batch, layout.encoded)
        has_bytes = [layout.encoded is not None] * len(batch) if encoded is None else encoded.is_valid().to_pylist()
        paths = _leaf(batch, layout.path)
        for index, (path, *values) in enumerate(
            zip(
                empty if paths is None else _values(paths),
                *(cells.get(name, empty) for name in ("caption", "label", "group", "key", "error")),
                strict=True,
            )
        ):
            captions, label, group, key, error = values
            labels = {self.label: _name(label, layout.label_names)} if self.label else {}
            if not has_bytes[index] and path is None:
                yield start.lost(index, "missing_image", str(error or "no image"))
                continue
            row = rows.pair_of(
                start.key(index),
                start.origin(index),
                self.root or rows.folder_of(start.file),
                image=start.file if has_bytes[index] else path,
                captions=captions,
                key=key,
                group=group,
                labels=labels | {name: cells[f"columns:{name}"][index] for name in self.columns},
                outside=self.outside or has_bytes[index],
            )
            if isinstance(row, Pair) and has_bytes[index] and layout.encoded:
                row = replace(
                    row,
                    origin=start.origin(index),
                    location=Location(start.file, start.group, start.row + index, ".".join(layout.encoded)),
                    image=encoded[index].as_py() if images and encoded is not None else None,
                )
            yield row


def units_in(sizes: Sequence[int], limit: int | None = ROWS_PER_UNIT) -> Iterator[tuple[int, int, list[int]]]:
    """Joins consecutive groups of these sizes into units of up to `limit` rows (None: no limit), without empty units.

    Yields (first group, number of the first row from 1, sizes of the groups).
    """
    first, number = 0, 1
    while first < len(sizes):
        end = first + 1
        while end < len(sizes) and (limit is None or sum(sizes[first : end + 1]) <= limit):
            end += 1
        joined = list(sizes[first:end])
        if any(joined):
            yield first, number, joined
        first, number = end, number + sum(joined)


def check_one_by_one(key: str, file: str, layout: Layout, why: str) -> None:
    """Raises `UserError` if the images cannot stay in their table, because of `why` (empty: nothing) or their column's name."""
    if layout.encoded and "." in "".join(layout.encoded):
        why = f"column '{layout.encoded[0]}' has a dot in its name"
    if layout.encoded and why:
        problem = f"{shown_place(file)}: {why}, so its images cannot be read one by one"
        raise UserError(f"source.{key}", problem, "prepare with mode=copy")


def _image_leaves(field: pa.Field) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """`Layout.encoded` and `Layout.path`. Raises `Unreadable`."""
    if _is_binary(field.type):
        return (field.name,), None
    if _is_text(field.type):
        return None, (field.name,)
    if pa.types.is_struct(field.type):
        types = {inner.name: inner.type for inner in field.type}
        encoded = (field.name, "bytes") if "bytes" in types and _is_binary(types["bytes"]) else None
        path = (field.name, "path") if "path" in types and _is_text(types["path"]) else None
        if encoded or path:
            return encoded, path
    problem = f"has no images in column '{field.name}': its type is {field.type}, not one of bytes, {{bytes, path}}, a path"
    raise Unreadable(problem, "image", "pass source.image=NAME")


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or types.is_fixed_size_binary(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _label_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """The class names that Hugging Face keeps in the metadata; the column holds their numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _name(label: Any, names: Sequence[str] | None) -> Any:
    if names is None or not isinstance(label, int):
        return label
    return names[label] if 0 <= label < len(names) else None


def _leaf(batch: pa.RecordBatch, leaf: tuple[str, ...] | None) -> pa.Array | None:
    """A column, or the field of a struct; None if the batch has no such column."""
    if leaf is None or leaf[0] not in batch.schema.names:
        return None
    column = batch.column(leaf[0])
    if len(leaf) == 1:
        return column
    return pc.struct_field(column, leaf[1]) if column.type.get_field_index(leaf[1]) >= 0 else None


def _values(column: pa.Array) -> list[Any]:
    """Values of a column; bytes that are not UTF-8 become surrogates, which valid text does not contain."""
    if _is_text(column.type):
        return [_text(value) for value in column.cast(pa.large_binary()).to_pylist()]
    if _is_list(column.type) and _is_text(column.type.value_type):
        lists = column.cast(pa.large_list(pa.large_binary())).to_pylist()
        return [None if value is None else [_text(item) for item in value] for value in lists]
    return column.to_pylist()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")
