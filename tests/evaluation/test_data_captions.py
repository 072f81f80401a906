"""Images with captions: every layout of the same images gives the same pairs, and each way to be wrong is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.data.captions import CaptionsData
from evaluation.data.webdataset import WebdatasetData
from tests.conftest import write_files
from tests.evaluation.images import encoded, numbers, read, told
from tests.evaluation.test_data_webdataset import export
from tests.refusals import refused

# A caption with a comma and a tab's neighbour, a caption twice, and one caption of two images.
PAIRS = {
    "2.jpg": ["a cat, asleep", "a cat", "a cat", "one", "five"],
    "1.jpg": ["a dog", "a cat"],
    "3.jpg": ["a \u00fcber dog"],
}
RIGHT = {"retrieval": [(int(name[0]), captions) for name, captions in PAIRS.items()]}

COCO: dict[str, Any] = {
    "images": [{"id": 10 + int(name[0]), "file_name": name} for name in PAIRS],
    # In no order of images; the captions of each keep theirs.
    "annotations": [
        {"id": number, "image_id": 10 + int(name[0]), "caption": PAIRS[name][number]}
        for number in range(5)
        for name in PAIRS
        if number < len(PAIRS[name])
    ],
}
OTHERS = [{"filename": f"{n}.jpg", "split": split, "sentences": [{"raw": "no"}]} for n, split in ((7, "train"), (8, "val"))]


def karpathy(**more: Any) -> dict[str, Any]:
    own = [
        {"filename": name, "split": "test", "sentences": [{"raw": text, "sentid": 1} for text in texts], **more}
        for name, texts in PAIRS.items()
    ]
    return {"dataset": "toy", "images": [OTHERS[0], *own, OTHERS[1]]}


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


TABLE = "raw,sentids,split,filename,img_id\n" + "".join(
    f"{quoted(json.dumps(texts))},{quoted('[1]')},{split},{name},0\n"
    for name, texts, split in [*((name, texts, "test") for name, texts in PAIRS.items()), ("7.jpg", ["no"], "train")]
)
FORMS = {
    "coco.json": json.dumps(COCO),
    "karpathy.json": json.dumps(karpathy()),
    "karpathy-folders.json": json.dumps(karpathy(filepath="val2014")),
    "results.token": "".join(f"{name}#{n}\t{text}\n" for name, texts in PAIRS.items() for n, text in enumerate(texts)),
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{name}| {n}| {text}\n" for name, texts in PAIRS.items() for n, text in enumerate(texts)),
    "test.txt": "image,caption\n" + "".join(f"{name},{text}\n" for name, texts in PAIRS.items() for text in texts),
    "captions.txt": "image,caption\n"
    + "".join(f"{name},{quoted(text) if ',' in text else text}\n" for name, texts in PAIRS.items() for text in texts),
    "table.csv": TABLE,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(tmp_path, {f"images/{n}.jpg": encoded(n, "JPEG", quality=100, subsampling=0) for n in range(1, 9)})
    write_files(tmp_path, FORMS)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_every_layout_gives_the_same_pairs(root: Path, form: str) -> None:
    assert told(read(CaptionsData, path=root / form, images=root / "images")) == RIGHT


def test_tars_give_the_same_pairs(root: Path) -> None:
    samples = [{"jpg": (root / "images" / name).read_bytes(), "txt": "\n".join(texts)} for name, texts in PAIRS.items()]
    assert told(read(WebdatasetData, path=export(root / "tars", "test", samples, {"dataset_type.txt": "retrieval"}))) == RIGHT


def test_every_caption_belongs_to_one_image(root: Path) -> None:
    """Also where another image has the same: so are published scores."""
    found = read(CaptionsData, path=root / "coco.json", images=root / "images").retrieval
    assert found is not None and [right.tolist() for right in found.texts_of_image] == [[0, 1, 2, 3, 4], [5, 6], [7]]
    assert found.images.name(1) == "1.jpg"


@pytest.mark.parametrize(("form", "split", "number"), [("karpathy.json", "val", 8), ("table.csv", "train", 7)])
def test_another_split(root: Path, form: str, split: str, number: int) -> None:
    assert told(read(CaptionsData, path=root / form, images=root / "images", split=split)) == {"retrieval": [(number, ["no"])]}


def test_images_lie_in_folders_by_their_names(root: Path) -> None:
    """Karpathy's COCO names val2014/x.jpg, of which there may be one in train2014 too."""
    write_files(root, {f"coco/val2014/{n}.jpg": encoded(10 * n, "JPEG", quality=100) for n in (1, 2, 3)})
    write_files(root, {"coco/train2014/1.jpg": encoded(99, "JPEG", quality=100)})
    found = read(CaptionsData, path=root / "karpathy-folders.json", images=root / "coco").retrieval
    assert found is not None and numbers(found.images) == [20, 10, 30]
    with refused(
        "data.toy.images", "train2014/1.jpg", "val2014/1.jpg", "'1.jpg'", root / "coco", root / "coco.json", remedy="remove"
    ):
        read(CaptionsData, path=root / "coco.json", images=root / "coco")


