"""The WebDataset source: tars as ShardWriter, img2dataset and tar write them, whole, compressed, remote, and damaged."""

import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipelines.io.image_bytes import Location, read_location
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.webdataset import WebDatasetSource
from tests.object_store import Store
from tests.pipelines.rows import pairs, read, told
from tests.refusals import refused


def image(number: int) -> bytes:
    """A JPEG, another one for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 99)).save(buffer, format="JPEG")
    return buffer.getvalue()


A, B, C = image(1), image(2), image(3)


def tar_of(members: Sequence[tuple[str, bytes | str]], **keys: int) -> bytes:
    """A tar's bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **keys) as tar:  # type: ignore[call-overload]
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def put(path: Path, members: Sequence[tuple[str, bytes | str]], **keys: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(members, **keys))
    return path


def source_of(*paths: Path | str, **keys: object) -> WebDatasetSource:
    return validate(WebDatasetSource, {"name": "webdataset", "paths": [str(path) for path in paths], **keys}, "test")


PLAIN = [("a/1.jpg", A), ("a/1.txt", "One\n"), ("a/2.png", B), ("a/2.txt", "two")]


@pytest.mark.parametrize("images", [True, False])
def test_a_plain_tar_gives_places_of_its_images(tmp_path: Path, images: bool) -> None:
    file = put(tmp_path / "00007.tar", PLAIN)
    found = pairs(read(source_of(file), images))
    assert [(pair.key, pair.origin, pair.captions, pair.group, pair.image) for pair in found] == [
        ("00007/a/1", f"{file}/a/1.jpg", ["One"], "one", None),
        ("00007/a/2", f"{file}/a/2.png", ["two"], "two", None),
    ]
    assert [read_location(pair.location) for pair in found] == [A, B]
    content = file.read_bytes()
    assert found[1].location == Location(str(file), content.index(B), len(B))


def test_what_shard_writer_writes(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "shard-%03d.tar"), maxcount=5, verbose=0) as writer:
        for i in range(7):
            fields = {"caption": f"Caption {i}", "user": f"u{i // 2}"}
            writer.write({"__key__": f"{i:04d}", "jpg": image(i), "txt": f"text {i}", "json": fields, "cls": i % 3})
    found = pairs(read(source_of(tmp_path, label="cls", group="user")))
    assert [pair.key for pair in found] == [f"shard-00{i // 5}/{i:04d}" for i in range(7)]
    assert [read_location(pair.location) for pair in found] == [image(i) for i in range(7)]
    assert [pair.captions for pair in found] == [[f"text {i}"] for i in range(7)]
    assert [pair.labels for pair in found] == [{"cls": str(i % 3)} for i in range(7)]
    assert [pair.group for pair in found] == [f"u{i // 2}" for i in range(7)]
    further = pairs(read(source_of(tmp_path, label="cls", columns=["user"])))
    assert [pair.labels for pair in further] == [{"cls": str(i % 3), "user": f"u{i // 2}"} for i in range(7)]
    by_field = pairs(read(source_of(tmp_path, caption_field="caption", label="user")))
    assert [(pair.captions, pair.labels["user"]) for pair in by_field] == [([f"Caption {i}"], f"u{i // 2}") for i in range(7)]


def test_img2datasets_counts_and_fields(tmp_path: Path) -> None:
    fields = {"url": "http://h/0", "caption": None, "key": "000000001", "status": "success", "width": 8, "exif": "{}"}
    put(
        tmp_path / "00000.tar",
        [
            ("000000000.jpg", A),
            ("000000000.json", json.dumps({**fields, "caption": ["x", None, "y"], "key": "000000000"})),
            ("000000000.txt", "x"),
            ("000000001.jpg", B),
            ("000000001.json", json.dumps(fields)),
        ],
    )
    put(tmp_path / "00001.tar", [("000010000.jpg", C), ("000010000.txt", "z")])
    put(tmp_path / "00002.tar", [("000020000.jpg", C), ("000020000.txt", "z")])
    put(tmp_path / "00003.tar", [("000030000.jpg", C), ("000030000.txt", "z")])
    (tmp_path / "00000_stats.json").write_text(json.dumps({"count": 10, "successes": 2, "failed_to_download": 7}))
    (tmp_path / "sizes.json").write_text(json.dumps({"00000.tar": 99, "00001.tar": 1}))
    (tmp_path / "00003_stats.json").write_text('{"count": 1, "succ')
    (tmp_path / "00000.parquet").write_bytes(b"failures")
    source = source_of(tmp_path, caption_field="caption")
    assert [(unit.rows, unit.absent) for unit in source.units()] == [(2, 8), (1, 0), (None, 0), (None, 0)]
    assert told(read(source)[:2]) == [("00000/000000000", ["x", "y"]), ("00000/000000001", "missing_caption")]


