"""The Parquet source: images in the table and beside it, columns found by name, row groups read apart, and damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.io import retry, storage
from pipelines.io.image_bytes import Location, read_location
from pipelines.program.settings import validate
from pipelines.sources import parquet
from pipelines.sources.base import Rejected
from pipelines.sources.columns import Start
from pipelines.sources.parquet import ParquetSource
from tests.object_store import Store
from tests.pipelines.rows import image, pairs, read, told
from tests.refusals import refused

A, B, C = image(1), image(2), image(3)


def put(path: Path, columns: dict[str, Any], **keys: Any) -> Path:
    """Writes columns as a Parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **keys)
    return path


def source_of(*paths: Path | str, **keys: object) -> ParquetSource:
    return validate(ParquetSource, {"name": "parquet", "paths": [str(path) for path in paths], **keys}, "test")


KINDS = {
    "binary": pa.binary(),
    "large": pa.large_binary(),
    "struct": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("images", [True, False])
def test_images_in_the_table(tmp_path: Path, kind: str, images: bool) -> None:
    values: list[Any] = [A, B, C]
    if kind == "struct":
        values = [{"bytes": value, "path": f"{i}.png"} for i, value in enumerate(values)]
    file = put(tmp_path / "x.parquet", {"caption": ["One", "two", "3"], "image": pa.array(values, KINDS[kind])}, row_group_size=2)
    found = pairs(read(source_of(file), images))
    column = "image.bytes" if kind == "struct" else "image"
    assert [pair.location for pair in found] == [
        Location(str(file), group, row, column) for group, row in [(0, 0), (0, 1), (1, 0)]
    ]
    assert [read_location(pair.location) for pair in found] == [A, B, C]
    assert [pair.image for pair in found] == ([A, B, C] if images else [None] * 3)
    assert told(found) == [("x:1", ["One"]), ("x:2", ["two"]), ("x:3", ["3"])]
    assert (found[2].origin, found[0].group) == (f"{file}, row 3", "one")


def test_paths_and_urls_start_at_the_file_or_the_root(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.png").write_bytes(A)
    paths = ["a.png", "/abs/b.png", "https://h/c.png", "s3://b/d.png", None, ""]
    file = put(tmp_path / "tables" / "x.parquet", {"URL": paths, "TEXT": list("abcdef")})
    found = read(source_of(file, outside=True))
    assert told(found[4:]) == [("x:5", "missing_image"), ("x:6", "missing_image")]
    assert [pair.location for pair in pairs(found[:4])] == [
        Location(place) for place in (str(tmp_path / "tables" / "a.png"), *map(str, paths[1:4]))
    ]
    assert read_location(pairs(found[:1])[0].location) == A
    (first, *_) = pairs(read(source_of(file, root="s3://other"))[:1])
    assert first.location == Location("s3://other/a.png")


@pytest.mark.parametrize("images", [True, False])
def test_a_struct_without_bytes_is_a_path(tmp_path: Path, images: bool) -> None:
    (tmp_path / "b.png").write_bytes(B)
    image = pa.array(
        [{"bytes": A, "path": "gone.png"}, {"bytes": None, "path": "b.png"}, {"bytes": None, "path": None}, None], KINDS["struct"]
    )
    found = read(source_of(put(tmp_path / "x.parquet", {"image": image, "text": list("abcd")})), images)
    assert told(found) == [("x:1", ["a"]), ("x:2", ["b"]), ("x:3", "missing_image"), ("x:4", "missing_image")]
    assert [pair.location for pair in pairs(found[:2])] == [
        Location(str(tmp_path / "x.parquet"), 0, 0, "image.bytes"),
        Location(str(tmp_path / "b.png")),
    ]
    assert [read_location(pair.location) for pair in pairs(found[:2])] == [A, B]


@pytest.mark.parametrize("statistics", [True, False])
def test_rows_that_img2dataset_could_not_download(tmp_path: Path, statistics: bool) -> None:
    columns = {
        "url": ["http://h/0", "http://h/1", "http://h/2"],
        "jpg": pa.array([A, None, B]),
        "caption": ["a", "b", None],
        "key": ["000000000", "000000001", "000000002"],
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "HTTP Error 404: Not Found", None],
    }
    file = put(tmp_path / "00000.parquet", columns, write_statistics=statistics)
    for images in (True, False):
        found = read(source_of(file, key="key"), images)
        assert told(found) == [("000000000", ["a"]), ("00000:2", "missing_image"), ("00000:3", "missing_caption")]
        assert isinstance(found[1], Rejected) and found[1].detail == "HTTP Error 404: Not Found"


def test_without_nulls_no_image_is_read_for_an_index(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).bytes(50_000) for i in range(64)]
    file = put(tmp_path / "x.parquet", {"image": noise, "caption": [str(i) for i in range(64)]}, use_dictionary=False)
    content = bytearray(file.read_bytes())
    # What is damaged there shows whether it was looked at.
    place = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    content[place : place + 20_000] = b"\xff" * 20_000
    file.write_bytes(content)
    assert len(pairs(read(source_of(file), images=False))) == 64
    assert {row.reason for row in read(source_of(file), images=True) if isinstance(row, Rejected)} == {"unreadable_file"}