def changed(tree: dict[str, Any], part: str, values: Any) -> str:
    return json.dumps({**tree, part: values})


@pytest.mark.parametrize(
    ("name", "content", "settings", "key", "named", "remedy"),
    [
        ("x.json", None, {}, "path", [], "captions_val2017.json"),
        ("x.json", "{", {}, "path", [], "captions_val2017.json"),
        ("x.json", "{}", {}, "path", ["COCO", "Karpathy"], "captions_val2017.json"),
        ("x.json", "[]", {}, "path", ["list"], "captions_val2017.json"),
        ("x.json", changed(COCO, "images", []), {}, "path", ["annotation 0", "image 12"], "images"),
        ("x.json", changed(COCO, "annotations", COCO["annotations"][:2]), {}, "path", ["'3.jpg'"], "remove it"),
        ("x.json", changed(COCO, "annotations", []), {}, "path", ["'caption'"], "captions_val2017.json"),
        ("x.json", changed(COCO, "images", [{"id": 11}, *COCO["images"]]), {}, "path", [None], "file name"),
        ("x.json", json.dumps(COCO), {"split": "test"}, "split", [], "data.toy.split=null"),
        ("x.json", json.dumps(karpathy()), {"split": "dev"}, "split", ["dev"], "'test', 'train', 'val'"),
        ("x.csv", TABLE, {"split": "dev"}, "split", ["'dev'"], "test, train"),
        ("x.csv", "raw,filename\na cat,1.jpg\n", {}, "path", ["'1.jpg'", "'a cat'", "json"], "captions_val2017.json"),
        ("x.token", "1.jpg a cat\n", {}, "path", ["'1.jpg a cat'"], "results_20130124.token"),
        ("x.token", "1.jpg#0\ta cat\n1.jpg a dog\n", {}, "path", ["'1.jpg a dog'"], "results_20130124.token"),
        ("x.token", "1.jpg#0\ta\n", {"split": "test"}, "split", [], "data.toy.split=null"),
        ("x.token", "1.jpg#0\ta\n9.jpg#0\tb\n", {}, "images", ["'9.jpg'", "1 of 2 images"], "val2017.zip"),
        ("x.token", "1.jpg#0\t \n", {}, "path", ["'1.jpg'"], "give it one"),
        ("x.token", "1.jpg#0\ta\n", {"images": "nowhere"}, "images", ["nowhere"], "val2017.zip"),
    ],
)
def test_what_is_wrong_is_told(
    root: Path, name: str, content: str | None, settings: dict[str, Any], key: str, named: list, remedy: str
) -> None:
    write_files(root, {name: content} if content is not None else {})
    file = [] if "images" in settings else [root / name]
    with refused(f"data.toy.{key}", *file, *named, remedy=remedy):
        read(CaptionsData, **{"path": root / name, "images": root / "images", **settings})


def test_the_fingerprint_tells_changes(root: Path) -> None:
    def now(form: str) -> str:
        found = read(CaptionsData, path=root / form, images=root / "images").retrieval
        assert found is not None
        return found.images.fingerprint

    first = now("coco.json")
    assert now("coco.json") == first
    write_files(root, {"images/1.jpg": encoded(9, "JPEG", quality=100)})
    assert now("coco.json") != first
