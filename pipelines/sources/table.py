"""Tables in text files, .csv or .tsv (also .gz), with a column of image paths or URLs, and columns of captions.

A file is streamed once to find where its rows end; then ranges of bytes are read separately. Compressed files, and those
behind http(s), are read as a whole.

With quoting, a closing quote must be followed by a separator or the row's end. If it is not, or if a row of several lines has
the wrong number of fields, its first line is a bad row and reading continues with the next line, so no row is swallowed.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator, model_validator

from pipelines.io.storage import File
from pipelines.program.path_keys import Place
from pipelines.sources import rows
from pipelines.sources.base import Pair, Rejected, Source, Unit
from pipelines.sources.inside import Outside
from pipelines.sources.rows import CAPTION_NAMES, IMAGE_NAMES, Paths, Unreadable

Column = int | str  # position or name
# A tab is hard to type in shells and editors.
Separator = Annotated[str, BeforeValidator(lambda value: "\t" if value == "\\t" else value), Field(pattern=r'^[^"\r\n]$')]
_BY_POSITION = "source.image=0 source.caption=1"
_INVALID = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, decoded with surrogateescape


class TableSource(Source):
    """Rows of .csv or .tsv files: a path or URL of an image, and its captions."""

    name: Literal["table"]
    paths: Paths = Field(description="files, as paths, globs, {00..99} or {a,b}; a folder stands for the tables below it")
    separator: Separator | None = Field(None, description="between fields; null: tab for .tsv, comma for others")
    quoting: bool | None = Field(None, description="whether quotes enclose fields; null: not for .tsv, yes for others")
    header: bool | None = Field(None, description="whether the first row names the columns; null: unless columns are numbers")
    image: Column | None = Field(
        None, description=f"column of paths or URLs, or its position from 0; null: {', '.join(IMAGE_NAMES)}"
    )
    caption: Column | tuple[Column, ...] | None = Field(
        None, description=f"column of captions, or several such columns; null: {', '.join(CAPTION_NAMES)}"
    )
    root: Place | None = Field(None, description="where relative paths of images start; null: the table's folder")
    outside: Outside = False
    label: Column | None = Field(None, description="column of a label")
    columns: tuple[Column, ...] = Field(
        (), description="further columns, kept as labels too: hard negatives, weights, or more classes"
    )
    group: Column | None = Field(None, description="column of groups, which stay in one split; null: the first caption")
    key: Column | None = Field(None, description="column of unique names of the rows; null: FILE:ROW")

    @field_validator("image", "caption", "label", "columns", "group", "key")
    @classmethod
    def _positions_count_from_0(cls, value: Any) -> Any:
        for column in value if isinstance(value, tuple) else (value,):
            if isinstance(column, int) and column < 0:
                raise ValueError(f"there is no position {column}; positions count from 0")
        return value

    @model_validator(mode="after")
    def _positions_without_header(self) -> "TableSource":
        if not self._has_header():
            if self.image is None or self.caption is None:
                raise ValueError("without a header, columns are given by position; pass, for example, " + _BY_POSITION)
            for key, column in self._columns():
                if isinstance(column, str):
                    raise ValueError(f"{key}: there is no column '{column}' without a header; give its position, from 0")
        return self

    def title(self) -> str:
        return self.dataset or rows.title_of(self.paths[0])

    def units(self) -> list[Unit]:
        return rows.list_units(self.paths, (".csv", ".tsv"), self.units_of)

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        yield from rows.read_unit(unit, self._read)

    def units_of(self, file: File, prefix: str) -> list[Unit]:
        """The units of one file, whose keys begin with `prefix`. Raises `Unreadable`, `Missing`."""
        with rows.stream(file.path) as source:
            records = _records(source, 0, *self._form(file.path))
            # The header tells the columns, or else the first well-formed row.
            head: list[_Record] = []
            try:
                for record in records:
                    head.append(record)
                    if self._has_header() or not record.problem:
                        break
            except rows.DAMAGED as error:
                raise Unreadable(f"cannot be read: {error}") from None
            if not head:
                raise Unreadable("is empty")
            columns = self._layout(head[-1])
            data = {"file": file.path, "prefix": prefix, "size": file.size, "changed": file.changed, "columns": columns}
            if rows.in_one_piece(file.path):
                return [Unit({**data, "bytes": None, "start": 0, "first": 1}, rows=None)]
            after = head[0].end if self._has_header() else 0
            numbered = enumerate(records if after else chain(head, records), 1)
            ranges = rows.byte_ranges(((number, record.end) for number, record in numbered), after)
            return [Unit({**data, **range_of}, rows=count) for range_of, count in ranges]

    def _read(self, source: BinaryIO, unit: Any) -> Iterator[Pair | Rejected]:
        records = _records(source, unit["start"], *self._form(unit["file"]), unit["columns"]["width"])
        if unit["bytes"] is None and self._has_header():
            next(records, None)
        for number, record in enumerate(records, unit["first"]):
            yield self._pair(record, unit, number)

    def _pair(self, record: "_Record", unit: Any, number: int) -> Pair | Rejected:
        key, origin, columns = f"{unit['prefix']}:{number}", f"{unit['file']}, row {number}", unit["columns"]
        if record.problem:
            return Rejected(key, origin, "bad_row", record.problem)
        cells = {
            name: None if columns[name] is None else record.fields[columns[name]] for name in ("image", "label", "group", "key")
        }
        captions = [record.fields[column] for column in columns["caption"]]
        label = self.label if isinstance(self.label, str) else "label"
        names = [name if isinstance(name, str) else f"column_{name}" for name in self.columns]
        further = {name: record.fields[column] for name, column in zip(names, columns["columns"], strict=True)}
        return rows.pair_of(
            key,
            origin,
            self.root or rows.folder_of(unit["file"]),
            image=cells["image"],
            captions=captions,
            key=cells["key"],
            group=cells["group"],
            labels={label: cells["label"]} | further,
            outside=self.outside,
        )

    def _form(self, path: str) -> tuple[str, bool]:
        """Separator and quoting of a file."""
        tabs = path.removesuffix(".gz").endswith(".tsv")
        return self.separator or ("\t" if tabs else ","), not tabs if self.quoting is None else self.quoting

    def _columns(self) -> list[tuple[str, str | int]]:
        """(setting, column) of every setting that names a column."""
        captions = self.caption if isinstance(self.caption, tuple) else (self.caption,)
        pairs = [("image", self.image), ("label", self.label), ("group", self.group), ("key", self.key)]
        pairs += [*(("columns", column) for column in self.columns), *(("caption", column) for column in captions)]
        return [(key, column) for key, column in pairs if column is not None]

    def _has_header(self) -> bool:
        return not any(isinstance(column, int) for _, column in self._columns()) if self.header is None else self.header

    def _layout(self, first: "_Record") -> dict[str, Any]:
        """The number of fields of a row (`width`) and the positions of the columns, from the first row of a file."""
        names = [field.strip() for field in first.fields] if self._has_header() else []
        text, width = "".join(names), len(first.fields)
        if first.problem:
            raise Unreadable(f"does not begin with a row: {first.problem}")
        if "\0" in text or _INVALID.search(text):
            raise Unreadable("is not text in UTF-8")
        if width == 1:
            problem = f"has only one column, which begins with {first.fields[0][:80]!r}"
            raise Unreadable(problem, "separator", _separator_remedy(first.fields[0]))
        wanted = self._columns()
        for key, usual in (("image", IMAGE_NAMES), ("caption", CAPTION_NAMES)):
            if not any(key == other for other, _ in wanted):
                wanted.append((key, _usual_name(key, usual, names)))
        positions = [(key, _position(key, column, names, width)) for key, column in wanted]
        layout: dict[str, Any] = {"width": width, "label": None, "group": None, "key": None, **dict(positions)}
        return layout | {
            several: [position for key, position in positions if key == several] for several in ("caption", "columns")
        }


def _usual_name(key: str, usual: Sequence[str], names: list[str]) -> str:
    try:
        return rows.usual_name(key, usual, names)
    except Unreadable as error:
        remedy = f"{error.remedy}, or, if the first row is no header, source.header=false {_BY_POSITION}"
        raise Unreadable(error.problem, error.key, remedy) from None


def _separator_remedy(line: str) -> str:
    """A remedy that names the separator which the line appears to have."""
    separator = next((sign for sign in (";", "\t", "|", ",") if sign in line), None)
    return "check source.separator" if separator is None else f"pass source.separator={json.dumps(separator)}"


def _position(key: str, column: str | int, names: list[str], width: int) -> int:
    if isinstance(column, int):
        if column >= width:
            problem = f"has {width} columns, so there is none at position {column}"
            raise Unreadable(problem, key, f"pass a position from 0 to {width - 1}")
        return column
    if column not in names:
        raise Unreadable(f"has no column '{column}'", key, f"its columns are: {', '.join(map(repr, names))}")
    return names.index(column)


class _Record(NamedTuple):
    """A row's fields, its problem ("" for none), and the offset of its end in the file."""

    fields: list[str]
    problem: str
    end: int