def test_captions_are_text_as_it_is(tmp_path: Path) -> None:
    texts = ["NA", "null", "1e5", "true", "007", "  padded  ", "two\nlines", "\u05e9\u05dc\u05d5\u05dd", "", None]
    columns = {"image": [A] * len(texts), "caption": pa.array(texts).dictionary_encode()}
    found = read(source_of(put(tmp_path / "x.parquet", columns)))
    assert [row.captions for row in pairs(found[:-1])] == [[text] for text in texts[:-1]]
    assert told(found[-1:]) == [("x:10", "missing_caption")]


@pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.large_list(pa.large_string())])
def test_lists_of_captions(tmp_path: Path, kind: pa.DataType) -> None:
    lists = [["one", None, "two"], [], None, [None], ["", "x"]]
    columns = {"image": [A] * 5, "captions": pa.array(lists, kind)}
    found = read(source_of(put(tmp_path / "x.parquet", columns)))
    assert [value for _, value in told(found)] == [["one", "two"], *["missing_caption"] * 3, ["x"]]


TEXTS = {
    "string": pa.string(),
    "large": pa.large_string(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "dictionary of large": pa.dictionary(pa.int8(), pa.large_string()),
}
LISTS = {"list": pa.list_, "large list": pa.large_list, "list of two": lambda kind: pa.list_(kind, 2)}
BYTES = {"binary": pa.binary(), "large": pa.large_binary(), "view": pa.binary_view(), "fixed size": pa.binary(len(A))}


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode().cast(kind)
    return pa.array(values, kind)


def rows_of(**columns: pa.Array) -> list[Any]:
    """What the columns hold, whichever format they came from."""
    batch, source = pa.record_batch(columns), source_of("x.parquet", label="kind")
    return list(source.pairs(batch, source.layout(batch.schema), Start("x.parquet", "x", 0, 0, 1), True))


@pytest.mark.parametrize("kind", TEXTS)
def test_every_arrow_type_of_text(kind: str) -> None:
    """As captions, labels and paths of images; one that is null is none, which is not the same as an empty one."""
    texts = array(["caf\u00e9", None, "a cat"], TEXTS[kind])
    first, second, third = rows_of(image=array(["0.png", "1.png", "2.png"], TEXTS[kind]), caption=texts, kind=texts)
    assert told([first, second, third]) == [("x:1", ["caf\u00e9"]), ("x:2", "missing_caption"), ("x:3", ["a cat"])]
    assert [(row.location, row.labels) for row in (first, third)] == [
        (Location("0.png"), {"kind": "caf\u00e9"}),
        (Location("2.png"), {"kind": "a cat"}),
    ]
    (labelled,) = rows_of(image=pa.array([A]), caption=pa.array(["a"]), kind=array([None], TEXTS[kind]))
    assert labelled.labels == {}
    for list_of in LISTS.values():
        if kind.startswith("dictionary"):
            continue
        lists = pa.array([["one", None], None, ["two", "three"]], list_of(TEXTS[kind]))
        found = rows_of(image=pa.array([A, B, C]), caption=lists, kind=pa.nulls(3))
        assert told(found) == [("x:1", ["one"]), ("x:2", "missing_caption"), ("x:3", ["two", "three"])]


@pytest.mark.parametrize("kind", BYTES)
def test_every_arrow_type_of_bytes(kind: str) -> None:
    columns = {"caption": pa.array(["a", "b"]), "kind": pa.array([1, 2])}
    (found, lost) = rows_of(image=pa.array([A, None], BYTES[kind]), **columns)
    assert found.image == A and told([lost]) == [("x:2", "missing_image")]
    struct = pa.array([{"bytes": A}, {"bytes": None}], pa.struct([("bytes", BYTES[kind])]))
    (found, lost) = rows_of(image=struct, **columns)
    assert found.image == A and told([lost]) == [("x:2", "missing_image")]


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", "caf\u00e9".encode()]).view(pa.string())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), raw)
    for number, captions in enumerate((raw, lists)):
        file = put(tmp_path / f"{number}.parquet", {"image": [A] * 3, "caption": captions})
        assert [value for _, value in told(read(source_of(file)))] == [["good"], "bad_row", ["caf\u00e9"]]


def test_labels_groups_and_keys(tmp_path: Path) -> None:
    columns = {
        "image": [A, B, C],
        "caption": ["a", "b", "c"],
        "kind": [3, None, 5],
        "owner": ["x", "y", None],
        "sku": ["k1", "k2", None],
    }
    file = put(tmp_path / "x.parquet", columns)
    found = pairs(read(source_of(file, label="kind", group="owner", key="sku")))
    assert [(pair.key, pair.group, pair.labels) for pair in found] == [
        ("k1", "x", {"kind": "3"}),
        ("k2", "y", {}),
        ("x:3", "c", {"kind": "5"}),
    ]
    found = pairs(read(source_of(file, label="kind", columns=["sku", "owner"])))
    assert [pair.labels for pair in found][:2] == [{"kind": "3", "sku": "k1", "owner": "x"}, {"sku": "k2", "owner": "y"}]
    with refused("source.columns", "'skus'", "'sku'"):
        source_of(file, columns=["skus"]).units()


def test_labels_have_the_names_that_hugging_face_gives_them(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [A, B, C, A], "text": list("abcd"), "label": [1, 0, -1, 2]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), tmp_path / "x.parquet"
    )
    found = pairs(read(source_of(tmp_path, label="label")))
    assert [pair.labels for pair in found] == [{"label": "dog"}, {"label": "cat"}, {}, {}]


