"""Limits on the unpacked size of an archive or a compressed file: a megabyte of gzip can expand to a gigabyte and fill memory.

Real data compresses little: images not at all, text to a tenth, a padded tar of tiny files to a thirtieth.
"""

import gzip
import io
import shutil
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

from pipelines.io.retry import Missing

LARGEST = 64 << 30  # unpacked bytes of one file, whatever its packed size
_RATIO = 100
_SMALL = 64 << 20  # bytes up to which the ratio does not matter


class Bomb(Missing):
    """A file that unpacks to more than the limits."""

    reason = "decompression_bomb"


def check_size(size: int, packed: int) -> None:
    """Raises `Bomb` if `packed` bytes may not unpack to `size`."""
    if size > LARGEST:
        raise Bomb(f"unpacks to more than {LARGEST >> 30} GiB")
    if size > max(_SMALL, _RATIO * packed):
        raise Bomb(f"unpacks to more than {_RATIO} times its {packed:,} bytes; unpack it yourself if you trust it")


def gunzipped(file: BinaryIO) -> BinaryIO:
    """The content of a .gz file, for reading on. Reading raises `Bomb`, and what damaged files raise."""
    return cast(BinaryIO, io.BufferedReader(_Gunzipped(file), 1 << 20))


class _Gunzipped(io.RawIOBase):
    def __init__(self, file: BinaryIO) -> None:
        self._packed = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._source, self._size = gzip.GzipFile(fileobj=file), 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:  # type: ignore[override] # mypy has a protocol for buffers
        piece = self._source.read1(len(target))
        self._size += len(piece)
        check_size(self._size, self._packed)
        target[: len(piece)] = piece
        return len(piece)


def unzip(path: Path, folder: Path) -> None:
    """Unpack a zip; no member is written outside the folder. Raises `Missing`, `zipfile.BadZipFile`, `OSError`."""
    with zipfile.ZipFile(path) as archive:
        # The library reads no more of a member than its declared size.
        check_size(sum(member.file_size for member in archive.infolist()), path.stat().st_size)
        for member in archive.namelist():
            if not (folder / member).resolve().is_relative_to(folder.resolve()):
                raise Missing(f"contains {member!r}, which would be unpacked outside of the folder")
        try:
            archive.extractall(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
