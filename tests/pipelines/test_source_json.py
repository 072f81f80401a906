"""The JSON source: lines, lists, COCO's captions and Karpathy's splits, and what is said of rows that are no pair."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.io.image_bytes import Location, read_location
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.json_lists import JsonSource
from tests.pipelines.rows import read, told
from tests.refusals import refused

COCO = {
    "info": {"year": 2014},
    "images": [
        {"id": 9, "file_name": "COCO_000000000009.jpg", "license": 3, "coco_url": "http://images/9.jpg"},
        {"id": 25, "file_name": "COCO_000000000025.jpg", "license": 1, "coco_url": "http://images/25.jpg"},
        {"id": 30, "file_name": "COCO_000000000030.jpg", "license": 1, "coco_url": "http://images/30.jpg"},
    ],
    "annotations": [
        {"image_id": 25, "id": 101, "caption": "A giraffe eating"},
        {"image_id": 9, "id": 48, "caption": "Closeup of bins of food"},
        {"image_id": 25, "id": 110, "caption": "A giraffe standing near a tree.\n"},
        {"image_id": 77, "id": 111, "caption": "of nothing"},
        {"image_id": 25, "id": 90, "caption": "a third"},
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": "1.jpg", "split": "test", "imgid": 0, "sentences": [{"raw": "one"}]},
        {"filepath": "train2014", "filename": "2.jpg", "split": "train", "imgid": 1, "sentences": [{"raw": "b"}, {"raw": "a"}]},
        {
            "filepath": "val2014",
            "filename": "3.jpg",
            "split": "restval",
            "imgid": 2,
            "sentences": [{"raw": "three", "tokens": []}],
        },
        {"filepath": "val2014", "filename": "4.jpg", "split": "train", "imgid": 3, "sentences": []},
    ],
}


def source_of(*paths: Path | str, **keys: object) -> JsonSource:
    return validate(JsonSource, {"name": "json", "paths": [str(path) for path in paths], **keys}, "test")


def file(path: Path, content: Any) -> Path:
    """Writes text, bytes, or a JSON document."""
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_lines_are_objects_with_images_beside_the_file(tmp_path: Path) -> None:
    file(tmp_path / "images" / "a.jpg", b"encoded")
    lines = ['{"image": "images/a.jpg", "caption": "A Cat"}', "", '{"caption": ["x", "y"], "image": "http://h/b.jpg"}']
    found = read(source_of(file(tmp_path / "list.jsonl", "\ufeff" + "\r\n".join(lines))))
    first = str(tmp_path / "images" / "a.jpg")
    assert found == [
        Pair("list:1", first, Location(first), ["A Cat"], "a cat"),
        Pair("list:3", "http://h/b.jpg", Location("http://h/b.jpg"), ["x", "y"], "x"),
    ]
    assert read_location(found[0].location) == b"encoded"  # type: ignore[union-attr]


def test_a_list_as_albef_has_it(tmp_path: Path) -> None:
    rows = [
        {"image": "val2014/1.jpg", "caption": ["one", "uno"], "image_id": 17},
        {"image": str(tmp_path / "coco" / "2.jpg"), "caption": "two", "image_id": "x"},
    ]
    source = source_of(
        file(tmp_path / "coco_karpathy_val.json", rows), root=tmp_path / "coco", group="image_id", label="image_id"
    )
    one, two = read(source)
    assert isinstance(one, Pair) and isinstance(two, Pair)
    assert (one.key, one.captions, one.group, one.labels) == ("coco_karpathy_val:0", ["one", "uno"], "17", {"image_id": "17"})
    assert [one.location.file, two.location.file] == [
        str(tmp_path / "coco" / "val2014" / "1.jpg"),
        str(tmp_path / "coco" / "2.jpg"),
    ]
    assert [row.key for row in read(source_of(tmp_path / "coco_karpathy_val.json", key="image_id"))] == ["17", "x"]


def test_cocos_captions_are_one_pair_an_image_in_the_files_order(tmp_path: Path) -> None:
    source = source_of(file(tmp_path / "captions_val.json", COCO), root="s3://coco/val")
    found = read(source)
    assert told(found) == [
        ("captions_val:COCO_000000000009.jpg", ["Closeup of bins of food"]),
        ("captions_val:COCO_000000000025.jpg", ["A giraffe eating", "A giraffe standing near a tree.\n", "a third"]),
        ("captions_val:2", "missing_caption"),
        ("captions_val:annotation 3", "missing_image"),
    ]
    assert isinstance(found[0], Pair) and found[0].location == Location("s3://coco/val/COCO_000000000009.jpg")
    assert isinstance(found[3], Rejected) and "77" in found[3].detail
    by_url = read(source_of(tmp_path / "captions_val.json", image="coco_url", key="id", label="license"))
    assert [(row.key, row.origin, row.labels) for row in by_url if isinstance(row, Pair)] == [
        ("9", "http://images/9.jpg", {"license": "3"}),
        ("25", "http://images/25.jpg", {"license": "1"}),
    ]


def test_another_order_of_cocos_images_leaves_keys_and_captions_alone(tmp_path: Path) -> None:
    before = read(source_of(file(tmp_path / "a.json", COCO)))
    after = read(source_of(file(tmp_path / "a.json", COCO | {"images": COCO["images"][::-1]})))  # type: ignore[index]
    assert sorted(told([r for r in after if isinstance(r, Pair)])) == sorted(told([r for r in before if isinstance(r, Pair)]))


@pytest.mark.parametrize(
    ("split", "keys"),
    [((), ["1.jpg", "2.jpg", "3.jpg", "4"]), ("test", ["1.jpg"]), (("train", "restval"), ["2.jpg", "3.jpg", "4"])],
)
def test_karpathys_splits_can_be_chosen(tmp_path: Path, split: tuple | str, keys: list[str]) -> None:
    found = read(source_of(file(tmp_path / "dataset_coco.json", KARPATHY), split=split))
    folders = {"1.jpg": "val2014/", "2.jpg": "train2014/", "3.jpg": "val2014/"}
    assert [row.key for row in found] == [f"dataset_coco:{folders.get(k, '')}{'3' if k == '4' else k}" for k in keys]
    texts = {"1.jpg": ["one"], "2.jpg": ["b", "a"], "3.jpg": ["three"], "4": "missing_caption"}
    assert [says for _, says in told(found)] == [texts[k] for k in keys]


def test_flickrs_karpathy_split_has_no_folders(tmp_path: Path) -> None:
    images = [{"filename": "1000.jpg", "split": "train", "sentences": [{"raw": "Two men", "sentid": 0}, {"raw": "A pair"}]}]
    (pair,) = read(source_of(file(tmp_path / "dataset_flickr30k.json", {"images": images}), root=tmp_path / "flickr30k-images"))
    assert isinstance(pair, Pair) and pair.key == "dataset_flickr30k:1000.jpg" and pair.captions == ["Two men", "A pair"]
    assert pair.location.file == str(tmp_path / "flickr30k-images" / "1000.jpg")
    # Several lists: it is enough that one has the split.
    file(tmp_path / "dataset_coco.json", KARPATHY)
    found = read(source_of(tmp_path / "dataset_*.json", split=("train", "restval")))
    assert [row.key.partition(":")[2] for row in found] == ["train2014/2.jpg", "val2014/3.jpg", "3", "1000.jpg"]


CASES: list[tuple[Any, Any]] = [
    ({"image": "a", "caption": "NA"}, ["NA"]),
    ({"image": "a", "caption": ""}, [""]),
    ({"image": "a", "caption": "  x\u2028 "}, ["  x\u2028 "]),
    ({"image": "a", "caption": "nul \0"}, ["nul \0"]),
    ({"image": "a", "caption": [None, "x", "", "y"]}, ["x", "y"]),
    ({"image": "a", "caption": ["", " "]}, [""]),
    ({"image": "a", "caption": [None]}, "missing_caption"),
    ({"image": "a", "caption": []}, "missing_caption"),
    ({"image": "a", "caption": None}, "missing_caption"),
    ({"image": "a"}, "missing_caption"),
    ({"image": "a", "caption": 7}, "bad_row"),
    ({"image": "a", "caption": ["x", 1.5]}, "bad_row"),
    ({"image": "a", "caption": True}, "bad_row"),
    ({"image": "a", "caption": {"en": "x"}}, "bad_row"),
    ({"image": "a", "caption": "half \ud83d of an emoji"}, "bad_row"),
    ({"image": "half \ud83d", "caption": "x"}, "bad_row"),
    ({"image": "nul\0", "caption": "x"}, "bad_row"),
    ({"image": None, "caption": "x"}, "missing_image"),
    ({"image": "", "caption": "x"}, "missing_image"),
    ({"caption": "x"}, "missing_image"),
    ({"image": 5, "caption": "x"}, "bad_row"),
    ({"image": "a", "caption": "x", "kind": ["list"]}, "bad_row"),
    ([1], "bad_row"),
    ("text", "bad_row"),
    (None, "bad_row"),
    ({"image": "z", "caption": "x", "kind": "k"}, ["x"]),
]


@pytest.mark.parametrize("layout", ["lines", "list"])
def test_rows_are_pairs_or_say_why_not(tmp_path: Path, layout: str) -> None:
    rows = [row for row, _ in CASES]
    lines = file(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    found = read(source_of(lines if layout == "lines" else file(tmp_path / "a.json", rows), label="kind"))
    assert told(found) == [(f"a:{i + (layout == 'lines')}", expected) for i, (_, expected) in enumerate(CASES)]
    rejected = {row.key: row.detail for row in found if isinstance(row, Rejected)}
    assert all(rejected.values()) and "is a number" in rejected["a:11" if layout == "lines" else "a:10"]
    assert [row.labels for row in found if isinstance(row, Pair)][-2:] == [{}, {"kind": "k"}]


def test_labels_groups_and_keys_may_be_numbers(tmp_path: Path) -> None:
    rows = [
        {"image": "a", "caption": "x", "k": k, "g": 0, "l": label} for k, label in ((1, False), (2.5, 12), (None, ""), ("", None))
    ]
    further = read(source_of(file(tmp_path / "a.json", rows), key="k", columns=["g", "l"]))
    assert [row.labels for row in further if isinstance(row, Pair)][:3] == [
        {"g": "0", "l": "false"},
        {"g": "0", "l": "12"},
        {"g": "0"},
    ]
    found = read(source_of(file(tmp_path / "a.json", rows), key="k", group="g", label="l"))
    assert [(row.key, row.group, row.labels) for row in found if isinstance(row, Pair)] == [
        ("1", "0", {"l": "false"}),
        ("2.5", "0", {"l": "12"}),
        ("a:2", "0", {}),
        ("a:3", "0", {}),
    ]


def test_a_line_that_is_not_json_is_rejected_and_the_others_go_on(tmp_path: Path) -> None:
    fine = b'{"url": "http://h/1.jpg", "caption": "x"}'
    long = b'{"url": "http://h/1.jpg", "caption": "' + b"x" * 3_000_000 + b'"}'
    lines = [
        fine,
        b'{"url": "http://h/2.jpg", "capt',
        b"caf\xe9",
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        long,
        b"{}",
        fine,
    ]
    found = read(source_of(file(tmp_path / "a.ndjson", b"\n".join(lines))))
    reasons = ["bad_row"] * 5 + ["missing_image"]
    assert told(found) == [("a:1", ["x"]), *((f"a:{i}", r) for i, r in enumerate(reasons, 2)), ("a:8", ["x"])]
    assert all(row.detail for row in found if isinstance(row, Rejected))


def test_units_are_ranges_of_256_lines_that_can_be_read_alone(tmp_path: Path) -> None:
    rows = [
        json.dumps({"image": f"{i}.jpg", "caption": f"caption {i}" + "\u00e9" * (i % 5)}, ensure_ascii=False) for i in range(600)
    ]
    text = "\n\n" + "\n".join(rows[:255]) + "\n\n\n" + "\n".join(rows[255:]) + "\n\n"
    source = source_of(file(tmp_path / "a.jsonl", text))
    units = source.units()
    assert [unit.rows for unit in units] == [256, 256, 88]
    found = [row for unit in reversed(units) for row in reversed(list(source.read(unit.data, False)))][::-1]
    line_of = {json.loads(line)["image"]: number for number, line in enumerate(text.split("\n"), 1) if line}
    assert [row.key for row in found] == [f"a:{line_of[f'{i}.jpg']}" for i in range(600)]
    assert all(isinstance(row, Pair) and row.captions[0].rstrip("\u00e9") == f"caption {i}" for i, row in enumerate(found))


def test_documents_are_cut_into_units_too(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.jpg", "caption": str(i)} for i in range(600)]
    source = source_of(file(tmp_path / "a.json", rows))
    assert [unit.rows for unit in source.units()] == [256, 256, 88]
    assert told(read(source)) == [(f"a:{i}", [str(i)]) for i in range(600)]


@pytest.mark.slow
def test_compressed_files_are_read_and_kept_as_far_as_they_go(tmp_path: Path) -> None:
    lines = [json.dumps({"image": f"{i}.jpg", "caption": f"c {i * 7919 % 10007}"}) for i in range(20_000)]
    whole = tmp_path / "a.jsonl.gz"
    whole.write_bytes(gzip.compress("\n".join(lines).encode()))
    complete = read(source_of(whole))
    assert [row.key for row in complete] == [f"a:{i}" for i in range(1, 20_001)]
    whole.write_bytes(whole.read_bytes()[:-20_000])
    *kept, last = read(source_of(whole))
    assert kept == complete[: len(kept)] and 5_000 < len(kept) < 20_000
    assert told([last]) == [("a", "truncated_archive")]
    (tmp_path / "short.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[:100]).encode())[:-50])
    short = read(source_of(tmp_path / "short.jsonl.gz"))
    assert 50 < len(short) < 101 and told(short[-1:]) == [("short", "truncated_archive")]
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(json.dumps(KARPATHY).encode()))
    assert len(read(source_of(tmp_path / "b.json.gz"))) == 4


def test_one_damaged_file_among_many_is_one_rejected_row(tmp_path: Path) -> None:
    fine = {"image": "1.jpg", "caption": "x"}
    file(tmp_path / "0.json", "")
    file(tmp_path / "1.json", "{")
    file(tmp_path / "a.json", [fine])
    file(tmp_path / "b.json", '[{"image": "1.j')
    file(tmp_path / "c.json", "")
    file(tmp_path / "d.json", [{"other": 1}])
    file(tmp_path / "e.jsonl", json.dumps(fine))
    file(tmp_path / "image.jpg", b"not JSON")
    bad = [(name, "unreadable_file") for name in "bcd"]
    before = [("0", "unreadable_file"), ("1", "unreadable_file")]
    assert told(read(source_of(tmp_path))) == [*before, ("a:0", ["x"]), *bad, ("e:1", ["x"])]


def test_files_of_one_name_have_keys_of_their_own(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        file(tmp_path / folder / "captions.json", COCO)
    keys = [row.key for row in read(source_of(tmp_path))]
    assert len(set(keys)) == len(keys) == 8 and keys[0] == "train/captions:COCO_000000000009.jpg"


@pytest.mark.parametrize(
    ("name", "content", "keys", "said"),
    [
        ("a.json", [{"a": 1, "b": 2}], {}, ("image", "'a', 'b'", "source.image=NAME")),
        ("a.jsonl", '{"image": "x", "b": 2}', {}, ("caption", "'image', 'b'", "source.caption=NAME")),
        ("a.jsonl", '{"image": "x", "caption": "y"}', {"group": "who"}, ("group", "'who'", "'image', 'caption'")),
        ("a.json", '{"image": "x", "caption": "y"}\n{"image": "x", "caption": "y"}', {}, ("paths", "source.layout=lines")),
        ("a.jsonl", '[\n{"image":\n"x"}\n]', {}, ("paths", "source.layout")),
        ("a.json", '[{"image": "x"', {}, ("paths", "JSON")),
        ("a.json", b'["\xe9"]', {}, ("paths", "JSON")),
        ("a.json", "[" * 100_000, {}, ("paths", "JSON")),
        ("a.json", {"data": []}, {}, ("layout", "'data'")),
        ("a.json", {"images": []}, {}, ("layout", "'images'")),
        ("a.json", {"images": []}, {"layout": "list"}, ("layout",)),
        ("a.json", [], {"layout": "coco"}, ("layout", "'annotations'")),
        ("a.json", [], {}, ("paths",)),
        ("a.jsonl", "\n", {}, ("paths",)),
        ("a.json", COCO | {"annotations": [{"image_id": 9, "bbox": []}]}, {}, ("caption", "'caption'", "'image_id', 'bbox'")),
        ("a.json", COCO, {"split": "train"}, ("split", "'coco'", "source.split")),
        ("a.json", KARPATHY, {"split": ["train", "restvl"]}, ("split", "restvl", "'restval', 'test', 'train'")),
        ("a.json", KARPATHY, {"split": "valid"}, ("split", "valid", "'restval', 'test', 'train'")),
    ],
)
def test_a_file_that_the_settings_do_not_fit_stops_with_the_way_out(
    tmp_path: Path, name: str, content: Any, keys: dict, said: tuple[str, ...]
) -> None:
    key, *named = said
    with refused(f"source.{key}", name, *named):
        source_of(file(tmp_path / name, content), **keys).units()


@pytest.mark.parametrize(
    ("name", "content", "title"),
    [
        ("dataset_coco.json", KARPATHY, "coco"),
        ("dataset_flickr.json", {"images": KARPATHY["images"], "dataset": "Flickr 30k"}, "flickr-30k"),
        ("mine.json", {"images": [{**KARPATHY["images"][0], "dataset": "other"}]}, "mine"),  # of an image, not of the document
        ("mine.json", [{"image": "a.jpg", "caption": "a", "dataset": "other"}], "mine"),
        ("flowers/captions.json", COCO, "flowers"),
        ("coco/annotations/captions_val2017.json", COCO, "coco"),
    ],
)
def test_metrics_are_called_after_the_dataset_and_not_after_the_file(tmp_path: Path, name: str, content: Any, title: str) -> None:
    path = file(tmp_path / name, content)
    assert source_of(path).title() == title
    assert source_of(path, dataset="own").title() == "own"


def test_a_file_that_is_not_there_is_called_by_its_path(tmp_path: Path) -> None:
    assert source_of(tmp_path / "nowhere.json").title() == "nowhere"
