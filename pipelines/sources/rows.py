"""What tables and JSON files have in common: rows that name an image.

Finds text files, divides them into units that can be read separately, and turns a row's values into a `Pair`, or into a
`Rejected` with the reason.
"""

import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO

from pydantic import BeforeValidator, Field

from pipelines.io import storage
from pipelines.io.archives import gunzipped
from pipelines.io.http import is_web
from pipelines.io.image_bytes import Location
from pipelines.io.retry import is_text, shown_place
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import digest
from pipelines.program.text_lines import IS_UTF_16, UTF_16
from pipelines.sources.base import Pair, Rejected, Unit
from pipelines.sources.inside import REASON, is_inside

# Columns of open_clip (filepath, title), CyCLIP (image, caption), img2dataset (url, caption), LAION (URL, TEXT) and others.
IMAGE_NAMES = ("filepath", "image", "image_path", "path", "file_name", "url", "URL")
CAPTION_NAMES = ("caption", "text", "TEXT", "title")
# Names of files and folders that say nothing about the dataset.
_GENERIC = {"captions", "annotations", "metadata", "data", "train", "val", "validation", "test"}
ROWS_PER_UNIT = 256
LONGEST = 1 << 20  # maximum bytes of a row
DAMAGED = (EOFError, OSError, zlib.error)  # what reading a damaged gzip file raises


def _as_tuple(value: Any) -> Any:
    return (str(value),) if isinstance(value, str | Path) else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
"""Files by path, glob or braces; a single one needs no list."""


