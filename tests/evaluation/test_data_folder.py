"""Folders of images by class: which image is of which class, in every form people have them, and each way to be wrong."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from evaluation.class_sets import class_set
from evaluation.data.folder import FolderData
from evaluation.zero_shot import build_prompts
from tests.conftest import write_files
from tests.evaluation.images import encoded, numbers, on_its_side, read, told
from tests.refusals import refused

CIFAR10 = [name for (name,) in class_set("cifar10").classes]
ANIMALS: dict[str, bytes | str] = {
    "test/polar-bear/b.png": encoded(2),
    "test/polar-bear/a.jpg": encoded(1, "JPEG", quality=100, subsampling=0),
    "test/Cat/deep/er/c.webp": encoded(3, "WEBP", lossless=True),
    "test/Cat/notes.txt": "no image",
    "test/.thumbnails/a.png": encoded(9),
    "test/__MACOSX/Cat/b.png": encoded(9),
    "test/Cat/._c.webp": encoded(9),
    "train/Cat/.ipynb_checkpoints/d-checkpoint.png": encoded(9),
    "test/readme.png": encoded(9),  # in no class
    "train/Cat/d.png": encoded(4),
    "train/sea_lion/e.PNG": encoded(5),
    "val/sea_lion/f.png": encoded(6),
    "annotations/boxes/x.png": encoded(9),
}


def test_every_image_has_the_class_of_its_folder(tmp_path: Path) -> None:
    write_files(tmp_path, ANIMALS)
    assert told(read(FolderData, path=tmp_path)) == {
        "": {
            # Capitals first; sea lions have no test image, and keep their place.
            "classes": (("Cat",), ("polar bear",), ("sea lion",)),
            "templates": ("a photo of a {}.", "{}"),
            "metric": "top1",
            "test": [(3, 0), (1, 1), (2, 1)],
            "train": [(4, 0), (5, 2)],
            "validation": [(6, 2)],
        }
    }


def test_images_are_read_at_random_and_say_their_names(tmp_path: Path) -> None:
    write_files(tmp_path, ANIMALS)
    images = read(FolderData, path=tmp_path).classifications[""].test.images
    assert numbers(images, [2, 0, 2]) == [2, 3, 2]
    assert [images.name(i) for i in range(3)] == ["Cat/deep/er/c.webp", "polar-bear/a.jpg", "polar-bear/b.png"]


def test_classes_may_lie_in_the_folder_itself_even_empty_ones(tmp_path: Path) -> None:
    write_files(tmp_path, {"dog/1.png": encoded(1), "ant/2.png": encoded(2), "notes/boxes.xml": "<x/>"})
    (tmp_path / "bee").mkdir()
    found = told(read(FolderData, path=tmp_path, templates=["a {}!"], metric="mean_per_class"))[""]
    assert found["classes"] == (("ant",), ("bee",), ("dog",)) and found["test"] == [(2, 0), (1, 2)]
    assert (found["templates"], found["metric"]) == (("a {}!",), "mean_per_class") and "train" not in found


def test_val_is_the_test_where_test_has_no_labels(tmp_path: Path) -> None:
    """As ImageNet is handed out."""
    write_files(tmp_path, {"val/a/1.png": encoded(1), "train/b/2.png": encoded(2), "test/3.png": encoded(3)})
    found = told(read(FolderData, path=tmp_path))[""]
    assert (found["test"], found["train"], "validation" in found) == ([(1, 0)], [(2, 1)], False)


def test_a_shipped_set_gives_names_templates_metric_and_imagenets_classes(tmp_path: Path) -> None:
    """ImageNet-V2's folders are numbers, which as text would stand in another order."""
    write_files(tmp_path, {f"{number}/x.png": encoded(number % 256) for number in range(1000)})
    data = read(FolderData, path=tmp_path, classes="imagenet-v2").classifications[""]
    known = class_set("imagenet-v2")
    assert data.test.labels.tolist() == list(range(1000))
    assert numbers(data.test.images, [2, 10, 100]) == [2, 10, 100]
    assert (data.classes, data.templates, data.metric, data.imagenet) == (
        known.classes, known.templates, known.metric, known.imagenet
    )  # fmt: skip


