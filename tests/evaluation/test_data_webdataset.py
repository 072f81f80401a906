"""CLIP_benchmark's layout: as its export writes it with ShardWriter, the same as folders say, and each way to be wrong."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset

from evaluation.class_sets import class_set
from evaluation.data.folder import FolderData
from evaluation.data.webdataset import _TEMPLATES, WebdatasetData
from tests.conftest import write_files
from tests.evaluation.images import encoded, numbers, on_its_side, read, told
from tests.refusals import refused

Samples = list[dict[str, Any]]
TEST: Samples = [{"png": encoded(n), "cls": n % 3} for n in range(7)]
TRAIN: Samples = [
    {"webp": encoded(20, "WEBP", lossless=True), "cls": 2},
    {"jpg": encoded(21, "JPEG", quality=100), "cls": 0},
    {"jpeg": encoded(22, "JPEG", quality=100), "cls": 1},
]
CLASSES = {"classnames.txt": "sea lion\ncat\nant\n", "zeroshot_classification_templates.txt": "a {c}.\nthe {c}, {c}!\n"}


def export(folder: Path, split: str, samples: Samples, files: dict[str, str] | None = None) -> Path:
    """What clip_benchmark_export_wds writes: three samples a tar, and files beside them."""
    (folder / split).mkdir(parents=True)
    with webdataset.ShardWriter(str(folder / split / "%d.tar"), maxcount=3, verbose=0) as sink:
        for number, sample in enumerate(samples):
            sink.write({"__key__": f"s{number:07d}", **sample})
    write_files(folder, {f"{split}/nshards.txt": f"{max(1, -(-len(samples) // 3))}\n", **(files or {})})
    return folder


def tar_of(members: Sequence[tuple[str, bytes | str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def test_every_image_has_its_class(tmp_path: Path) -> None:
    export(export(tmp_path, "test", TEST, CLASSES), "train", TRAIN)
    export(tmp_path, "val", TEST[:1])
    assert told(read(WebdatasetData, path=tmp_path)) == {
        "": {
            "classes": (("sea lion",), ("cat",), ("ant",)),
            "templates": ("a {c}.", "the {c}, {c}!"),
            "metric": "top1",
            "test": [(n, n % 3) for n in range(7)],
            "train": [(20, 2), (21, 0), (22, 1)],
            "validation": [(0, 0)],
        }
    }


def test_it_is_what_webdataset_reads(tmp_path: Path) -> None:
    """In its order, with eleven shards, which as text would stand in another one."""
    export(tmp_path, "test", [{"png": encoded(n), "cls": n % 3} for n in range(33)], CLASSES)
    theirs = webdataset.WebDataset(str(tmp_path / "test/{0..10}.tar"), shardshuffle=False).decode("pil").to_tuple("png", "cls")
    found = told(read(WebdatasetData, path=tmp_path))[""]["test"]
    assert found == [(image.getpixel((0, 0))[0], label) for image, label in theirs] and len(found) == 33


def test_the_same_as_a_folder_says(tmp_path: Path) -> None:
    ours = read(WebdatasetData, path=export(tmp_path / "tars", "test", TEST, {"classnames.txt": "ant\ncat\nsea lion"}))
    names = ("ant", "cat", "sea_lion")
    write_files(tmp_path, {f"folders/{names[n % 3]}/{n}.png": sample["png"] for n, sample in enumerate(TEST)})
    folders = told(read(FolderData, path=tmp_path / "folders"))[""]
    tars = told(ours)[""]
    assert sorted(tars.pop("test")) == sorted(folders.pop("test")) and tars == folders


def test_images_are_read_at_random_upright_and_say_their_names(tmp_path: Path) -> None:
    samples = [*TEST[:4], {"jpg": on_its_side(30), "cls": 0}]
    images = read(WebdatasetData, path=export(tmp_path, "test", samples, CLASSES)).classifications[""].test.images
    assert numbers(images, [3, 0, 2]) == [3, 0, 2]
    assert [images.name(i) for i in (0, 4)] == ["test/0.tar/s0000000.png", "test/1.tar/s0000004.jpg"]
    (image,) = images.read(np.asarray([4]))
    assert image.size == (4, 6)


def test_captions_are_lines(tmp_path: Path) -> None:
    samples = [{"png": encoded(1), "txt": "a cat\nein K\u00e4tzchen\n\n"}, {"png": encoded(2), "txt": "a dog"}]
    found = read(WebdatasetData, path=export(tmp_path, "test", samples, {"dataset_type.txt": "retrieval\n"}))
    assert told(found) == {"retrieval": [(1, ["a cat", "ein K\u00e4tzchen"]), (2, ["a dog"])]}


def test_a_shipped_set_goes_by_the_names(tmp_path: Path) -> None:
    """CLIP_benchmark's Pets are in alphabetical order, ours have cats first."""
    theirs = sorted((name for (name,) in class_set("pets").classes), key=str.lower)
    samples = [{"png": encoded(n), "cls": n} for n in range(37)]
    export(tmp_path, "test", samples, {"classnames.txt": "\n".join(name.title() for name in theirs)})
    data = read(WebdatasetData, path=tmp_path, classes="pets").classifications[""]
    assert [data.classes[label][0] for label in data.test.labels] == theirs
    assert data.metric == "mean_per_class" and data.templates == class_set("pets").templates