def test_members_of_a_sample_need_not_be_adjacent(tmp_path: Path) -> None:
    file = put(
        tmp_path / "x.tar", [("./1.txt", "one"), ("2.jpg", B), ("1.jpeg", A), ("2.txt", "two"), ("d/1.jpg", C), ("d/1.txt", "3")]
    )
    found = pairs(read(source_of(file)))
    assert told(found) == [("x/1", ["one"]), ("x/2", ["two"]), ("x/d/1", ["3"])]
    assert [read_location(pair.location) for pair in found] == [A, B, C]


def test_names_end_at_the_first_dot_and_extensions_are_in_any_case(tmp_path: Path) -> None:
    members = [("v1.0/a.JPG", A), ("v1.0/a.TXT", "a"), ("v1.0/b.seg.png", B), ("v1.0/b.txt", "b")]
    found = read(source_of(put(tmp_path / "x.tar", members)))
    assert told(found) == [("x/v1.0/a", ["a"]), ("x/v1.0/b", "missing_image")]
    assert isinstance(found[1], Rejected) and ".seg.png" in found[1].detail
    assert told(read(source_of(tmp_path, image_extensions=[".JPG", "seg.png"])))[1] == ("x/v1.0/b", ["b"])


def test_of_several_images_the_first_extension_counts(tmp_path: Path) -> None:
    file = put(tmp_path / "x.tar", [("1.png", B), ("1.jpg", A), ("1.txt", "one")])
    assert [read_location(pair.location) for pair in pairs(read(source_of(file)))] == [A]
    assert [read_location(pair.location) for pair in pairs(read(source_of(file, image_extensions=["png", "jpg"])))] == [B]


def test_samples_that_are_no_pair(tmp_path: Path) -> None:
    members = [
        ("1.jpg", A),
        ("2.txt", "no image"),
        ("3.json", "{}"),
        ("4.npy", "?"),
        ("README.md", "?"),
        ("5.jpg", B),
        ("5.txt", b"\xff\xfe"),
        ("6.jpg", C),
        ("6.txt", ""),
        ("7.jpg", b""),
        ("7.txt", " \n \nLast  one \r\n"),
        ("README", "ignored"),
        (".hidden.jpg", A),
        ("._1.jpg", A),
        ("__index__", "{}"),
        ("__meta__/8.jpg", A),
    ]
    found = read(source_of(put(tmp_path / "x.tar", members)))
    assert told(found) == [
        ("x/1", "missing_caption"),
        ("x/2", "missing_image"),
        ("x/3", "missing_image"),
        ("x/4", "unknown_member"),
        ("x/README", "unknown_member"),
        ("x/5", "bad_row"),
        ("x/6", [""]),
        ("x/7", ["Last  one "]),
    ]
    assert isinstance(found[7], Pair) and read_location(found[7].location) == b""


