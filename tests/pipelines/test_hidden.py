"""What systems and programs leave beside people's files is no part of any source's data, wherever it lies."""

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forms import FORMS, Given

from pipelines.dataset.image_formats import is_hidden, is_image
from pipelines.prepare.config import PrepareSettings
from pipelines.sources.base import Pair, Rejected

HIDDEN = (
    "._{name}",
    ".{name}",
    ".ipynb_checkpoints/{name}",
    ".Trashes/501/{name}",
    "__MACOSX/{name}",
    "__MACOSX/deep/._{name}",
    "deep/__MACOSX/{name}",
    "Thumbs.db",
    "desktop.ini",
    ".DS_Store",
)
PAIRS = [Given(f"{i}.png", b"image %d" % i, f"caption {i}") for i in range(4)]


@pytest.mark.parametrize("pattern", HIDDEN)
def test_what_is_hidden(pattern: str) -> None:
    assert is_hidden(pattern.format(name="a.jpg")) and is_hidden("dogs/" + pattern.format(name="a.jpg"))


@pytest.mark.parametrize("name", ["a.jpg", "a.b/c.jpg", "./a.jpg", "../a.jpg", "x/./a.jpg", "MACOSX/a.jpg", "my__MACOSX/a"])
def test_what_is_not_hidden(name: str) -> None:
    assert not is_hidden(name)


def test_endings_count_in_any_case() -> None:
    assert is_image("a.JPG") and is_image("a.b.Bmp") and not is_image("a.txt") and not is_image("jpg")


def read(source: dict[str, Any]) -> Iterator[Pair | Rejected]:
    found = PrepareSettings.model_validate({"source": source, "output": "/unused"}).source
    for unit in found.units():
        yield from found.read(unit.data, images=True)


def classes(root: Path, pairs: list[Given]) -> dict[str, Any]:
    for pair in pairs:
        (root / "dog").mkdir(parents=True, exist_ok=True)
        (root / "dog" / pair.name).write_bytes(pair.image)
    return {"name": "classes", "path": str(root)}


@pytest.mark.parametrize("form", [classes, *FORMS.values()], ids=lambda form: form.__name__)
def test_no_source_reads_hidden_files(tmp_path: Path, form: Callable) -> None:
    """Every file of a source once more under each hidden name; a source of paths is given the folder that its files are in."""
    source = form(tmp_path / "data", PAIRS)
    if "paths" in source:
        source["paths"] = str(Path(source["paths"]).parent)
    before = list(read(source))
    files = [file for file in (tmp_path / "data").rglob("*") if file.is_file()]
    for file in files:
        for pattern in HIDDEN:
            hidden = file.parent / pattern.format(name=file.name)
            hidden.parent.mkdir(parents=True, exist_ok=True)
            hidden.write_bytes(file.read_bytes())
    assert list(read(source)) == before and sum(isinstance(row, Pair) for row in before) == len(PAIRS)


def test_hidden_members_of_a_tar_are_none(tmp_path: Path) -> None:
    """As macOS packs folders: every member has another beside it, with the attributes of its file."""
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for stem in ("dogs/rex", *(pattern.format(name="rex") for pattern in HIDDEN[:7])):
            for ending, data in ((".jpg", b"image"), (".txt", b"a dog")):
                member = tarfile.TarInfo(stem + ending)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    assert [row.key for row in read({"name": "webdataset", "paths": str(tmp_path / "0.tar")})] == ["0/dogs/rex"]


def test_a_wildcard_finds_nothing_hidden(tmp_path: Path) -> None:
    """A name that is written out finds what it says."""
    for name in ("a.csv", "._a.csv", "__MACOSX/b.csv", "deep/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("filepath,title\nx.jpg,y\n")
    assert [row.key for row in read({"name": "table", "paths": str(tmp_path / "**/*.csv")})] == ["a:1", "c:1"]
    assert [row.key for row in read({"name": "table", "paths": str(tmp_path / "__MACOSX/b.csv")})] == ["b:1"]
