"""Rows name files below their source's folder alone, unless the settings say otherwise; URLs leave no secret behind."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from pipelines.io.image_bytes import read_location
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.cli import run_program
from pipelines.program.display import Display
from pipelines.sources import SourceSettings
from pipelines.sources.base import Pair, Rejected, Source
from pipelines.sources.inside import is_inside
from tests.pipelines.rows import image, read
from tests.refusals import refused

SECRET = "the content of a file that is none of the data's business"


def source_of(tree: dict[str, Any], **keys: object) -> Source:
    return TypeAdapter(SourceSettings).validate_python(tree | keys)


def _csv(root: Path, images: list[str]) -> dict[str, Any]:
    with (root / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((image, "x") for image in images)])
    return {"name": "table", "paths": str(root / "a.csv")}


def _jsonl(root: Path, images: list[str]) -> dict[str, Any]:
    (root / "a.jsonl").write_text("".join(json.dumps({"image": image, "caption": "x"}) + "\n" for image in images))
    return {"name": "json", "paths": str(root / "a.jsonl")}


def _coco(root: Path, images: list[str]) -> dict[str, Any]:
    files = [{"id": i, "file_name": image} for i, image in enumerate(images)]
    notes = [{"image_id": i, "caption": "x"} for i in range(len(images))]
    (root / "a.json").write_text(json.dumps({"images": files, "annotations": notes}))
    return {"name": "json", "paths": str(root / "a.json")}


def _karpathy(root: Path, images: list[str]) -> dict[str, Any]:
    rows = [{"filename": image, "split": "train", "sentences": [{"raw": "x"}]} for image in images]
    (root / "a.json").write_text(json.dumps({"images": rows}))
    return {"name": "json", "paths": str(root / "a.json")}


def _parquet(root: Path, images: list[str]) -> dict[str, Any]:
    pq.write_table(pa.table({"image_path": images, "caption": ["x"] * len(images)}), root / "a.parquet")
    return {"name": "parquet", "paths": str(root / "a.parquet")}


def _structs(root: Path, images: list[str]) -> dict[str, Any]:
    cells = pa.array([{"bytes": None, "path": image} for image in images], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": cells, "caption": ["x"] * len(images)}), root / "train.parquet")
    return {"name": "huggingface", "path": str(root)}


def _image_folder(root: Path, images: list[str]) -> dict[str, Any]:
    (root / "metadata.jsonl").write_text("".join(json.dumps({"file_name": i, "text": "x"}) + "\n" for i in images))
    return {"name": "huggingface", "path": str(root)}


KINDS: dict[str, Callable[[Path, list[str]], dict[str, Any]]] = {
    one.__name__.strip("_"): one for one in (_csv, _jsonl, _coco, _karpathy, _parquet, _structs, _image_folder)
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source's folder with an image and ways out of it, and a secret beside it."""
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "data-more").mkdir()
    (root / "in.png").write_bytes(image(0))
    for path in (tmp_path / "secret", tmp_path / "data-more" / "secret"):
        path.write_text(SECRET)
    (root / "link.png").symlink_to(tmp_path / "secret")
    (root / "folder-link").symlink_to(tmp_path / "data-more")
    (root / "inner-link.png").symlink_to(root / "in.png")
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_leaves_the_folder_is_rejected_unread(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.parent)
    inside = ["in.png", "./in.png", "sub/../in.png", str(place / "in.png"), f"file://{place}/in.png", "inner-link.png"]
    outside = ["../secret", "sub/../../secret", str(place.parent / "secret"), f"file://{place.parent}/secret", "link.png"]
    outside += [
        "folder-link/secret",
        "../data-more/secret",
        f"local://{place.parent}/secret",
        "s3://bucket/secret",
        "/etc/passwd",
    ]
    outside += [f"FILE://{place.parent}/secret", f"simplecache::file://{place.parent}/secret", ".."]
    tree = KINDS[kind](place, [*inside, *outside])
    found = read(source_of(tree))
    kept = [row for row in found if isinstance(row, Pair)]
    assert [read_location(pair.location) for pair in kept] == [image(0)] * len(inside)
    lost = [row for row in found if isinstance(row, Rejected)]
    assert [row.reason for row in lost] == ["outside_root"] * len(outside)
    assert all("source.root" in row.detail and "source.outside=true" in row.detail for row in lost)
    assert len([row for row in read(source_of(tree, outside=True)) if isinstance(row, Pair)]) == len(inside) + len(outside)


def test_another_root_is_asked_for_by_its_key(place: Path) -> None:
    elsewhere = place.parent / "data-more"
    (elsewhere / "a.png").write_bytes(image(1))
    tree = _csv(place, ["a.png", str(elsewhere / "a.png"), str(place / "in.png")])
    found = read(source_of(tree, root=str(elsewhere)))
    assert [isinstance(row, Pair) for row in found] == [True, True, False]


def test_links_out_of_a_folder_of_images(place: Path) -> None:
    for name in ("in", "link", "inner-link"):
        (place / f"{name}.txt").write_text("a caption")
    (place / "sub" / "text.png").write_bytes(image(2))
    (place / "sub" / "text.txt").symlink_to(place.parent / "secret")
    tree = {"name": "folder", "path": str(place)}
    found = {row.key: row.reason if isinstance(row, Rejected) else row.captions for row in read(source_of(tree))}
    assert found == {
        "in.png": ["a caption"],
        "inner-link.png": ["a caption"],
        "link.png": "outside_root",
        "sub/text.png": "outside_root",
        "folder-link/secret": "unknown_file",  # named, never read
    }
    assert [row.reason for row in read(source_of(tree, outside=True)) if isinstance(row, Rejected)] == ["unknown_file"]
    classes = {"name": "classes", "path": str(place.parent / "classes")}
    (place.parent / "classes" / "cat").mkdir(parents=True)
    (place.parent / "classes" / "cat" / "0.png").symlink_to(place / "in.png")
    assert [type(row) for row in read(source_of(classes))] == [Rejected]
    assert [type(row) for row in read(source_of(classes, outside=True))] == [Pair]