def test_folders_and_links_are_no_members(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("s.jpg", tarfile.SYMTYPE), ("p.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "1.jpg"
            tar.addfile(member)
    assert read(source_of(tmp_path)) == []


def test_captions_are_text_as_it_is(tmp_path: Path) -> None:
    texts = [
        "NA",
        "null",
        "1e5",
        "true",
        "007",
        "  padded  ",
        "line\u2028separator\x0b",
        "\ufeffbom",
        "\u05e9\u05dc\u05d5\u05dd",
        "nan",
    ]
    members = [m for i, text in enumerate(texts) for m in ((f"{i}.jpg", A), (f"{i}.txt", text))]
    found = pairs(read(source_of(put(tmp_path / "x.tar", members))))
    assert [pair.captions[0] for pair in found] == [text.removeprefix("\ufeff") for text in texts]


def test_all_lines_of_a_caption_member(tmp_path: Path) -> None:
    file = put(tmp_path / "x.tar", [("1.jpg", A), ("1.text", "One\r\n\n two \rthree")])
    assert told(read(source_of(file, caption="text", captions="all_lines"))) == [("x/1", ["One", " two ", "three"])]


def test_bad_json_costs_its_sample_only(tmp_path: Path) -> None:
    texts = ["{", "[1]", '{"caption": 7}', '{"text": "x"}', "[" * 100_000, '{"caption": "good", "tag": true}']
    members = [m for i, text in enumerate(texts) for m in ((f"{i}.jpg", A), (f"{i}.json", text))] + [("6.jpg", A), ("6.txt", "t")]
    found = read(source_of(put(tmp_path / "x.tar", members), caption_field="caption", label="tag"))
    reasons = ["bad_row", "bad_row", "bad_row", "missing_caption", "bad_row", ["good"], "missing_caption"]
    assert told(found) == [(f"x/{i}", reason) for i, reason in enumerate(reasons)]
    assert isinstance(found[5], Pair) and found[5].labels == {"tag": "true"}


def test_of_members_of_one_name_the_first_stays(tmp_path: Path) -> None:
    members = [("1.jpg", A), ("1.txt", "one"), ("2.jpg", B), ("2.txt", "two"), ("1.jpg", C), ("1.txt", "again")]
    found = read(source_of(put(tmp_path / "x.tar", members)))
    assert told(found) == [("x/1", ["one"]), ("x/1", "duplicate_key"), ("x/2", ["two"])]
    assert isinstance(found[0], Pair) and read_location(found[0].location) == A


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, kind: int) -> None:
    names = ["d" * 120 + "/" + "f" * 150, "\u5bfa/\u732b \U0001f63a", "e/" * 40 + "x"]
    members = [m for name in names for m in ((f"{name}.jpg", A), (f"{name}.txt", "t"))]
    found = pairs(read(source_of(put(tmp_path / "x.tar", members, format=kind))))
    assert [pair.key for pair in found] == [f"x/{name}" for name in names]
    assert {read_location(pair.location) for pair in found} == {A}


def test_names_that_are_no_text_can_be_stored(tmp_path: Path) -> None:
    content = tar_of([("caf\u00e9.jpg", A), ("caf\u00e9.txt", "t")], format=tarfile.GNU_FORMAT, encoding="latin-1")  # type: ignore[arg-type]
    (tmp_path / "x.tar").write_bytes(content)
    (pair,) = pairs(read(source_of(tmp_path)))
    assert pair.key.encode() == b"x/caf\\xe9" and read_location(pair.location) == A


def test_tars_of_one_name_in_several_folders_have_keys_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        put(tmp_path / folder / "0.tar", [("1.jpg", A), ("1.txt", folder)])
    assert told(read(source_of(tmp_path))) == [("a/0/1", ["a"]), ("b/0/1", ["b"])]


def test_paths_with_braces_and_the_title(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "Laion" / f"0{i}.tar", [("1.jpg", A), ("1.txt", str(i))])
    source = source_of(tmp_path / "Laion" / "{01..02}.tar")
    assert told(read(source)) == [("01/1", ["1"]), ("02/1", ["2"])]
    assert source.title() == "laion"


def test_a_changed_tar_is_a_changed_unit(tmp_path: Path) -> None:
    file = put(tmp_path / "x.tar", PLAIN)
    (before,) = source_of(file).units()
    put(file, [*PLAIN, ("b.jpg", C)])
    (after,) = source_of(file).units()
    assert before.data != after.data


def test_a_compressed_tar_passes_its_images(tmp_path: Path) -> None:
    members = [("1.txt", "one"), ("2.jpg", B), ("2.txt", "two"), ("1.jpg", A)]
    for name in ("x.tar.gz", "y.tgz", "misnamed.tar"):
        (tmp_path / name).write_bytes(gzip.compress(tar_of(members)))
    found = pairs(read(source_of(tmp_path)))
    assert told(found) == [(f"{stem}/{i}", [t]) for stem in ("misnamed", "x", "y") for i, t in ((1, "one"), (2, "two"))]
    assert [pair.image for pair in found] == [A, B] * 3
    assert found[2].location == Location(str(tmp_path / "x.tar.gz"))
    for name in ("x.tar.gz", "y.tgz", "misnamed.tar"):
        with refused("source.paths", name, remedy="mode=copy"):
            read(source_of(tmp_path / name), images=False)


LONG = [m for i in range(20) for m in ((f"{i:02d}.jpg", image(i)), (f"{i:02d}.txt", f"text {i}"))]


@pytest.mark.parametrize("cut", ["in an image", "in a header", "in a text", "behind an image", "between samples"])
def test_a_tar_cut_short_gives_the_complete_samples(tmp_path: Path, cut: str) -> None:
    content = tar_of(LONG)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tenth, text, eleventh = (tar.getmember(name) for name in ("10.jpg", "10.txt", "11.jpg"))
    at, whole = {
        "in an image": (tenth.offset_data + tenth.size - 1, 10),
        "in a header": (tenth.offset + 100, 10),
        "in a text": (text.offset_data + 3, 10),
        "behind an image": (text.offset, 10),
        "between samples": (eleventh.offset, 11),
    }[cut]
    (tmp_path / "x.tar").write_bytes(content[:at])
    found = read(source_of(tmp_path))
    assert told(found) == [*((f"x/{i:02d}", [f"text {i}"]) for i in range(whole)), ("x", "truncated_archive")]
    assert [read_location(pair.location) for pair in pairs(found[:-1])] == [image(i) for i in range(whole)]


def test_a_tar_that_ends_right_behind_its_last_byte_is_whole_but_for_its_end(tmp_path: Path) -> None:
    content = tar_of(PLAIN)
    (tmp_path / "x.tar").write_bytes(content[: content.index(b"two") + 3])
    assert told(read(source_of(tmp_path))) == [("x/a/1", ["One"]), ("x/a/2", ["two"]), ("x", "truncated_archive")]


def test_garbage_within_a_tar_ends_it(tmp_path: Path) -> None:
    content = bytearray(tar_of(LONG))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        place = tar.getmember("05.jpg").offset
    content[place : place + 512] = b"\x07" * 512
    (tmp_path / "x.tar").write_bytes(content)
    found = read(source_of(tmp_path))
    assert told(found) == [*((f"x/{i:02d}", [f"text {i}"]) for i in range(5)), ("x", "truncated_archive")]
    assert isinstance(found[-1], Rejected) and f"byte {place}" in found[-1].detail


@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_compressed_tar_cut_short_gives_the_complete_samples(tmp_path: Path, share: float) -> None:
    noise = [np.random.default_rng(i).bytes(9000) for i in range(40)]
    content = tar_of([m for i in range(40) for m in ((f"{i:02d}.jpg", noise[i]), (f"{i:02d}.txt", f"text {i}"))])
    compressed = gzip.compress(content)
    compressed = compressed[: int(share * len(compressed))]
    (tmp_path / "x.tar.gz").write_bytes(compressed)
    left = len(zlib.decompressobj(wbits=31).decompress(compressed))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = [tar.getmember(f"{i:02d}.txt") for i in range(40)]
    whole = sum(text.offset_data + text.size <= left for text in ends)
    assert 5 < whole < 40
    found = read(source_of(tmp_path))
    assert told(found) == [*((f"x/{i:02d}", [f"text {i}"]) for i in range(whole)), ("x", "truncated_archive")]
    assert [pair.image for pair in pairs(found[:-1])] == noise[:whole]


def test_a_compressed_tar_with_a_wrong_checksum_is_told(tmp_path: Path) -> None:
    compressed = bytearray(gzip.compress(tar_of(PLAIN)))
    compressed[-6] ^= 255
    (tmp_path / "x.tgz").write_bytes(compressed)
    assert told(read(source_of(tmp_path)))[1:] == [("x/a/2", ["two"]), ("x", "truncated_archive")]


def test_files_that_are_no_tar_do_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    put(tmp_path / "a.tar", PLAIN)
    (tmp_path / "b.tar").write_text("<!doctype html><title>404</title>" * 40)
    (tmp_path / "c.tar").write_bytes(b"")
    (tmp_path / "d.tar.gz").write_bytes(b"\x1f\x8bnonsense")
    (tmp_path / "e.tar").write_bytes(bytes(10240))
    put(tmp_path / "f.tar", PLAIN)
    source = source_of(tmp_path)
    units = source.units()
    (tmp_path / "f.tar").unlink()
    found = [row for unit in units for row in source.read(unit.data, True)]
    bad = ["b", "c", "d", "f"]
    rest = [("a/a/1", ["One"]), ("a/a/2", ["two"]), *((key, "unreadable_file") for key in bad)]
    assert told(found) == [("0", "unreadable_file"), *rest]


def test_of_tars_in_one_file_none_is_ignored(tmp_path: Path) -> None:
    """As `cat a.tar b.tar` leaves them: each ends with blocks of zeros, which other readers take for the end of all."""
    second = [("a/3.jpg", C), ("a/3.txt", "three"), ("a/1.jpg", C)]
    both = tar_of(PLAIN) + tar_of(second)
    for name, data in (("x.tar", both), ("y.tar.gz", gzip.compress(both)), ("z.tar.gz", gzip.compress(tar_of(PLAIN)) * 2)):
        (tmp_path / name).write_bytes(data)
    found = read(source_of(tmp_path / "x.tar"))
    assert told(found) == [("x/a/1", ["One"]), ("x/a/1", "duplicate_key"), ("x/a/2", ["two"]), ("x/a/3", ["three"])]
    assert [read_location(row.location) for row in found if isinstance(row, Pair)] == [A, B, C]
    assert [row.image for row in read(source_of(tmp_path / "y.tar.gz")) if isinstance(row, Pair)] == [A, B, C]
    assert told(read(source_of(tmp_path / "z.tar.gz")))[1::2] == [("z/a/1", "duplicate_key"), ("z/a/2", "duplicate_key")]
    # What follows a tar's end and is none is told.
    (tmp_path / "x.tar").write_bytes(tar_of(PLAIN) + b"something else" * 100)
    assert told(read(source_of(tmp_path / "x.tar")))[2:] == [("x", "truncated_archive")]


def test_settings_that_fit_nothing_are_said_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(A)
    with refused("source.paths", "1.jpg", remedy=".tar, .tar.gz, .tgz"):
        source_of(tmp_path).units()
    with refused("source.paths", "none.tar"):
        source_of(tmp_path / "none.tar").units()
    (tmp_path / "0.tar").write_bytes(b"")
    with refused("source.paths", "0.tar"):
        source_of(tmp_path / "0.tar").units()


def test_a_remote_tar_is_read_once_and_keeps_its_name(store: Store) -> None:
    folder = store.folder("tars")
    uri = folder.put("00000.tar", tar_of(PLAIN))
    folder.put("00000_stats.json", b'{"count": 5, "successes": 2}')
    source = source_of(folder.uri("*.tar"))
    (unit,) = source.units()
    assert (unit.rows, unit.absent) == (2, 3)
    store.forget()
    found = pairs(list(source.read(unit.data, True)))
    assert sum(r.bytes for r in store.requests() if r.method == "GET" and r.key.endswith(".tar")) == len(tar_of(PLAIN))
    assert [(pair.location.file, pair.image) for pair in found] == [(uri, A), (uri, B)]
    assert [read_location(pair.location) for pair in found] == [A, B]
    assert [pair.image for pair in pairs(list(source.read(unit.data, False)))] == [A, B]  # it is at hand
    with refused("source.paths", "http://", remedy="mode=copy"):
        list(source.read({**unit.data, "file": re.sub("^s3", "http", uri)}, False))