def test_without_classnames_the_shipped_set_goes_by_its_numbers(tmp_path: Path) -> None:
    data = read(WebdatasetData, path=export(tmp_path, "test", TEST), classes="cifar10").classifications[""]
    assert data.classes == class_set("cifar10").classes and data.test.labels.tolist() == [n % 3 for n in range(7)]


WITHOUT = {"cls": "0", "txt": "a cat"}


@pytest.mark.parametrize(
    ("samples", "files", "named", "remedy"),
    [
        (TEST, {"dataset_type.txt": "multilabel"}, ["dataset_type.txt", "'multilabel'"], "classification"),
        (TEST, {"dataset_type.txt": "video"}, ["dataset_type.txt", "'video'"], "retrieval"),
        (TEST, {"classnames.txt": ""}, ["classnames.txt"], "data.toy.classes"),
        (TEST, {"classnames.txt": "a\n\nb\nc"}, ["line 2", "classnames.txt"], "name of a class"),
        (TEST, {_TEMPLATES: "a photo"}, [_TEMPLATES, "'a photo'"], "{c}"),
        (TEST, {"classnames.txt": "a\nb"}, ["test/0.tar/s0000002.png", "'2'"], "2 classes from 0 to 1"),
        (TEST, {"test/nshards.txt": "4"}, ["nshards.txt", 4, "test/3.tar"], "complete the copy"),
        (TEST, {"test/nshards.txt": "2"}, ["nshards.txt", 2, "test/2.tar"], "correct the number"),
        (TEST, {"test/nshards.txt": "three"}, ["nshards.txt", "'three'"], "number of tars"),
        (TEST, {"test/1.tar": "no tar at all, whatever its name says"}, ["test/1.tar"], "copy it again"),
        (TEST, {"dataset_type.txt": "retrieval"}, ["test/0.tar/s0000000.png"], ".txt"),
        ([{"png": encoded(1), "cls": "x"}], CLASSES, ["test/0.tar/s0000000.png", "'x'"], "3 classes from 0 to 2"),
        ([{"png": encoded(1), "txt": "a cat"}], CLASSES, ["s0000000.png", ".cls"], "dataset_type.txt"),
        ([{"png": encoded(1), "npy": np.ones(3)}], CLASSES, ["s0000000.png", ".npy"], "one class per image"),
        ([WITHOUT], CLASSES, ["test/0.tar", "s0000000", "webp, png, jpg, jpeg", ".cls, .txt"], "write the tar again"),
        ([{"png": encoded(1), "txt": b"\xff"}], {"dataset_type.txt": "retrieval"}, ["s0000000.png", ".txt"], "UTF-8"),
        ([], CLASSES, ["test"], "test/nshards.txt"),
    ],
)
def test_what_cannot_be_scored_is_told(tmp_path: Path, samples: Samples, files: dict[str, str], named: list, remedy: str) -> None:
    with refused("data.toy", tmp_path, *named, remedy=remedy):
        read(WebdatasetData, path=export(tmp_path, "test", samples, CLASSES | files))


def test_a_missing_set_is_told_with_what_belongs_there(tmp_path: Path) -> None:
    with refused("data.toy", tmp_path / "none", remedy="test/nshards.txt"):
        read(WebdatasetData, path=tmp_path / "none")
    write_files(tmp_path, CLASSES)
    with refused("data.toy", tmp_path / "test", "nshards.txt", remedy="test/nshards.txt"):
        read(WebdatasetData, path=tmp_path)


def test_a_tar_cut_short_and_a_name_twice_are_told(tmp_path: Path) -> None:
    whole = tar_of([("a.png", encoded(1)), ("a.cls", "0"), ("b.png", encoded(2)), ("b.cls", "1")])
    write_files(tmp_path, {**CLASSES, "test/nshards.txt": "1", "test/0.tar": whole[:2100]})
    with refused("data.toy", "test/0.tar", tmp_path, remedy="copy it again"):
        read(WebdatasetData, path=tmp_path)
    write_files(tmp_path, {"test/0.tar": tar_of([("a.png", encoded(1)), ("a.cls", "0"), ("a.png", encoded(2))])})
    with refused("data.toy", "test/0.tar", "sample a", "two members .png", remedy="write the tar again"):
        read(WebdatasetData, path=tmp_path)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    path = export(tmp_path, "test", [TEST[0], {"png": encoded(1)[:40], "cls": 0}], CLASSES)
    images = read(WebdatasetData, path=path).classifications[""].test.images
    with refused("data.toy", "test/0.tar/s0000001.png", tmp_path, remedy="replace"):
        numbers(images)


def test_the_fingerprint_tells_changes(tmp_path: Path) -> None:
    export(tmp_path, "test", TEST, CLASSES)

    def now() -> str:
        return read(WebdatasetData, path=tmp_path).classifications[""].test.images.fingerprint

    first = now()
    assert now() == first
    (tmp_path / "test/1.tar").write_bytes((tmp_path / "test/1.tar").read_bytes())
    assert now() != first


def test_a_store_serves_as_a_disk_does(tmp_path: Path) -> None:
    export(tmp_path, "test", TEST, CLASSES)
    store = fsspec.filesystem("memory")
    for path in tmp_path.rglob("*.t*"):
        store.pipe_file(f"/toy-tars/{path.relative_to(tmp_path)}", path.read_bytes())
    assert told(read(WebdatasetData, path="memory://toy-tars")) == told(read(WebdatasetData, path=tmp_path))
