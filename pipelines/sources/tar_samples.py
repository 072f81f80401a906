"""What is in a tar of WebDataset's layout, found by its headers alone: the samples, and which bytes are their members.

Of several tars in one file, one behind the other, all are read.

The name of a sample is that of its members up to the first dot of the file's name, their extension what follows it. Folders,
links, sparse and hidden files, names without a dot and WebDataset's own `__names__` are no members, as WebDataset has it.
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

GZIP = b"\x1f\x8b"  # how compressed files begin
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_OWN = re.compile(r"__[^/]*__($|/)")
_AT_ONCE = 1 << 20


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    start: int  # its first byte's place in the tar, decompressed
    length: int


@dataclass
class Sample:
    """Members of one name, by extension in lower case; `again` counts those that were there before."""

    members: dict[str, Member] = field(default_factory=dict)
    again: Counter[str] = field(default_factory=Counter)


@dataclass
class Index:
    """The samples of a tar by name, in the order in which they begin."""

    samples: dict[str, Sample] = field(default_factory=dict)
    last: str | None = None  # the sample of the last member, be it complete or not
    damage: str = ""  # why there may have been more


def index(tar: BinaryIO) -> Index:
    """The samples of a tar; of one that is damaged, those before. Raises `tarfile.TarError` where it does not begin as a tar."""
    end, start, found = tar.seek(0, io.SEEK_END), 0, Index()
    while not found.damage and (start == 0 or start < end):
        tar.seek(start)
        try:
            with tarfile.open(fileobj=tar, mode="r:") as headers:
                _add_all(found, headers, end)
                found.damage = found.damage or _end_is_missing(tar, headers.offset)
                start = _after_zeros(tar, headers.offset)
        except tarfile.TarError:
            if start == 0:
                raise
            found.damage = f"no header at byte {start}"
    return found


def _add_all(found: Index, headers: tarfile.TarFile, end: int) -> None:
    try:
        while not found.damage and (header := headers.next()) is not None:
            headers.members = []  # type: ignore[attr-defined] # it keeps them all
            if header.isreg() and not header.issparse():
                _add(found, header, end)
    except (tarfile.TarError, ValueError) as error:
        found.damage = str(error)


def _add(found: Index, header: tarfile.TarInfo, end: int) -> None:
    # Bytes that are not UTF-8 become \xff, as text that can be stored.
    name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").removeprefix("./")
    parts = None if _OWN.match(name) or is_hidden(name) else _NAME.fullmatch(name)
    found.last = parts[1] if parts else found.last
    if header.offset_data + header.size > end:
        found.damage = f"ends within {name}"
    elif parts:
        sample, extension = found.samples.setdefault(parts[1], Sample()), parts[2].lower()
        if extension in sample.members:
            sample.again[extension] += 1
        else:
            sample.members[extension] = Member(name, header.offset_data, header.size)


def _end_is_missing(tar: BinaryIO, offset: int) -> str:
    """What is wrong where no header follows; the library takes anything for the end."""
    tar.seek(offset)
    block = tar.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        return f"ends at byte {offset} without a mark of its end"
    return f"no header at byte {offset}" if any(block) else ""


def _after_zeros(tar: BinaryIO, offset: int) -> int:
    """Where the blocks of zeros that end a tar end themselves: there another may begin, as `cat a.tar b.tar` leaves it."""
    tar.seek(offset)
    while piece := tar.read(_AT_ONCE):
        zeros = len(piece) - len(piece.lstrip(b"\0"))
        if zeros < len(piece):
            return offset + zeros // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        offset += len(piece)
    return offset


@contextmanager
def decompressed(file: BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """A .gz file's content on disk for as long as the block lasts, and what is wrong with it; then it is what comes before.

    Raises `Bomb`.
    """
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