def test_a_snapshot_in_the_hubs_cache_is_made_of_links(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "datasets--me--pets"
    snapshot = repository / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "77").write_bytes(image(0))
    (snapshot / "0.png").symlink_to(os.path.relpath(repository / "blobs" / "77", snapshot))
    (tmp_path / "secret").write_text(SECRET)
    (snapshot / "1.png").symlink_to(tmp_path / "secret")
    found = read(source_of(_image_folder(snapshot, ["0.png", "1.png"])))
    assert [isinstance(row, Pair) for row in found] == [True, False]


@pytest.mark.parametrize(
    ("file", "root", "inside"),
    [
        ("s3://b/data/1.jpg", "s3://b/data", True),
        ("s3://b/data-more/1.jpg", "s3://b/data", False),
        ("s3://b/data/../x.jpg", "s3://b/data", False),
        ("/etc/passwd", "s3://b/data", False),
        ("/etc/passwd", "https://h/data", False),
        ("https://other/1.jpg", "s3://b/data", True),
        ("HTTPS://other/1.jpg", Path("/data"), True),
        ("/data", Path("/data"), False),
        ("/data/x", Path("/"), True),
    ],
)
def test_folders_of_an_object_store(file: str, root: Path | str, inside: bool) -> None:
    assert is_inside(file, root) is inside


def test_tables_from_windows(place: Path) -> None:
    (place / "sub" / "a.png").write_bytes(image(1))
    (place / "b\\c.png").write_bytes(image(2))
    found = read(source_of(_csv(place, ["sub\\a.png", "b\\c.png", "..\\secret"])))
    assert [read_location(row.location) if isinstance(row, Pair) else row.reason for row in found] == [
        image(1),
        image(2),
        "outside_root",
    ]
    (place / "semicolon.csv").write_bytes(b"\xef\xbb\xbffilepath;title\r\nin.png;x\r\n")
    tree = {"name": "table", "paths": str(place / "semicolon.csv")}
    with refused("source.separator", "filepath;title", remedy='source.separator=";"'):
        source_of(tree).units()
    assert [type(row) for row in read(source_of(tree, separator=";"))] == [Pair]


# --- what is written and said ---

SIGNED = "http://127.0.0.1:9/a.jpg?X-Amz-Signature=abc123&id=7"
USED = "https://me:hunter2@host.invalid/b.jpg#token=abc123"
WORDS = ("abc123", "hunter2", "X-Amz", SECRET[:12])


def test_nothing_that_is_written_or_said_has_a_secret(ray_session: None, place: Path, capfd: pytest.CaptureFixture) -> None:
    images = ["in.png", SIGNED, USED, "/etc/passwd", "link.png", f"s3://bucket/{SIGNED}"]
    tree = {"source": _csv(place, images), "output": str(place.parent / "out"), "max_rejected_rate": 1.0, "splits": {"test": 0.5}}
    (place / "c.yaml").write_text(json.dumps(tree))
    run = run_program("pipelines", "", PrepareSettings, lambda s, d: prepare(s, d) and None, [str(place / "c.yaml"), "--verbose"])
    assert run == 0
    rejected = pq.read_table(place.parent / "out" / "rejected.parquet").to_pylist()
    assert [row["reason"] for row in rejected] == ["private_address", "missing_image", *["outside_root"] * 3]
    assert "RAYLIGN_PRIVATE_HOSTS" in rejected[0]["detail"]
    said = "".join(capfd.readouterr())
    told = [json.dumps(rejected), (place.parent / "out" / "manifest.json").read_text(), said]
    assert [word for word in WORDS for text in told if word in text] == []


def test_a_signed_url_of_a_source_is_in_no_message_and_no_manifest(place: Path, capfd: pytest.CaptureFixture) -> None:
    tree = {"source": {"name": "table", "paths": "http://me:hunter2@127.0.0.1:9/a.csv?sig=abc123"}, "output": str(place / "out")}
    (place / "c.yaml").write_text(json.dumps(tree))
    for url in (
        "http://127.0.0.1:9/a.csv?sig=abc123",
        "http://me:hunter2@127.0.0.1/a.csv",
        "http://127.0.0.1/a b.csv?sig=abc123",
    ):
        arguments = [str(place / "c.yaml"), f"source.paths={url}", "--verbose"]
        assert run_program("pipelines", "", PrepareSettings, lambda s, d: prepare(s, d) and None, arguments) == 2
    said = "".join(capfd.readouterr())
    assert "/a.csv" in said and [word for word in WORDS if word in said] == []


def test_a_prepared_dataset_is_found_again_though_its_manifest_hides_a_url(ray_session: None, place: Path) -> None:
    tree = {"source": _csv(place, ["in.png"]), "output": str(place.parent / "out"), "splits": {}}
    tree["source"]["data_attribution"] = "https://host/page?key=abc123"
    settings = PrepareSettings.model_validate(tree)
    first = prepare(settings, Display(quiet=True))
    assert "abc123" not in json.dumps(first.manifest["config"])
    again = prepare(settings, Display(quiet=True))
    assert again.manifest == first.manifest
    tree["image"] = {"size": 32}
    with refused("output", "image.size: 224 -> 32", remedy="overwrite=true"):
        prepare(PrepareSettings.model_validate(tree), Display(quiet=True))