def test_names_go_before_the_order_of_folders(tmp_path: Path) -> None:
    """The set has cats first, and capitals of its own; sorted, these folders would mix them."""
    pets = [name for (name,) in class_set("pets").classes]
    write_files(tmp_path, {f"{name.lower().replace(' ', '_')}/x.png": encoded(n) for n, name in enumerate(pets)})
    data = read(FolderData, path=tmp_path, classes="pets").classifications[""]
    assert numbers(data.test.images) == data.test.labels.tolist() != sorted(data.test.labels.tolist())
    assert data.metric == "mean_per_class"
    own = read(FolderData, path=tmp_path, classes="pets", metric="top1", templates=["{c}!"]).classifications[""]
    assert (own.metric, own.templates, own.classes) == ("top1", ("{c}!",), data.classes)


def test_folders_of_other_classes_are_left_out(tmp_path: Path) -> None:
    """ObjectNet has 313, of which 113 are ImageNet's."""
    folders = class_set("objectnet").folders
    assert folders is not None
    write_files(tmp_path, {f"{folder}/x.png": encoded(n) for n, folder in enumerate(folders)} | {"armchair/x.png": encoded(200)})
    data = read(FolderData, path=tmp_path, classes="objectnet").classifications[""]
    assert numbers(data.test.images) == data.test.labels.tolist() == list(range(113))
    (tmp_path / folders[5] / "x.png").unlink()
    (tmp_path / folders[5]).rmdir()
    with refused("data.toy", tmp_path, f"'{folders[5]}' (1 of the 113 classes of objectnet", remedy="complete"):
        read(FolderData, path=tmp_path, classes="objectnet")


FLAT: dict[str, bytes | str] = {"b.png": encoded(2), "a.png": encoded(1), "c/d.png": encoded(3)}


@pytest.mark.parametrize(
    ("name", "content", "classes", "expected"),
    [
        ("l.txt", "3\n0\n3\n", "cifar10", [3, 0, 3]),
        ("l.txt", "cat\nairplane\n\ncat", "cifar10", [3, 0, 3]),
        ("l.csv", "file,label\nc/d.png,cat\na.png,dog\nb.png,cat\n", "cifar10", [5, 3, 3]),
        ("l.csv", "b.png,10\na.png,9\nc/d.png,9\n", None, [0, 1, 0]),  # 9 and 10, as numbers
        ("l.txt", "sea_lion\nant\nsea_lion\n", None, [1, 0, 1]),
    ],
)
def test_a_file_may_say_the_labels(tmp_path: Path, name: str, content: str, classes: str | None, expected: list[int]) -> None:
    write_files(tmp_path, {f"images/{file}": data for file, data in FLAT.items()} | {name: content})
    found = read(FolderData, path=tmp_path / "images", labels=tmp_path / name, classes=classes).classifications[""]
    assert numbers(found.test.images) == [1, 2, 3] and found.test.labels.tolist() == expected
    if content.startswith("sea_lion"):
        assert found.classes == (("ant",), ("sea lion",))


@pytest.mark.parametrize(
    ("name", "content", "named", "remedy"),
    [
        ("l.txt", "1\n2\n", ["2 labels", "3 images"], "each image"),
        ("l.csv", "a.png,1\nb.png,2\n", ["2 labels", "3 images", "'c/d.png'"], "each image"),
        ("l.csv", "a.png,1\nb.png,2\nc/d.png,1\nx.png,1\n", ["4 labels", "3 images", "'x.png'"], "each image"),
        ("l.csv", "a.png;1\n", ["'a.png;1'"], "FILE,LABEL"),
        ("l.txt", "1\n10\n2\n", [10, "cifar10"], "0 to 9"),
        ("l.txt", "cat\nkat\ncat\n", ["'kat'", "cifar10"], "0 to 9"),
        (None, "", [], "label"),
    ],
)
def test_wrong_labels_are_told(tmp_path: Path, name: str | None, content: str, named: list, remedy: str) -> None:
    write_files(tmp_path, {f"images/{file}": data for file, data in FLAT.items()} | ({name: content} if name else {}))
    with refused("data.toy.labels", tmp_path / (name or "l.txt"), *named, remedy=remedy):
        read(FolderData, path=tmp_path / "images", labels=tmp_path / (name or "l.txt"), classes="cifar10")


