"""The table source: rows of csv and tsv files as people have them, where their images are, and what is said of bad rows."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.io.image_bytes import Location, read_location
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.table import TableSource
from tests.refusals import refused


def source_of(*paths: Path | str, **keys: object) -> TableSource:
    return validate(TableSource, {"name": "table", "paths": [str(path) for path in paths], **keys}, "test")


def read(source: TableSource, images: bool = False) -> list[Pair | Rejected]:
    """All rows, each unit as the real caller passes it: as JSON."""
    found = []
    for unit in source.units():
        rows = list(source.read(json.loads(json.dumps(unit.data)), images))
        assert unit.rows in (None, len(rows))
        found += rows
    return found


def pairs(source: TableSource) -> list[Pair]:
    found = read(source)
    assert all(isinstance(row, Pair) for row in found), found
    return [row for row in found if isinstance(row, Pair)]


def captions(source: TableSource) -> list[list[str]]:
    return [pair.captions for pair in pairs(source)]


def reasons(found: list[Pair | Rejected]) -> dict[str, str]:
    return {row.key: row.reason if isinstance(row, Rejected) else "" for row in found}


def file(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("images", [True, False])
def test_rows_give_the_images_that_lie_beside_the_table(tmp_path: Path, images: bool) -> None:
    file(tmp_path / "images" / "red.png", png("red"))
    blue = file(tmp_path / "more" / "blue.png", png("blue"))
    table = file(tmp_path / "train.csv", f'image,caption\nimages/red.png,"Red, all over"\n{blue},Blue\n')
    found = read(source_of(table), images)
    assert [(row.key, row.captions, row.group, row.labels, row.image) for row in found if isinstance(row, Pair)] == [
        ("train:1", ["Red, all over"], "red, all over", {}, None),
        ("train:2", ["Blue"], "blue", {}, None),
    ]
    assert [read_location(row.location) for row in found if isinstance(row, Pair)] == [png("red"), png("blue")]
    assert [row.origin for row in found] == [str(tmp_path / "images" / "red.png"), str(blue)]


def test_images_may_lie_below_another_root_and_urls_stay_urls(tmp_path: Path) -> None:
    table = file(tmp_path / "a.csv", "image,caption\nx/1.jpg,a\nhttp://host/2.jpg?a=b,b\ns3://bucket/3.jpg,c\n/abs/4.jpg,d\n")
    here = [pair.location for pair in pairs(source_of(table, root=tmp_path / "images", outside=True))]
    rest = [Location("http://host/2.jpg?a=b"), Location("s3://bucket/3.jpg"), Location("/abs/4.jpg")]
    assert here == [Location(str(tmp_path / "images" / "x" / "1.jpg")), *rest]
    assert [pair.location for pair in pairs(source_of(table, root="s3://bucket/all", outside=True))] == [
        Location("s3://bucket/all/x/1.jpg"),
        *rest,
    ]


def test_tables_of_open_clip_and_conceptual_captions(tmp_path: Path) -> None:
    clip = file(tmp_path / "clip.csv", "filepath\ttitle\na.jpg\tone, two\n")
    (pair,) = pairs(source_of(clip, separator="\\t"))
    assert (pair.location.file, pair.captions) == (str(tmp_path / "a.jpg"), ["one, two"])
    # Quotes in CC3M's file enclose nothing.
    cc3m = file(tmp_path / "Train_GCC-training.tsv", 'a 5" pipe\thttp://h/1\n"the end\thttp://h/2\nsaid "so" \thttp://h/3\n')
    found = pairs(source_of(cc3m, header=False, caption=0, image=1))
    assert [(p.key, p.captions, p.location.file) for p in found] == [
        ("Train_GCC-training:1", ['a 5" pipe'], "http://h/1"),
        ("Train_GCC-training:2", ['"the end'], "http://h/2"),
        ("Train_GCC-training:3", ['said "so" '], "http://h/3"),
    ]
    assert pairs(source_of(cc3m, caption=0, image=1)) == found  # numbers mean that there is no header
    assert captions(source_of(cc3m, caption=0, image=1, header=True)) == [['"the end'], ['said "so" ']]


@pytest.mark.parametrize(
    ("header", "image", "caption"),
    [
        ("filepath,title", 0, 1),
        ("caption,image", 1, 0),
        ("id,image_path,text", 1, 2),
        ("TEXT,URL", 1, 0),
        ("title,url,caption", 1, 2),
        ("title,image,url", 1, 0),
        (" image , caption ", 0, 1),
        ('"path","text"', 0, 1),
    ],
)
def test_usual_names_of_columns_are_found(tmp_path: Path, header: str, image: int, caption: int) -> None:
    row = [f"cell{i}" for i in range(header.count(",") + 1)]
    (pair,) = pairs(source_of(file(tmp_path / "a.csv", f"{header}\n{','.join(row)}\n")))
    assert (pair.location.file, pair.captions) == (str(tmp_path / row[image]), [row[caption]])


def test_columns_can_be_named_and_several_can_hold_captions(tmp_path: Path) -> None:
    table = file(tmp_path / "a.csv", "id,pic,en,de,kind,who\nx7,1.jpg,cat,Katze,pet,ann\nx8,2.jpg,,Hund,,\n,3.jpg,,,wild,bob\n")
    source = source_of(table, image="pic", caption=["en", "de"], label="kind", group="who", key="id")
    assert [(p.key, p.captions, p.labels, p.group) for p in pairs(source)] == [
        ("x7", ["cat", "Katze"], {"kind": "pet"}, "ann"),
        ("x8", ["Hund"], {}, "hund"),
        ("a:3", [""], {"kind": "wild"}, "bob"),
    ]
    further = source_of(table, image="pic", caption=["en"], label="kind", columns=["who", "de"])
    assert [p.labels for p in pairs(further)][::2] == [
        {"kind": "pet", "who": "ann", "de": "Katze"},
        {"kind": "wild", "who": "bob"},
    ]
    (first, *_) = pairs(source_of(table, header=True, image=1, caption=[3], columns=[5]))
    assert first.labels == {"column_5": "ann"}
    with refused("source.columns", "'whom'", "'who'"):
        source_of(table, image="pic", caption=["en"], columns=["whom"]).units()
    (first, *_) = pairs(source_of(table, header=True, image=1, caption=[3, 2], label=4))
    assert (first.captions, first.labels) == (["Katze", "cat"], {"label": "pet"})


def test_captions_are_the_text_of_the_file(tmp_path: Path) -> None:
    words = ["NA", "null", "None", "nan", "1e5", "true", "007", "", "  padded  ", "caf\u00e9 \u2028 \U0001f431", "a 'b' c"]
    table = file(tmp_path / "a.csv", "image,caption\n" + "".join(f"{i}.jpg,{word}\n" for i, word in enumerate(words)))
    assert captions(source_of(table)) == [[word] for word in words]


def test_quotes_line_ends_and_byte_order_marks_are_read_as_csv_does(tmp_path: Path) -> None:
    content = '\ufeffimage,caption\r\n"1.jpg","say ""hi"",\r\n now"\r\n\r\n2.jpg,plain\r\n3.jpg,no end'
    assert captions(source_of(file(tmp_path / "a.csv", content))) == [['say "hi",\r\n now'], ["plain"], ["no end"]]
    unquoted = file(tmp_path / "c.tsv", 'image\tcaption\r\n1.jpg\t"a\rb"\r\n\r\n2.jpg\tend\r\n')
    assert captions(source_of(unquoted)) == [['"a\rb"'], ["end"]]
    headerless = file(tmp_path / "b.csv", '\ufeff"1.jpg",a\n2.jpg,b\n')
    assert [Path(p.location.file).name for p in pairs(source_of(headerless, image=0, caption=1))] == ["1.jpg", "2.jpg"]


def test_a_bad_row_is_rejected_and_the_others_go_on(tmp_path: Path) -> None:
    rows = [b"1.jpg,fine", b"2.jpg", b"3.jpg,a,b", b"4.jpg,caf\xe9", b"5.jpg,nul\0", b",no path", b"\0.jpg,x", b"8.jpg,a\rb"]
    rows += [b"9.jpg," + b"x" * 200_000, b"10.jpg," + b"y" * 3_000_000, b"   ,z", b'12.jpg,"un" quoted', b"13.jpg,fine"]
    table = file(tmp_path / "a.csv", b"image,caption\n" + b"\n".join(rows) + b"\n")
    found = read(source_of(table))
    expected = dict.fromkeys(range(1, 14), "bad_row") | {1: "", 5: "", 6: "missing_image", 11: "missing_image", 13: ""}
    assert reasons(found) == {f"a:{number}": reason for number, reason in expected.items()}
    details = [row.detail for row in found if isinstance(row, Rejected)]
    assert details[0] == "1 fields instead of 2" and details[1] == "3 fields instead of 2" and all(details)
    assert found[1].origin == f"{table}, row 2"


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['1,"never closed', "2,b", "3,c", "4,d"], {1}),
        (["1,a", '2,"open', '3,"b"', "4,d"], {2}),  # closed by a quote that opens another field
        (['1,"open', "2,b", '3,c"', "4,d"], set()),  # a quoted line break: one row
        (['1,"open', '2,b",more', "3,c", "4,d"], {1, 2}),  # too many fields in a row of two lines: each counts
        (["1,a"] * 2 + ['3,"open'] + [f"{i},{'x' * 999}" for i in range(4, 1200)], {3}),  # longer than csv takes
    ],
)
def test_a_quote_that_does_not_close_swallows_no_other_row(tmp_path: Path, lines: list[str], bad: set[int]) -> None:
    found = read(source_of(file(tmp_path / "a.csv", "\n".join(["image,caption", *lines]) + "\n")))
    assert {number for number, row in enumerate(found, 1) if isinstance(row, Rejected)} == bad
    assert len(found) == (len(lines) if bad else 2)
    assert isinstance(found[-1], Pair) and found[-1].captions == [lines[-1].split(",")[1]]


def test_units_are_ranges_of_256_rows_that_can_be_read_alone_in_any_order(tmp_path: Path) -> None:
    rows = [f'{i}.jpg,"caption {i}\nsecond line {"x" * (i % 7)}"' for i in range(1, 601)]
    source = source_of(file(tmp_path / "a.csv", "image,caption\n" + "\n".join(rows)))
    units = source.units()
    assert [unit.rows for unit in units] == [256, 256, 88]
    found = [row for unit in reversed(units) for row in reversed(list(source.read(unit.data, False)))][::-1]
    assert [(row.key, Path(row.origin).name) for row in found] == [(f"a:{i}", f"{i}.jpg") for i in range(1, 601)]
    assert all(isinstance(row, Pair) and row.captions[0].startswith(f"caption {i}\n") for i, row in enumerate(found, 1))


def test_a_changed_table_has_other_units(tmp_path: Path) -> None:
    table = file(tmp_path / "a.csv", "image,caption\n1.jpg,abc\n")
    before = source_of(table).units()
    assert source_of(table).units() == before
    file(table, "image,caption\n1.jpg,abd\n")
    assert source_of(table).units()[0].data != before[0].data


@given(
    cells=st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), st.text()), min_size=1)
)
def test_what_csv_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]) -> None:
    cells = [(f"x{image}", caption.encode(errors="replace").decode().replace("\0", "")) for image, caption in cells]
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([("caption", "image"), *((caption, image) for image, caption in cells)])
    found = read(source_of(path, root="r://h"))
    assert [(row.origin, row.captions) for row in found if isinstance(row, Pair)] == [
        (image if "://" in image else f"r://h/{image}", [caption]) for image, caption in cells
    ]


@given(
    content=st.lists(st.sampled_from([b'"', b",", b"\n", b"\r\n", b"a", b"\xff", b"1.jpg,b\n", b'2.jpg,"c\nd"\n']), max_size=60)
)
def test_any_bytes_give_the_same_rows_in_small_units_as_in_one(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes]
) -> None:
    table = file(tmp_path_factory.mktemp("bytes") / "a.csv", b"image,caption\n" + b"".join(content) + b"\nlast.jpg,last")
    whole = read(source_of(table))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.sources.rows.ROWS_PER_UNIT", 2)
        assert read(source_of(table)) == whole
    assert len({row.key for row in whole}) == len(whole)
    zipped = Path(f"{table}.gz")
    zipped.write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    assert [row.key for row in read(source_of(zipped))] == [row.key for row in whole]


@pytest.mark.slow
def test_compressed_tables_are_read_in_one_piece_and_kept_as_far_as_they_go(tmp_path: Path) -> None:
    text = "caption\turl\n" + "".join(f"c{i * 7919 % 10007}\thttp://h/{i}\n" for i in range(20_000))
    whole = tmp_path / "a.tsv.gz"
    whole.write_bytes(gzip.compress(text.encode()))
    assert [unit.rows for unit in source_of(whole).units()] == [None]
    complete = pairs(source_of(whole))
    assert len(complete) == 20_000 and complete[0].key == "a:1" and complete[-1].captions == [f"c{19_999 * 7919 % 10007}"]
    whole.write_bytes(whole.read_bytes()[:-30_000])
    *kept, last = read(source_of(whole))
    assert kept == complete[: len(kept)] and 5_000 < len(kept) < 20_000
    assert isinstance(last, Rejected) and (last.key, last.origin, last.reason) == ("a", str(whole), "truncated_archive")


def test_lines_behind_an_open_quote_of_a_cut_table_are_kept(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,c{i * 7919 % 10007}\n" for i in range(9_000))
    table = tmp_path / "a.csv.gz"
    table.write_bytes(gzip.compress(f'image,caption\n{rows}x.jpg,"open\n{rows[:5000]}'.encode())[:-200])
    found = read(source_of(table))
    at = [row.key for row in found if isinstance(row, Rejected)]
    assert at == ["a:9001", "a"] and isinstance(found[-1], Rejected) and len(found) > 9_010


def test_many_files_keep_the_order_of_the_patterns_and_keys_apart(tmp_path: Path) -> None:
    for name in ("y1/part.csv", "y2/part.csv", "y2/other.csv", "y10/part.csv"):
        file(tmp_path / name, f"image,caption\n1.jpg,{name}\n")
    found = pairs(source_of(f"{tmp_path}/y{{2,1}}/part.csv", tmp_path / "y*" / "*.csv"))
    assert [pair.captions[0] for pair in found] == ["y2/part.csv", "y1/part.csv", "y10/part.csv", "y2/other.csv"]
    assert [pair.key for pair in found] == ["y2/part:1", "y1/part:1", "y10/part:1", "other:1"]


def test_a_folder_stands_for_the_tables_in_it(tmp_path: Path) -> None:
    file(tmp_path / "a.csv", "image,caption\nb.png,x\n")
    file(tmp_path / "b.png", png("red"))
    file(tmp_path / "deep" / "c.tsv", "image\tcaption\nc.png\ty\n")
    assert captions(source_of(tmp_path)) == [["x"], ["y"]]


def test_one_damaged_file_among_many_is_one_rejected_row(tmp_path: Path) -> None:
    file(tmp_path / "0.csv", "")
    file(tmp_path / "a.csv", "image,caption\n1.jpg,a\n")
    file(tmp_path / "b.csv", b"\xff\xfe")
    file(tmp_path / "c.csv", "other,columns\n1,2\n")
    file(tmp_path / "d.csv", "image,caption\n2.jpg,d\n".encode("utf-16"))
    file(tmp_path / "e.csv.gz", b"\x1f\x8bnot gzip")
    file(tmp_path / "f.csv", "image,caption\n3.jpg,f\n")
    found = read(source_of(tmp_path / "*"))
    bad = dict.fromkeys("0bcde", "unreadable_file")
    assert reasons(found) == {"a:1": "", **bad, "f:1": ""}
    assert "'other', 'columns'" in found[3].detail  # type: ignore[union-attr]


def test_a_table_that_went_away_since_it_was_listed_is_a_rejected_row(tmp_path: Path) -> None:
    source = source_of(file(tmp_path / "a.csv", "image,caption\n1.jpg,a\n"))
    (unit,) = source.units()
    (tmp_path / "a.csv").unlink()
    (row,) = source.read(unit.data, False)
    assert isinstance(row, Rejected) and (row.key, row.reason) == ("a", "unreadable_file")


def test_a_bad_first_row_without_header_is_one_bad_row(tmp_path: Path) -> None:
    found = read(source_of(file(tmp_path / "a.csv", 'x,"a" b\n2.jpg,two\n'), image=0, caption=1))
    assert reasons(found) == {"a:1": "bad_row", "a:2": ""}


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        ("a,b\n1,2\n", {}, ("image", "'a', 'b'", "source.image=NAME")),
        ("image,b\n1,2\n", {}, ("caption", "'image', 'b'", "source.caption=NAME")),
        ("image,b\n1,2\n", {"caption": "text"}, ("caption", "'text'", "'image', 'b'")),
        ("image,caption\n1,2\n", {"label": "kind"}, ("label", "'kind'", "'image', 'caption'")),
        ("a,b\n1,2\n", {"image": 0, "caption": 2}, ("caption", "2 columns", "position 2")),
        ("image;caption\n1;2\n", {}, ("separator", "'image;caption'", 'source.separator=";"')),
        ("", {}, ("paths",)),
        ("\n\n", {}, ("paths",)),
        ("image,caption\n", {}, ("paths",)),
        ("image,caption\n1.jpg,a\n".encode("utf-16"), {}, ("paths", "UTF-8")),
        (b"image,capti\xf6n\n1.jpg,a\n", {}, ("paths", "UTF-8")),
        ('"image,caption\n1.jpg,a\n', {}, ("paths", "quote")),
    ],
)
def test_a_table_that_the_settings_do_not_fit_stops_with_the_way_out(
    tmp_path: Path, content: str | bytes, keys: dict, said: tuple[str, ...]
) -> None:
    table = file(tmp_path / "a.csv", content)
    key, *named = said
    with refused(f"source.{key}", table, *named):
        source_of(table, **keys).units()


@pytest.mark.parametrize(
    ("keys", "key", "value"),
    [
        ({"header": False}, "", "image=0"),
        ({"image": 0, "caption": "text"}, "caption", "'text'"),
        ({"image": -1, "caption": 0}, "image", -1),
        ({"separator": ",,"}, "separator", ",,"),
        ({"paths": []}, "paths", "[]"),
    ],
)
def test_settings_that_cannot_be_are_refused(keys: dict, key: str, value: object) -> None:
    with refused(key, value):
        validate(TableSource, {"name": "table", "paths": "a.csv", **keys}, "test")


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("data/CC3M/Train GCC.tsv", "train-gcc"),
        ("data/CC3M/*.tsv.gz", "cc3m"),
        ("data/{00..99}.csv", "data"),
        ("data/CC3M/00012.csv", "cc3m"),
        ("data/train-00001.csv", "train-00001"),
        ("part-{0..9}.csv", "part"),
        ("http://host/list.csv?token=1", "list"),
        ("*.csv", "pairs"),
    ],
)
def test_the_title_is_taken_from_the_path(path: str, title: str) -> None:
    assert source_of(path).title() == title
    assert source_of(path, dataset="mine").title() == "mine"


def test_a_table_behind_http_is_one_unit(http_files: Callable[[dict[str, bytes]], str]) -> None:
    address = http_files({"list.csv": b"image,caption\n1.jpg,one\n", "1.jpg": b"jpeg"})
    (pair,) = pairs(source_of(f"{address}/list.csv"))
    assert (pair.location.file, pair.captions) == (f"{address}/1.jpg", ["one"])
    assert read_location(pair.location) == b"jpeg"


@pytest.fixture
def http_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Serves files below an address of this machine."""
    import functools
    import http.server
    import threading

    monkeypatch.setenv("RAYLIGN_PRIVATE_HOSTS", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def serve(files: dict[str, bytes]) -> str:
            for name, content in files.items():
                file(tmp_path / name, content)
            return f"http://127.0.0.1:{server.server_port}"

        yield serve
        server.shutdown()


def test_a_table_without_a_header_is_told_how_to_say_so(tmp_path: Path) -> None:
    """Its first row was read as names of columns."""
    table = file(tmp_path / "a.csv", "1.jpg,a cat\n2.jpg,a dog\n")
    with refused("source.image", "1.jpg", remedy="source.header=false source.image=0 source.caption=1"):
        source_of(table).units()
    assert captions(source_of(table, header=False, image=0, caption=1)) == [["a cat"], ["a dog"]]