def test_small_row_groups_are_joined_and_every_row_is_read_once(tmp_path: Path) -> None:
    columns = {"image": [image(i) for i in range(1500)], "caption": [str(i) for i in range(1500)]}
    file = put(tmp_path / "x.parquet", columns, row_group_size=200)
    source = source_of(file)
    assert [unit.rows for unit in source.units()] == [400, 400, 400, 300]
    found = pairs(read(source))
    assert [(pair.key, pair.captions) for pair in found] == [(f"x:{i + 1}", [str(i)]) for i in range(1500)]
    assert [pair.image for pair in found] == columns["image"]
    assert [read_location(found[i].location) for i in (0, 199, 200, 1499)] == [image(i) for i in (0, 199, 200, 1499)]


def test_large_row_groups_cannot_serve_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = [np.random.default_rng(i).bytes(10_000) for i in range(40)]
    file = put(tmp_path / "x.parquet", {"jpg": noise, "caption": ["c"] * 40})
    paths = put(tmp_path / "y.parquet", {"url": [f"https://h/{'x' * 10_000}/{i}" for i in range(40)], "caption": ["c"] * 40})
    monkeypatch.setattr(parquet, "_LARGEST", 399_000)
    with refused("source.paths", file, "row group 0", remedy="mode=copy"):
        read(source_of(file), images=False)
    assert [pair.image for pair in pairs(read(source_of(file), images=True))] == noise
    assert len(pairs(read(source_of(paths), images=False))) == 40
    monkeypatch.setattr(parquet, "_LARGEST", 401_000)
    assert len(pairs(read(source_of(file), images=False))) == 40


def test_a_dot_in_the_columns_name(tmp_path: Path) -> None:
    file = put(tmp_path / "x.parquet", {"my.image": [A, B], "my.text": ["a", "b"]})
    source = source_of(file, image="my.image", caption="my.text")
    assert [(pair.image, pair.captions) for pair in pairs(read(source))] == [(A, ["a"]), (B, ["b"])]
    with refused("source.paths", file, "'my.image'", remedy="mode=copy"):
        read(source, images=False)


