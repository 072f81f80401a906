"""What unpacks to more than it should is refused with a reason, before it fills a disk or a memory."""

import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipelines.io import archives
from pipelines.io.artifacts import resolve
from pipelines.sources import SourceSettings
from pipelines.sources.base import Pair, Rejected, Source
from pipelines.sources.rows import LONGEST
from tests.pipelines.rows import image, read
from tests.refusals import refused

ZEROS = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_SMALL", 2 * ZEROS)


def source_of(**tree: Any) -> Source:
    return TypeAdapter(SourceSettings).validate_python(tree)


def tar_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def outcome(source: Source) -> list[str]:
    return [row.reason if isinstance(row, Rejected) else row.captions[0] for row in read(source)]


def test_a_compressed_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    real = tempfile.TemporaryFile

    class Counted:
        def __init__(self, file: Any) -> None:
            self._file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: bytes) -> int:
            nonlocal written
            written += len(data)
            return self._file.write(data)

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **keys: Counted(real(**keys)))
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(tar_of(a_png=image(0), a_txt=b"a cat")))
    packed = gzip.compress(tar_of(b_png=image(1), b_txt=b"b", c_png=bytes(32 * ZEROS), c_txt=b"c"))
    (tmp_path / "1.tar.gz").write_bytes(packed)
    assert outcome(source_of(name="webdataset", paths=str(tmp_path / "*.gz"))) == ["a cat", "decompression_bomb"]
    assert written < 8 * ZEROS, "of 32 MiB"


@pytest.mark.parametrize("kind", ["a.csv.gz", "a.jsonl.gz", "a.json.gz"])
def test_compressed_rows(tmp_path: Path, kind: str) -> None:
    (tmp_path / "0.png").write_bytes(image(0))
    row = {"image": "0.png", "caption": "fine"}
    rows = {
        "a.csv.gz": "image,caption\n" + "0.png,fine\n" * 300 + "\n" * (8 * ZEROS),
        "a.jsonl.gz": (json.dumps(row) + "\n") * 300 + "\n" * (8 * ZEROS),
        "a.json.gz": json.dumps([row]) + " " * (8 * ZEROS),
    }
    (tmp_path / kind).write_bytes(gzip.compress(rows[kind].encode()))
    source = source_of(name="table" if "csv" in kind else "json", paths=str(tmp_path / kind))
    if kind == "a.json.gz":
        with refused("source.paths", kind, "100 times"):
            source.units()
    else:
        assert outcome(source) == ["fine"] * 300 + ["decompression_bomb"]


def test_no_file_may_become_larger_than_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LARGEST", 10_000)
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(tar_of(a_png=image(0), a_txt=b"a cat")))
    assert outcome(source_of(name="webdataset", paths=str(tmp_path / "0.tar.gz"))) == ["decompression_bomb"]


def test_long_texts_of_a_sample_are_not_read(tmp_path: Path) -> None:
    long = b"x " * LONGEST
    members = tar_of(a_png=image(0), a_txt=long, b_png=image(0), b_txt=b"fine", c_png=image(0), c_txt=b"c", c_cls=long)
    (tmp_path / "0.tar").write_bytes(members)
    assert outcome(source_of(name="webdataset", paths=str(tmp_path / "0.tar"), label="cls")) == ["bad_row", "fine", "bad_row"]
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(image(0))
    (tmp_path / "f" / "a.txt").write_bytes(long)
    assert outcome(source_of(name="folder", path=str(tmp_path / "f"))) == ["unreadable_file"]


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("kind", ["bomb", "dots", "absolute", "none", "lies"])
def test_zips_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "w.zip"
    if kind == "bomb":
        zipped(path, weights=bytes(8 * ZEROS))
    elif kind == "dots":
        zipped(path, **{"../../outside": b"x"})
    elif kind == "absolute":
        zipped(path, **{f"{tmp_path}/outside": b"x"})
    elif kind == "none":
        path.write_bytes(b"no zip")
    else:  # it says of a member that it is small
        zipped(path, weights=bytes(8 * ZEROS))
        data = path.read_bytes()
        path.write_bytes(data.replace((8 * ZEROS).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with refused("k", path):
        resolve(str(path), "k")
    assert not list(tmp_path.rglob("outside")) and not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_images_do_not_shrink_and_pass(tmp_path: Path) -> None:
    members = {f"{i}_png": image(i) for i in range(200)} | {f"{i}_txt": b"thing" for i in range(200)}
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(tar_of(**members)))
    assert (
        len([row for row in read(source_of(name="webdataset", paths=str(tmp_path / "0.tar.gz"))) if isinstance(row, Pair)]) == 200
    )