@pytest.mark.parametrize(
    ("files", "settings", "key", "named", "remedy"),
    [
        ({}, {}, "data.toy", [], "test/"),
        ({"x.txt": ""}, {}, "data.toy", [], "test/"),
        ({"train/a/x.png": ""}, {}, "data.toy", ["test or val", "train"], "test/"),
        ({"a/x.png": ""}, {"classes": "cifar10"}, "data.toy", ["1 classes", "cifar10 has 10"], "order"),
        ({"a/x.png": ""}, {"classes": "cifar11"}, "data.toy.classes", ["'cifar11'"], "'cifar10"),
        (
            {f"{name}/x.png": "" for name in [*(f"0{n}" for n in range(9)), "airplane"]},
            {"classes": "cifar10"},
            "data.toy",
            ["'airplane'", "class 9", "class 0 of the class set cifar10"],
            "order",
        ),
    ],
)
def test_a_set_that_cannot_be_scored_is_told(
    tmp_path: Path, files: dict[str, str], settings: dict[str, Any], key: str, named: list, remedy: str
) -> None:
    write_files(tmp_path / "set", files)
    path = [tmp_path / "set"] if key == "data.toy" else []
    with refused(key, *path, *named, remedy=remedy):
        read(FolderData, path=tmp_path / "set", **settings)


def test_nothing_is_read_from_nowhere_or_the_web(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with refused("data.toy", tmp_path / "empty", remedy="folder of images"):
        read(FolderData, path=tmp_path / "empty")
    with refused("data.toy", "https://x.org/set", remedy="download"):
        read(FolderData, path="https://x.org/set")


def test_a_store_that_nobody_can_read_is_told() -> None:
    with refused("data.toy", "nowhere://set", remedy="URI"):
        read(FolderData, path="nowhere://set")


def test_a_folder_may_be_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, ANIMALS)
    monkeypatch.chdir(tmp_path)
    whole = told(read(FolderData, path=tmp_path))
    assert told(read(FolderData, path=".")) == whole
    monkeypatch.chdir(tmp_path.parent)
    assert told(read(FolderData, path=tmp_path.name)) == told(read(FolderData, path=f"file://{tmp_path}")) == whole


def test_templates_without_a_place_for_the_name_are_refused(tmp_path: Path) -> None:
    with refused("templates", "'a photo'", remedy="{}"):
        read(FolderData, path=tmp_path, templates=["a photo"])


def test_images_are_turned_upright(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/x.jpg": on_its_side(1)})
    (image,) = read(FolderData, path=tmp_path).classifications[""].test.images.read(np.asarray([0]))
    assert image.size == (4, 6)


@pytest.mark.parametrize(
    ("content", "why"), [(encoded(1)[:30], ["truncated", "undecodable"]), (b"", ["empty"]), (None, ["missing_image"])]
)
def test_an_image_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, why: list[str]) -> None:
    write_files(tmp_path, {"a/fine.png": encoded(1), "a/wrong.png": content or b""})
    images = read(FolderData, path=tmp_path).classifications[""].test.images
    if content is None:
        (tmp_path / "a/wrong.png").unlink()
    assert numbers(images, [0]) == [1]
    with refused("data.toy", "a/wrong.png", tmp_path, remedy="replace") as caught:
        list(images.read(np.asarray([0, 1])))
    assert any(reason in caught.value.problem for reason in why)


def test_the_fingerprint_tells_changes(tmp_path: Path) -> None:
    write_files(tmp_path, {"a/x.png": encoded(1), "b/y.png": encoded(2)})

    def now() -> str:
        return read(FolderData, path=tmp_path).classifications[""].test.images.fingerprint

    first = now()
    assert now() == first
    write_files(tmp_path, {"a/x.png": encoded(3)})  # as many bytes, another time
    second = now()
    (tmp_path / "b/y.png").rename(tmp_path / "b/z.png")
    third = now()
    (tmp_path / "b").rename(tmp_path / "c")
    fourth = now()
    (tmp_path / "aa").mkdir()  # another class, and c has another number
    assert len({first, second, third, fourth, now()}) == 5


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_files(tmp_path, {"elsewhere/x.png": encoded(1), "set/b/y.png": encoded(2)})
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    assert told(read(FolderData, path=tmp_path / "set"))[""]["test"] == [(1, 0), (2, 1)]


def test_a_store_serves_as_a_disk_does(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name, content in ANIMALS.items():
        store.pipe_file(f"/toy-folder/{name}", content.encode() if isinstance(content, str) else content)
    write_files(tmp_path, ANIMALS)
    assert told(read(FolderData, path="memory://toy-folder")) == told(read(FolderData, path=tmp_path))


def test_prompts_can_be_built(tmp_path: Path) -> None:
    write_files(tmp_path, ANIMALS)
    data = read(FolderData, path=tmp_path).classifications[""]
    assert build_prompts(data.classes, data.templates).texts[2:4] == ["a photo of a polar bear.", "polar bear"]
