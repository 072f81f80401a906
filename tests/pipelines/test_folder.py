"""The folder source: which files pair up, what is said about those that do not, and what becomes of bad caption files."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.data.files import files_in
from pipelines.io import storage
from pipelines.io.image_bytes import read_location
from pipelines.io.storage import Missing
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.shards import cut, list_units, read_part
from pipelines.program.settings_base import digest
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.folder import FolderSource
from tests.refusals import refused

IMAGE = b"encoded"  # the source never looks inside


def read(source: FolderSource) -> list[Pair | Rejected]:
    return [found for unit in source.units() for found in source.read(unit.data, images=True)]


def pairs(source: FolderSource) -> list[Pair]:
    found = read(source)
    assert all(isinstance(pair, Pair) for pair in found)
    return [pair for pair in found if isinstance(pair, Pair)]


def source_of(path: Path, **keys: object) -> FolderSource:
    return FolderSource.model_validate({"name": "folder", "path": path, **keys})


def test_images_pair_with_the_caption_file_of_the_same_stem(folder_of: Callable) -> None:
    root = folder_of(
        {
            "b.JPG": b"jpg",
            "b.txt": "  A Bee  \nand more\n",
            "deep/er/a.svg": b"svg",
            "deep/er/a.txt": "\n\n an ant\n",
            "deep/er/a.json": "goes with a.svg",
        }
    )
    found = pairs(source_of(root))
    assert [(p.key, read_location(p.location), p.captions, p.group) for p in found] == [
        ("b.JPG", b"jpg", ["A Bee"], "a bee"),
        ("deep/er/a.svg", b"svg", ["an ant"], "an ant"),
    ]
    assert found[0].origin == str(root / "b.JPG") and found[0].labels == {}


def test_all_lines_can_be_captions(folder_of: Callable) -> None:
    root = folder_of({"a.png": IMAGE, "a.txt": "\ufeffone\r\n\n  two \nthree"})
    assert pairs(source_of(root, captions="all_lines"))[0].captions == ["one", "two", "three"]
    assert pairs(source_of(root))[0].captions == ["one"]


def test_excluded_paths_are_left_out_and_folders_can_be_labels(folder_of: Callable) -> None:
    names = ["cats/tom", "cats/wild/leo", "symbols/x", "top"]
    root = folder_of({f"{n}.png": IMAGE for n in names} | {f"{n}.txt": n for n in names})
    found = pairs(source_of(root, exclude=["symbols/*"], label="kind"))
    assert {p.key: p.labels for p in found} == {
        "cats/tom.png": {"kind": "cats"},
        "cats/wild/leo.png": {"kind": "cats"},
        "top.png": {"kind": "(top)"},
    }


def test_other_extensions_can_be_asked_for(folder_of: Callable) -> None:
    root = folder_of({"a.png": IMAGE, "a.caption": "x", "b.bmp": IMAGE, "b.caption": "y"})
    first, second = read(source_of(root, extensions=[".bmp"], caption_extension=".caption", unpaired="reject"))
    assert isinstance(first, Pair) and first.key == "b.bmp" and first.captions == ["y"]
    assert isinstance(second, Rejected) and second.key == "a.caption"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"a.png": IMAGE, "a.txt": "x", "sub/b.png": IMAGE}, "sub/b.png"),
        ({"a.png": IMAGE, "a.txt": "x", "sub/c.txt": "y"}, "sub/c.txt"),
    ],
)
def test_a_lonely_file_stops_with_its_name_and_the_way_out(folder_of: Callable, files: dict, named: str) -> None:
    root = folder_of(files)
    with refused("source.path", root / named, remedy="source.unpaired=reject"):
        source_of(root).units()


def test_lonely_files_can_be_rejected_rows(folder_of: Callable) -> None:
    root = folder_of({"a.png": IMAGE, "a.txt": "x", "b.png": IMAGE, "c.txt": "y"})
    found = {row.key: row for row in read(source_of(root, unpaired="reject"))}
    assert isinstance(found["a.png"], Pair)
    assert {k: r.reason for k, r in found.items() if isinstance(r, Rejected)} == {
        "b.png": "missing_caption",
        "c.txt": "missing_image",
    }
    assert found["b.png"].origin == str(root / "b.png")


@pytest.mark.parametrize(
    ("caption", "reason"), [("", "empty_caption"), (" \n\t\n", "empty_caption"), (b"caf\xe9", "unreadable_file")]
)
def test_a_bad_caption_file_is_a_rejected_row(folder_of: Callable, caption: bytes | str, reason: str) -> None:
    root = folder_of({"a.png": IMAGE, "a.txt": caption, "b.png": IMAGE, "b.txt": "fine"})
    first, second = read(source_of(root))
    assert isinstance(first, Rejected) and (first.key, first.reason) == ("a.png", reason) and first.detail
    assert isinstance(second, Pair)


def test_a_name_that_is_no_utf8_costs_its_row_only(folder_of: Callable, png_of: Callable, tmp_path: Path) -> None:
    """On Linux a name is any bytes; a table, a manifest and a terminal hold text."""
    image = png_of(np.zeros((8, 8, 3), np.uint8))
    root = folder_of({"a.png": image, "a.txt": "a", "z.png": image, "z.txt": "z"})
    for name, data in ((b"caf\xe9.png", image), (b"caf\xe9.txt", b"coffee"), (b"d\xe9/x.png", image), (b"d\xe9/x.txt", b"x")):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    settings = PrepareSettings.model_validate({"source": {"name": "folder", "path": root}, "output": tmp_path / "out"})
    (part,) = cut(list_units(settings), 100)
    assert read_part(part, tmp_path / "content", settings) == {"": 4, "bad_row": 2}
    rows = pq.read_table(tmp_path / "content" / "00000.found.parquet").to_pylist()
    assert {row["key"]: row["detail"] for row in rows if row["reason"]} == dict.fromkeys(
        ("caf\\xe9.png", "d\\xe9/x.png"), "its name is not UTF-8; rename it"
    )
    assert len(digest([unit.data for unit in list_units(settings)])) == 32
    with refused(f"{root}/caf\\xe9.txt", remedy="rename"):
        storage.exists(os.fsdecode(os.fsencode(root) + b"/caf\xe9.txt"))
    with refused("data.x", "caf\\xe9.png", root, remedy="rename"):
        files_in(root, "data.x", "images")


def test_a_file_that_vanished_since_the_listing_is_a_rejected_row(folder_of: Callable) -> None:
    root = folder_of({f"{name}.{kind}": IMAGE for name in "ab" for kind in ("png", "txt")})
    source = source_of(root)
    units = source.units()
    (root / "a.txt").unlink()
    (root / "b.png").unlink()
    lost, pair = source.read(units[0].data, images=True)
    assert isinstance(lost, Rejected) and lost.reason == "unreadable_file"
    # Images are fetched by whoever needs them, who rejects the row.
    assert isinstance(pair, Pair)
    with pytest.raises(Missing):
        read_location(pair.location)


def test_words_that_tables_read_as_missing_are_captions(folder_of: Callable) -> None:
    root = folder_of({f"{w}.png": IMAGE for w in ("NA", "null")} | {f"{w}.txt": w for w in ("NA", "null")})
    assert [p.captions for p in pairs(source_of(root))] == [["NA"], ["null"]]


def test_nothing_to_read_is_an_error_that_names_the_key(folder_of: Callable, tmp_path: Path) -> None:
    root = folder_of({"a.txt": "x", "b.mp4": b"film"})
    with refused("source.path", ".jpg, ", root, remedy="source.exclude"):
        source_of(root).units()
    with refused("source.path", tmp_path / "nowhere", remedy="source.path=FOLDER"):
        source_of(tmp_path / "nowhere").units()
    with refused("source.path", root / "a.txt", remedy="source.path=FOLDER"):
        source_of(root / "a.txt").units()


def test_a_changed_file_is_a_changed_listing(folder_of: Callable) -> None:
    root = folder_of({"a.png": IMAGE, "a.txt": "x"})
    source = source_of(root)
    before = source.units()
    assert source.units() == before
    (root / "a.txt").write_text("other words")
    assert source.units() != before


def test_the_name_in_metrics_is_the_folders_or_the_given_one(tmp_path: Path) -> None:
    assert source_of(tmp_path / "Stamps").title() == "stamps"
    assert source_of(tmp_path / "Stamps", dataset="other").title() == "other"


def test_every_other_file_is_counted_once(folder_of: Callable) -> None:
    names = ["a.png", "a.txt", "a.json", "b.heic", "deep/README", "cover.bmp", "cover.txt"]
    found = read(source_of(folder_of(dict.fromkeys(names, "x"))))
    assert {row.key: getattr(row, "reason", "pair") for row in found} == {
        "a.png": "pair",
        "cover.bmp": "pair",
        "b.heic": "unknown_file",
        "deep/README": "unknown_file",
    }