class Unreadable(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """A file that does not fit the settings.

    Args:
        problem: what is wrong, as a clause that follows the file's name.
        key: the setting that the file contradicts; `paths` where it is the file itself.
        remedy: as of a `UserError`.
    """

    def __init__(self, problem: str, key: str = "paths", remedy: str = "") -> None:
        super().__init__(problem, key, remedy)
        self.problem, self.key, self.remedy = problem, key, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


class _Bad(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """A row that cannot be used."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


def title_of(pattern: str) -> str:
    """A dataset's name from a path or pattern: the stem of the file, or the name of its folder if the stem is nothing but
    wildcards, numbers and generic words (captions_val2017.json of COCO).
    """
    fallback = ""
    for part in reversed(PurePosixPath(shown_place(pattern).split("?")[0] if storage.is_remote(pattern) else pattern).parts):
        name = re.sub(r"[^a-z0-9_-]+", "-", re.sub(r"\{.*?\}|\[.*?\]|[*?]", "", stem(part)).lower()).strip("-_")
        if not _GENERIC.issuperset(re.findall("[a-z]+", name)):
            return name
        fallback = fallback or name
    return fallback or "pairs"


def stem(path: str) -> str:
    """`captions` of `some/captions.csv.gz`."""
    name = storage.name_of(path)
    return PurePosixPath(name.removesuffix(".gz")).stem or name


def list_units(paths: tuple[str, ...], kinds: Sequence[str], units_of: Callable[[File, str], list[Unit]]) -> list[Unit]:
    """The units of every file, in order. `units_of` takes a file and the prefix of its keys, and may raise `Unreadable`.

    If a pattern matches files with one of these endings (`kinds`) and others, the others are ignored: a folder may hold the
    images too. A file that cannot be read gives one rejected row. Raises `UserError` if no file can be read, or if the first
    readable one contradicts the settings.
    """
    files: dict[str, File] = {}
    for path in paths:
        matches = storage.find(path, "source.paths")
        of_kind = [file for file in matches if file.path.removesuffix(".gz").endswith(tuple(kinds))]
        files |= {file.path: file for file in of_kind or matches}
    prefixes = prefixes_of(list(files))
    units = units_of_files([(file, prefixes[path]) for path, file in files.items()], units_of)
    if not units:
        raise UserError("source.paths", f"there are no rows in {', '.join(paths)}", "check the paths")
    return units


def units_of_files(
    files: Sequence[tuple[File, str]], units_of: Callable[[File, str], list[Unit]], key: str = "paths"
) -> list[Unit]:
    """The units of files, each given with the prefix of its keys, as in `list_units`. `key`: the setting that names the files."""

    def attempt(file: File, prefix: str) -> list[Unit] | Unreadable:
        try:
            if not is_text(file.path):
                raise Unreadable("has a name that is not UTF-8", remedy="rename it")
            if file.size == 0:
                raise Unreadable("is empty")
            return units_of(file, prefix)
        except Unreadable as unreadable:
            return unreadable
        except Missing as missing:
            return Unreadable(f"cannot be read: {missing}")

    units: list[Unit] = []
    first_error, any_read = None, False
    # Remote files are slow to answer, so many are asked at once.
    with ThreadPoolExecutor(32 if any(storage.is_remote(file.path) for file, _ in files) else 1) as pool:
        for (file, prefix), result in zip(files, pool.map(lambda pair: attempt(*pair), files), strict=True):
            if isinstance(result, list):
                any_read = True
                units += result
                continue
            setting = key if result.key == "paths" else result.key
            error = UserError(f"source.{setting}", f"{shown_place(file.path)} {result.problem}", result.remedy)
            if setting != key and not any_read:
                pool.shutdown(wait=False, cancel_futures=True)
                raise error
            first_error = first_error or error
            data = {"file": file.path, "prefix": prefix, "size": file.size, "changed": file.changed}
            units.append(Unit({**data, "damage": str(result)}, rows=1, splits=("",)))
    if first_error is not None and not any_read:
        raise first_error
    return units


def prefixes_of(paths: list[str]) -> dict[str, str]:
    """The prefix of each file's keys: its stem, preceded by as many folders as are needed to tell equal stems apart."""
    parts = {path: (*PurePosixPath(shown_place(path)).parts[:-1], stem(path)) for path in paths}
    result: dict[str, str] = {}
    for length in range(1, max(len(p) for p in parts.values()) + 1):
        names = {path: "/".join(parts[path][-length:]) for path in paths if path not in result}
        count = Counter(names.values())
        result |= {path: name for path, name in names.items() if count[name] == 1}
    # The rest differ only in what follows the stem, such as a.csv and a.tsv, or a URL's query.
    left = Counter(shown_place(path) for path in paths if path not in result)
    return {path: result.get(path) or (shown_place(path) if left[shown_place(path)] == 1 else digest(path)) for path in paths}


def usual_name(key: str, usual: Sequence[str], names: Sequence[str]) -> str:
    """The first of the usual names that is among these. Raises `Unreadable`."""
    for name in usual:
        if name in names:
            return name
    problem = f"has none of {', '.join(usual)}, but: {', '.join(map(repr, names))}"
    raise Unreadable(problem, key, f"pass source.{key}=NAME")


def in_one_piece(path: str) -> bool:
    """Whether a file can only be read from its beginning."""
    return path.endswith(".gz") or is_web(path)


@contextmanager
def stream(path: str) -> Iterator[BinaryIO]:
    """A file's decompressed bytes, from the beginning. Raises `Missing`."""
    if is_web(path):
        with io.BytesIO(storage.read(path)) as raw:
            yield _decompressed(raw, path)
        return
    with storage.local_copy(path) as local:
        try:
            opened = local.open("rb", buffering=1 << 20)
        except OSError as error:
            raise Missing(f"{error.strerror or error}") from None
        with opened as raw:
            yield _decompressed(raw, path)


def _decompressed(raw: BinaryIO, path: str) -> BinaryIO:
    return gunzipped(raw) if path.endswith(".gz") else raw


def read_unit(unit: Any, read: Callable[[BinaryIO, Any], Iterator[Pair | Rejected]]) -> Iterator[Pair | Rejected]:
    """The rows that `read` finds in a unit's bytes; if they cannot be read to the end, a last, rejected row says why."""
    file, prefix = unit["file"], unit["prefix"]
    if "damage" in unit:
        yield Rejected(prefix, file, "unreadable_file", unit["damage"])
        return
    try:
        if unit["bytes"] is None:
            with stream(file) as whole:
                yield from read(whole, unit)
        else:
            yield from read(io.BytesIO(storage.read(file, unit["start"], unit["bytes"])), unit)
    except (Missing, Unreadable) as problem:
        yield rejected_file(prefix, file, problem)
    except DAMAGED as error:
        yield Rejected(prefix, file, "truncated_archive", f"{error}; the rows before it are kept")


def rejected_file(prefix: str, file: str, problem: Missing | Unreadable) -> Rejected:
    """The rejected row of a file that cannot be read at all."""
    return Rejected(prefix, file, getattr(problem, "reason", "") or "unreadable_file", str(problem))


def lines(source: BinaryIO, start: int) -> Iterator[tuple[bytes, int]]:
    """Each line with its length in bytes; a line above `LONGEST` comes without its text. A byte order mark at 0 is left out.

    Raises `Unreadable` for UTF-16.
    """
    while line := source.readline(LONGEST + 1):
        length = len(line)
        if start == 0 and line.startswith(UTF_16):
            raise Unreadable(f"is not UTF-8: {IS_UTF_16}")
        if length > LONGEST:
            while not line.endswith(b"\n") and (line := source.readline(LONGEST)):
                length += len(line)
            line = b""
        if start == 0 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
        start += length
        yield line, length


def byte_ranges(rows: Iterable[tuple[int, int]], start: int) -> Iterator[tuple[dict[str, int], int]]:
    """Ranges of up to `ROWS_PER_UNIT` rows, each with its number of rows; `rows` gives each row's number and end offset.

    A range is part of a unit's data: its `start` in the file, its `bytes`, and the number of its `first` row.
    """
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS_PER_UNIT)):
        end = chunk[-1][1]
        yield {"start": start, "bytes": end - start, "first": chunk[0][0]}, len(chunk)
        start = end


