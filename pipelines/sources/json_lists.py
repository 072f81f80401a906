"""Pairs in JSON: one object per line (.jsonl, .ndjson), a list of objects, COCO's captions, or Karpathy's splits; also .gz.

Files with one object per line are read in separate ranges of bytes, one range in memory at a time. The other layouts
(`json_layouts.py`) are one document per file, which the driver parses as a whole: this takes about ten times the file's size
in memory.

A caption is a text or a list of texts: all captions of one image are one pair, in the file's order. Nulls in a list are left
out, and so are empty captions if another remains.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

from pydantic import BeforeValidator, Field

from pipelines.io.storage import File
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded
from pipelines.sources import json_layouts, rows
from pipelines.sources.base import Pair, Rejected, Source, Unit
from pipelines.sources.inside import Outside
from pipelines.sources.rows import CAPTION_NAMES, IMAGE_NAMES, Paths, Unreadable

_LINE_ENDINGS = (".jsonl", ".ndjson")
_USUAL_OF_LAYOUT = {
    "image": {"coco": ("file_name",), "karpathy": ("image",)},
    "caption": {"coco": ("captions",), "karpathy": ("sentences",)},
}
_USUAL = {"image": IMAGE_NAMES, "caption": (*CAPTION_NAMES, "captions", "sentences")}


class JsonSource(Source):
    """Objects in JSON files, or COCO's and Karpathy's lists of captions: a path or URL of an image, and its captions."""

    name: Literal["json"]
    paths: Paths = Field(description="files, as paths, globs, {00..99} or {a,b}; a folder stands for the JSON files below it")
    layout: Literal["auto", "lines", "list", "coco", "karpathy"] = Field(
        "auto", description="auto: lines for .jsonl and .ndjson, else what the document looks like"
    )
    image: str | None = Field(None, description=f"field of paths or URLs; null: {', '.join(_USUAL['image'])}")
    caption: str | None = Field(None, description=f"field of captions; null: {', '.join(_USUAL['caption'])}")
    split: Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)] = Field(
        (), description="karpathy: which splits to take, such as train and restval; none named: all; splits=source keeps them"
    )
    root: Place | None = Field(None, description="where relative paths of images start; null: the JSON file's folder")
    outside: Outside = False
    label: str | None = Field(None, description="field of a label")
    columns: tuple[str, ...] = Field(
        (), description="further fields, kept as labels too: hard negatives, weights, or more classes"
    )
    group: str | None = Field(None, description="field of groups, which stay in one split; null: the first caption")
    key: str | None = Field(
        None,
        description="field of unique names of the rows; null: FILE:LINE, FILE:INDEX in a list, FILE:IMAGE in coco and karpathy",
    )

    def title(self) -> str:
        return self.dataset or json_layouts.own_name(self.paths[0]) or rows.title_of(self.paths[0])

    def units(self) -> list[Unit]:
        return rows.list_units(self.paths, (*_LINE_ENDINGS, ".json"), self.units_of)

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        if "rows" not in unit:
            yield from rows.read_unit(unit, self._read_lines)
            return
        for row in json.loads(unit["rows"]):
            yield self._pair(unit, row)

    def _read_lines(self, source: BinaryIO, unit: Any) -> Iterator[Pair | Rejected]:
        for line in _lines(source, unit["start"], unit["first"]):
            yield self._pair(unit, {"at": line.number, **_values(line.item, unit["fields"])})

    def _pair(self, unit: Any, row: dict[str, Any]) -> Pair | Rejected:
        key, origin = f"{unit['prefix']}:{row['at']}", f"{unit['file']}:{row['at']}"
        if "rejected" in row:
            return Rejected(key, origin, *row["rejected"])
        values = {name: row.get(name) for name in ("image", "captions", "key", "group")}
        labels = {self.label: row["label"]} if self.label else {}
        labels |= {name: row.get(f"columns:{name}") for name in self.columns}
        return rows.pair_of(key, origin, self.root or rows.folder_of(unit["file"]), labels=labels, outside=self.outside, **values)

    def units_of(self, file: File, prefix: str) -> list[Unit]:
        """The units of one file, whose keys begin with `prefix`. Raises `Unreadable`, `Missing`."""
        data = {"file": file.path, "prefix": prefix, "size": file.size, "changed": file.changed}
        with rows.stream(file.path) as source:
            try:
                if self.layout == "lines" or (self.layout == "auto" and file.path.removesuffix(".gz").endswith(_LINE_ENDINGS)):
                    return self._units_of_lines(source, data)
                document = _parsed(source.read())
            except rows.DAMAGED as error:
                raise Unreadable(f"cannot be read: {error}") from None
            except ValueError as error:
                remedy = "pass source.layout=lines if every line is an object" if "Extra data" in str(error) else ""
                raise Unreadable(f"is not JSON: {error}", remedy=remedy) from None
        listed, splits = self._rows(document, prefix)
        chunks = [slice(start, start + rows.ROWS_PER_UNIT) for start in range(0, len(listed), rows.ROWS_PER_UNIT)]
        # As ASCII: JSON's escapes can name characters that UTF-8 cannot write.
        return [
            Unit({**data, "rows": json.dumps(listed[chunk])}, rows=len(listed[chunk]), splits=splits[chunk] if splits else None)
            for chunk in chunks
        ]

    def _units_of_lines(self, source: BinaryIO, data: dict[str, Any]) -> list[Unit]:
        lines, first = _lines(source, 0, 1), []
        try:
            for line in islice(lines, rows.ROWS_PER_UNIT):
                first.append(line)
        except rows.DAMAGED:
            if not first:
                raise
        if not first:
            return []
        data["fields"] = self._fields("lines", [line.item for line in first])
        if rows.in_one_piece(data["file"]):
            return [Unit({**data, "bytes": None, "start": 0, "first": 1}, rows=None)]
        ranges = rows.byte_ranges(((line.after, line.end) for line in chain(first, lines)), 0)
        return [Unit({**data, **range_of}, rows=count) for range_of, count in ranges]

    def _rows(self, document: Any, prefix: str) -> tuple[list[dict[str, Any]], tuple[str, ...] | None]:
        """The rows of a document and their `Unit.splits`. A row has its place (`at`), and its values or why it is `rejected`."""
        layout = json_layouts.layout_of(document) if self.layout == "auto" else self.layout
        unmatched: list[tuple[int, str]] = []
        splits = None
        if layout == "coco":
            objects, unmatched = json_layouts.coco(document, self.caption or "caption")
        elif layout == "karpathy":
            objects = json_layouts.karpathy(document, self.split)
            splits = json_layouts.own_splits(objects)
        else:
            objects = json_layouts.listed(document)
        fields = self._fields(layout, [item for _, item in objects])
        listed = [{"at": index, **_values(item, fields)} for index, item in objects]
        for row in listed if layout != "list" and self.key is None else ():
            if isinstance(row.get("image"), str):
                row["key"] = f"{prefix}:{row['image']}"
        reasons = [(index, ["missing_image", f"no image has the id {image}"]) for index, image in unmatched]
        return listed + [{"at": f"annotation {index}", "rejected": reason} for index, reason in reasons], splits

    def _fields(self, layout: str, items: Sequence[Any]) -> dict[str, str]:
        """Which field holds what, chosen among the fields of these rows. Raises `Unreadable`."""
        if self.split and layout != "karpathy":
            raise Unreadable(f"has the layout '{layout}', and only 'karpathy' has splits", "split", "leave source.split out")
        names = list({name: None for item in items if isinstance(item, dict) for name in item})
        if items and not names:
            raise Unreadable(f"holds no objects in its first {len(items)} rows", remedy="check source.layout")
        wanted = {"image": self.image, "caption": self.caption, "label": self.label, "group": self.group, "key": self.key}
        wanted |= {f"columns:{name}": name for name in self.columns}
        fields = {}
        for key, name in wanted.items():
            if key == "caption" and layout == "coco":
                name = "captions"
            if name is None and key in _USUAL and items:
                name = rows.usual_name(key, _USUAL_OF_LAYOUT[key].get(layout, _USUAL[key]), names)
            elif name is not None and items and name not in names:
                raise Unreadable(
                    f"has no field '{name}'", key.partition(":")[0], f"its fields are: {', '.join(map(repr, names[:20]))}"
                )
            if name is not None:
                fields["captions" if key == "caption" else key] = name
        return fields


class _Line(NamedTuple):
    """A line that is not blank."""

    after: int  # number of the line after the previous one that is not blank
    number: int  # its own number, from 1
    end: int  # offset of its end in the file
    item: Any  # its value; a ValueError if it is not valid JSON


def _lines(source: BinaryIO, start: int, first: int) -> Iterator[_Line]:
    """The lines from an offset of the file, the first of which has the number `first`."""
    after = first
    for number, (line, length) in enumerate(rows.lines(source, start), first):
        start += length
        if line.strip() or length > rows.LONGEST:
            yield _Line(after, number, start, _item_of(line, length))
            after = number + 1


def _item_of(line: bytes, length: int) -> Any:
    try:
        if length > rows.LONGEST:
            raise ValueError(f"longer than {rows.LONGEST} bytes")
        return _parsed(line)
    except ValueError as error:
        return error


def _parsed(data: bytes) -> Any:
    """The value of JSON in UTF-8. Raises `ValueError`."""
    try:
        return json.loads(decoded(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _values(item: Any, fields: dict[str, str]) -> dict[str, Any]:
    """A row's values, or why it is `rejected`."""
    if isinstance(item, dict):
        return {name: item.get(field) for name, field in fields.items()}
    return {"rejected": ["bad_row", f"not JSON: {item}" if isinstance(item, ValueError) else "not an object"]}