def _records(source: BinaryIO, start: int, separator: str, quoting: bool, width: int | None = None) -> Iterator[_Record]:
    """The rows from an offset of the file, without blank lines. Rows have `width` fields, by default as many as the first."""
    feed, end = _Feed(source, start), start
    parsed = csv.reader(feed, delimiter=separator, strict=True)
    while True:
        fields, problem = [], ""
        try:
            fields = next(parsed) if quoting else next(feed).removesuffix("\n").removesuffix("\r").split(separator)
        except StopIteration:
            if feed.damage:
                raise feed.damage from None
            return
        except csv.Error as error:
            problem = str(error)
        blank = not problem and fields in ([], [""])
        if not problem and not blank and width is not None and len(fields) != width:
            problem = f"{len(fields)} fields instead of {width}"
        if problem and (feed.several() or problem == "unexpected end of data"):
            problem = "a quote that does not close where a field ends"
        end += feed.settle(first_only=bool(problem))
        if not blank:
            width = len(fields) if width is None and not problem else width
            yield _Record(fields, problem, end)


class _Feed:
    """Feeds lines to the csv reader, counts their bytes, and feeds them again if a quote turns out not to close."""

    def __init__(self, source: BinaryIO, start: int) -> None:
        self._lines = rows.lines(source, start)
        self._again: list[tuple[bytes, int]] = []  # to be fed again, last first
        self._taken: list[tuple[bytes, int]] = []  # of the current row
        self._size = 0
        self.damage: Exception | None = None  # what ended the lines too early

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        try:
            line, length = self._again.pop() if self._again else next(self._lines)
        except rows.DAMAGED as error:
            self.damage = error
            raise StopIteration from None
        self._taken.append((line, length))
        self._size += length
        if self._size > rows.LONGEST:
            raise csv.Error(f"longer than {rows.LONGEST} bytes")
        return line.decode("utf-8", "surrogateescape")

    def several(self) -> bool:
        """Whether the row has several lines."""
        return len(self._taken) > 1

    def settle(self, first_only: bool) -> int:
        """End the row and return its bytes: those of all its lines, or only of the first; then the others are fed again."""
        if first_only:
            self._again += reversed(self._taken[1:])
            del self._taken[1:]
        size = sum(length for _, length in self._taken)
        self._taken.clear()
        self._size = 0
        return size