def folder_of(path: str) -> Place:
    """The folder of a file."""
    return path.rpartition("/")[0] if storage.is_remote(path) else Path(path.removeprefix("file://")).parent


def pair_of(
    number: str,
    origin: str,
    root: Place,
    *,
    image: Any,
    captions: Any,
    key: Any = None,
    group: Any = None,
    labels: dict[str, Any],
    outside: bool,
) -> Pair | Rejected:
    """The pair that a row's values describe, or why the row is rejected.

    Args:
        number: the key of a row without a key of its own.
        origin: names the row if it is rejected; a pair is named by its image.
        root: where relative paths start.
        image: a path or URL.
        captions: one, or a list; in a list, nulls are left out, and so are empty ones if another remains.
        key, group, labels: text or numbers; null and empty mean none.
        outside: whether the image may lie outside of `root`.
    """
    try:
        if image is None or (isinstance(image, str) and not image.strip()):
            raise _Bad("missing_image", "no path")
        if not isinstance(image, str):
            raise _Bad("bad_row", f"the image is {_kind(image)}")
        if "\0" in image:
            raise _Bad("bad_row", "a NUL in the path of the image")
        texts = _captions(captions)
        label_texts = {name: text for name, value in labels.items() if (text := _text(value, f"label '{name}'")) is not None}
        key_text, group_text = _text(key, "key"), _text(group, "group")
        "".join([image, *texts, *label_texts.values(), key_text or "", group_text or ""]).encode()
    except _Bad as bad:
        return Rejected(number, origin, bad.reason, str(bad))
    except UnicodeEncodeError:
        return Rejected(number, origin, "bad_row", "text that is not valid UTF-8")
    file = image if storage.is_remote(image) or image.startswith(("/", "file://")) else _below(root, image)
    if not outside and not is_inside(file, root):
        where = f"{shown_place(file)} lies outside of {shown_place(root)}"
        return Rejected(number, origin, REASON, f"{where}; pass source.root=FOLDER, or source.outside=true for any place")
    return Pair(key_text or number, shown_place(file), Location(file), texts, group_text or texts[0].lower(), label_texts)


def _below(root: Place, image: str) -> str:
    """A path in a folder; a backslash counts as a slash, as in tables from Windows, unless a file has that very name."""
    file = str(storage.join(root, image))
    windows = "\\" in image and isinstance(root, Path) and not os.path.lexists(file)
    return str(storage.join(root, image.replace("\\", "/"))) if windows else file


def _captions(value: Any) -> list[str]:
    texts: list[str] = []
    for item in value if isinstance(value, list) else [value]:
        # Karpathy's splits store a caption as {"raw": caption}.
        text = item["raw"] if isinstance(item, dict) and "raw" in item else item
        if isinstance(text, str):
            texts.append(text)
        elif text is not None:
            raise _Bad("bad_row", f"the caption is {_kind(text)}")
    if not texts:
        raise _Bad("missing_caption", "no caption")
    return [text for text in texts if text.strip()] or texts[:1]


def _text(value: Any, what: str) -> str | None:
    if isinstance(value, list | dict):
        raise _Bad("bad_row", f"the {what} is {_kind(value)}")
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None or value == "" else str(value)


def _kind(value: Any) -> str:
    """A JSON value's type in words."""
    return {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]