@pytest.mark.parametrize(
    ("columns", "keys", "key", "named"),
    [
        ({"photo": [A], "caption": ["a"]}, {}, "image", ["image, jpg", "'photo', 'caption'", "source.image=NAME"]),
        ({"image": [A], "words": ["a"]}, {}, "caption", ["caption, ", "'image', 'words'", "source.caption=NAME"]),
        ({"image": [A], "caption": ["a"]}, {"caption": "alt"}, "caption", ["'alt'", "'image', 'caption'"]),
        ({"image": [A], "caption": ["a"]}, {"label": "kind"}, "label", ["'kind'", "'image', 'caption'"]),
        ({"image": [7], "caption": ["a"]}, {}, "image", ["'image'", "int64", "source.image=NAME"]),
        ({"image": [A], "caption": [7]}, {}, "caption", ["'caption'", "int64", "source.caption=NAME"]),
        ({"image": [A], "caption": ["a"], "tags": [["x"]]}, {"label": "tags"}, "label", ["'tags'", "list", "source.label=NAME"]),
    ],
)
def test_columns_that_do_not_fit(
    tmp_path: Path, columns: dict[str, Any], keys: dict[str, str], key: str, named: list[str]
) -> None:
    file = put(tmp_path / "x.parquet", columns)
    with refused(f"source.{key}", file, *named):
        source_of(file, **keys).units()


def test_a_file_that_does_not_fit_does_not_stop_the_others(tmp_path: Path) -> None:
    for name in ("a", "f"):
        put(tmp_path / f"{name}.parquet", {"image": [A], "caption": [name]})
    put(tmp_path / "b.parquet", {"image": [A], "words": ["b"]})
    (tmp_path / "c.parquet").write_text("<html>404</html>")
    (tmp_path / "d.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    (tmp_path / "e.parquet").write_bytes(b"")
    found = read(source_of(tmp_path))
    bad = [(name, "unreadable_file") for name in "bcde"]
    assert told(found) == [("a:1", ["a"]), *bad, ("f:1", ["f"])]
    for name in "cde":
        with refused("source.paths", f"{name}.parquet"):
            source_of(tmp_path / f"{name}.parquet").units()
    put(tmp_path / "g.parquet", {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    with refused("source.paths", "g.parquet"):
        source_of(tmp_path / "g.parquet").units()


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).bytes(2000) for i in range(90)]
    file = put(tmp_path / "x.parquet", {"image": noise, "caption": [str(i) for i in range(90)]}, row_group_size=30)
    content = bytearray(file.read_bytes())
    place = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    content[place : place + 1000] = b"\xff" * 1000
    file.write_bytes(content)
    found = read(source_of(file))
    assert [key for key, _ in told(found)] == [f"x:{i + 1}" for i in range(90)]
    assert [row.image for row in pairs(found[:30] + found[60:])] == noise[:30] + noise[60:]
    assert {value for _, value in told(found[30:60])} == {"unreadable_file"}


def test_a_changed_file_is_a_changed_unit(tmp_path: Path) -> None:
    file = put(tmp_path / "x.parquet", {"image": [A], "caption": ["a"]})
    (before,) = source_of(file).units()
    put(file, {"image": [A], "caption": ["abc"]})
    (after,) = source_of(file).units()
    assert before.data != after.data
    source = source_of(put(file, {"image": [A, B], "caption": ["a", "b"]}, row_group_size=1))
    (joined,) = source.units()
    put(file, {"image": [C], "caption": ["c"]})
    for images in (True, False):
        assert told(list(source.read(joined.data, images))) == [("x:1", ["c"]), ("x:2", "unreadable_file")]
    file.unlink()
    assert told(list(source_of(tmp_path).read(after.data, True))) == [("x:1", "unreadable_file")]


def test_a_failing_store_changes_nothing(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(parquet, "_BUFFER", 1 << 16)
    # The client's own attempts would hide most of it.
    monkeypatch.setattr(storage, "_REQUEST_ATTEMPTS", 1)
    storage._remote_system.cache_clear()
    noise = [np.random.default_rng(i).bytes(5000) for i in range(600)]
    content = put(
        tmp_path / "x.parquet",
        {"image": noise, "caption": [str(i) for i in range(600)]},
        row_group_size=200,
        data_page_size=1 << 16,
        use_dictionary=False,
        write_batch_size=8,
    ).read_bytes()
    uri = store.folder("parquet").put("x.parquet", content)
    source = source_of(uri)
    store.forget()
    with store.faulty(errors=0.03, resets=0.03, stalls=0):
        found = pairs(read(source))
    assert sum(store.faults().values()) >= 3
    assert [(pair.key, pair.image) for pair in found] == [(f"x:{i + 1}", noise[i]) for i in range(600)]
    assert read_location(found[599].location) == noise[599]
    storage._remote_system.cache_clear()
