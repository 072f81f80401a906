"""The samples in a tar of WebDataset's layout, and the byte ranges of their members, from the tar's headers alone.

Several tars concatenated in one file are all read.

A sample's name is its members' path up to the first dot of the file name; a member's extension is what follows that dot. As in
WebDataset, folders, links, sparse and hidden files, names without a dot and WebDataset's own `__names__` are not members.
"""

import gzip
import io
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple, cast

from pipelines.dataset.image_formats import is_hidden
from pipelines.io.archives import gunzipped

GZIP = b"\x1f\x8b"  # first bytes of compressed files
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_OWN = re.compile(r"__[^/]*__($|/)")
_AT_ONCE = 1 << 20  # bytes


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    start: int  # offset of its first byte in the decompressed tar
    length: int


@dataclass
class Sample:
    """Members of one name, by extension in lower case; `repeated` counts further members with the same extension."""

    members: dict[str, Member] = field(default_factory=dict)
    repeated: Counter[str] = field(default_factory=Counter)


@dataclass
class Index:
    """The samples of a tar by name, in the order of their first members."""

    samples: dict[str, Sample] = field(default_factory=dict)
    last: str | None = None  # the sample of the last member, which may be incomplete
    damage: str = ""  # why samples may be missing


def index(tar: BinaryIO) -> Index:
    """The samples of a tar, up to any damage. Raises `tarfile.TarError` if the file does not begin as a tar."""
    end, start, result = tar.seek(0, io.SEEK_END), 0, Index()
    while not result.damage and (start == 0 or start < end):
        tar.seek(start)
        try:
            with tarfile.open(fileobj=tar, mode="r:") as headers:
                _add_all(result, headers, end)
                result.damage = result.damage or _end_is_missing(tar, headers.offset)
                start = _after_zeros(tar, headers.offset)
        except tarfile.TarError:
            if start == 0:
                raise
            result.damage = f"no header at byte {start}"
    return result


def _add_all(result: Index, headers: tarfile.TarFile, end: int) -> None:
    try:
        while not result.damage and (header := headers.next()) is not None:
            headers.members = []  # type: ignore[attr-defined] # else it keeps all of them
            if header.isreg() and not header.issparse():
                _add(result, header, end)
    except (tarfile.TarError, ValueError) as error:
        result.damage = str(error)


def _add(result: Index, header: tarfile.TarInfo, end: int) -> None:
    # Bytes that are not UTF-8 are written as \xff, so that the name can be stored.
    name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").removeprefix("./")
    parts = None if _OWN.match(name) or is_hidden(name) else _NAME.fullmatch(name)
    result.last = parts[1] if parts else result.last
    if header.offset_data + header.size > end:
        result.damage = f"ends within {name}"
    elif parts:
        sample, extension = result.samples.setdefault(parts[1], Sample()), parts[2].lower()
        if extension in sample.members:
            sample.repeated[extension] += 1
        else:
            sample.members[extension] = Member(name, header.offset_data, header.size)


def _end_is_missing(tar: BinaryIO, offset: int) -> str:
    """The damage if the tar does not end properly; the library accepts anything that is not a header as the end."""
    tar.seek(offset)
    block = tar.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"ends at byte {offset} without an end-of-archive block"
    return f"no header at byte {offset}" if any(block) else ""


def _after_zeros(tar: BinaryIO, offset: int) -> int:
    """The offset after the zero blocks that end a tar, where another tar may begin, as in the output of `cat a.tar b.tar`."""
    tar.seek(offset)
    while piece := tar.read(_AT_ONCE):
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return offset + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        offset += len(piece)
    return offset


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """A .gz file's content as a temporary file, and its damage ("" for none), before which the content ends. Raises `Bomb`."""
    with tempfile.TemporaryFile(prefix="raylign-") as target:
        damage = ""
        source = gunzipped(file)
        while True:
            try:
                piece = source.read1(_AT_ONCE)  # type: ignore[attr-defined] # a buffered reader has it
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                damage = str(error)
                break
            if not piece:
                break
            target.write(piece)
        yield cast(BinaryIO, target), damage
