"""Files wherever they are: a disk and an object store give the same answers, and what is written is there whole or not at all."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.io import retry, storage
from pipelines.io.retry import Missing
from tests.object_store import Folder
from tests.refusals import refused


@dataclass(frozen=True)
class Disk:
    """A folder of this machine, to be looked into without the code under test."""

    folder: Path

    def uri(self, *names: str) -> str:
        return str(self.folder.joinpath(*names))

    def put(self, name: str, data: bytes) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    def get(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None


Home = Disk | Folder


@pytest.fixture(params=["disk", "s3"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    return Disk(tmp_path) if request.param == "disk" else request.getfixturevalue("bucket")


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def found(home: Home, *patterns: str) -> list[str]:
    """What `find` finds, relative to the folder."""
    files = storage.find(tuple(home.uri(pattern) for pattern in patterns), "source.paths")
    start = home.uri("")
    assert all(file.path.startswith(start) for file in files)
    return [file.path[len(start) :].lstrip("/") for file in files]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("shard-{08..10}.tar", ["shard-08.tar", "shard-09.tar", "shard-10.tar"]),
        ("{b,a}/{2..1}", ["b/2", "b/1", "a/2", "a/1"]),
        ("{x,{y,z}}", ["x", "y", "x", "z"]),
        ("{alone}", ["{alone}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_are_expanded(pattern: str, names: list[str]) -> None:
    assert list(storage.expand_braces(pattern)) == names


def test_find_keeps_the_order_of_patterns_and_sorts_within_each(home: Home) -> None:
    for name in ["s-10.tar", "s-09.tar", "s-11.tar", "x/b.tar", "x/a.tar", "x/y/c.tar", "x/y/d.txt", "x/.hidden.tar", "x/yc.tar"]:
        home.put(name, name.encode())
    assert found(home, "x/*.tar", "s-{10..09}.tar", "x/a.tar") == ["x/a.tar", "x/b.tar", "x/yc.tar", "s-10.tar", "s-09.tar"]
    assert found(home, "x") == found(home, "x/") == ["x/a.tar", "x/b.tar", "x/y/c.tar", "x/y/d.txt", "x/yc.tar"]
    assert found(home, "x/**/c.tar") == ["x/y/c.tar"], "xc.tar is another file"
    assert found(home, "**/*.tar") == ["s-09.tar", "s-10.tar", "s-11.tar", "x/a.tar", "x/b.tar", "x/y/c.tar", "x/yc.tar"]
    assert found(home, "*/*/c.*", "s-1[!0].tar", "s-?[89].tar") == ["x/y/c.tar", "s-11.tar", "s-09.tar"]
    assert found(home, "x/**") == ["x/a.tar", "x/b.tar", "x/y/c.tar", "x/y/d.txt", "x/yc.tar"]


def test_find_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(tmp_path).put("a.txt", b"12345")
    monkeypatch.chdir(tmp_path)
    for pattern in ("*.txt", "./*.txt", "a.txt", f"file://{tmp_path}/a.txt"):
        (file,) = storage.find(pattern, "source.paths")
        assert (Path(file.path).read_bytes(), file.size) == (b"12345", 5), pattern


def test_names_with_signs_of_their_own(home: Home) -> None:
    for name in ["a b+c#%20.bin", "photo[1].bin", "\u00fc/\u732b.bin"]:
        home.put(name, name.encode())
        assert found(home, name) == [name]
        assert storage.read(home.uri(name)) == storage.read(home.uri(name), 0, 99) == name.encode()


def test_signs_beside_a_wildcard_mean_themselves(home: Home) -> None:
    """As they do in a shell: neither a point nor a plus nor brackets match anything else."""
    for name in ["a+b#%20 (1).bin", "aab#%20 1.bin", "a+b#%20 (2)-bin"]:
        home.put(name, b"x")
    assert found(home, "a+b#%20 (*).bin") == ["a+b#%20 (1).bin"]
    assert found(home, "a*.bin") == ["a+b#%20 (1).bin", "aab#%20 1.bin"]
    assert found(home, "a[\\w+]b*.bin") == ["a+b#%20 (1).bin"], "no class of letters"


def test_find_names_the_file_that_is_missing(home: Home) -> None:
    home.put("s-00.tar", b"0")
    with refused("source.paths", home.uri("s-01.tar"), home.uri("s-{00..01}.tar")):
        storage.find(home.uri("s-{00..01}.tar"), "source.paths")
    for pattern in ("none", "none/*.tar", "s-*.txt"):
        with refused("source.paths", home.uri(pattern)):
            storage.find(home.uri(pattern), "source.paths")


def test_a_glob_of_one_folder_does_not_list_those_below(bucket: Folder) -> None:
    for i in range(30):
        bucket.put(f"deep/{i}", b"")
    bucket.put("a.tar", b"")
    bucket.store.forget()
    assert found(bucket, "*.tar") == ["a.tar"]
    listed = sum(request.bytes for request in bucket.store.requests() if request.key == "")
    assert 0 < listed < 3000, "an entry takes some 250 bytes"


def test_a_file_that_changed_looks_changed(home: Home) -> None:
    home.put("a", b"1")
    before = storage.files_below(home.uri())
    home.put("a", b"22")
    after = storage.files_below(home.uri())
    assert before != after and [file.size for file in before + after] == [1, 2]


def test_ranges(home: Home) -> None:
    data = noise(10_000)
    path = home.put("a.bin", data)
    assert storage.read(path) == data
    for start, length in [(0, 1), (5000, 100), (9990, 10), (0, 10_000), (7, 0)]:
        assert storage.read(path, start, length) == data[start : start + length]
    assert storage.read(path, 9000) == data[9000:]
    assert storage.read(path, 9990, 100) == data[9990:], "a file that was cut gives what it has"
    assert storage.read(path, 20_000, 10) == storage.read(path, 20_000) == b""
    assert storage.read(home.put("empty", b"")) == b""


def test_many_ranges_of_a_file_cost_a_request_each(bucket: Folder) -> None:
    path = bucket.put("a.tar", noise(100_000))
    for i in range(50):
        storage.read(path, i * 1000, 100)
    assert sum(r.count for r in bucket.store.requests()) == 51, "one asks for the size"
    assert sum(r.bytes for r in bucket.store.requests()) == 50 * 100


def test_what_is_not_there(home: Home) -> None:
    home.put("folder/a", b"")
    for name in ("none", "folder", "folder/a/b"):
        with pytest.raises(Missing):
            storage.read(home.uri(name))
        with pytest.raises(Missing):
            storage.read(home.uri(name), 3, 4)
    with pytest.raises(FileNotFoundError):
        storage.read_table(home.uri("none.parquet"))
    assert not storage.exists(home.uri("none"))
    assert storage.exists(home.uri("folder")) and storage.exists(home.uri("folder/a"))
    assert storage.files_below(home.uri("none")) == []


@pytest.mark.parametrize("size", [0, 100, 25 << 20])
def test_what_is_written_is_there(home: Home, size: int) -> None:
    for seed in (0, 1):
        data = noise(size, seed)
        with storage.written(home.uri("new/a.bin")) as path:
            path.write_bytes(data)
        assert home.get("new/a.bin") == data
    assert [file.size for file in storage.files_below(home.uri())] == [size], "nothing else is left"


def test_a_file_that_was_replaced_reads_as_it_is_now(home: Home) -> None:
    for data in (b"short", b"much longer than before", b"less"):
        with storage.written(home.uri("manifest.json")) as path:
            path.write_bytes(data)
        assert storage.read(home.uri("manifest.json")) == data
        assert storage.read(home.uri("manifest.json"), 0, 100) == data
    home.put("manifest.json", b"by another process")
    assert storage.read(home.uri("manifest.json")) == b"by another process"


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_while_writing_changes_nothing(home: Home, old: bytes | None) -> None:
    if old is not None:
        home.put("a.bin", old)
    with pytest.raises(RuntimeError, match="half way"), storage.written(home.uri("a.bin")) as path:
        path.write_bytes(b"half")
        raise RuntimeError("half way")
    assert home.get("a.bin") == old
    assert len(storage.files_below(home.uri())) == (old is not None)


def test_delete(home: Home) -> None:
    for name in ("a", "folder/b", "folder/deeper/c"):
        home.put(name, b"x" * 10)
    assert len(storage.read(home.uri("a"), 0, 5)) == 5
    storage.delete(home.uri("folder"))
    storage.delete(home.uri("a"))
    storage.delete(home.uri("none"))
    assert (home.get("a"), home.get("folder/b"), home.get("folder/deeper/c")) == (None, None, None)
    assert storage.files_below(home.uri()) == []
    with pytest.raises(Missing):
        storage.read(home.uri("a"), 0, 5)


def test_a_local_copy_is_there_for_the_block(home: Home, bucket: Folder) -> None:
    data = noise(9 << 20)
    path = home.put("a.tar", data)
    with storage.local_copy(path) as copy:
        assert copy.read_bytes() == data and copy.name == "a.tar"
    assert copy.exists() == (str(copy) == path), "the file itself stays, a copy goes away"
    with pytest.raises(Missing), storage.local_copy(bucket.uri("none.tar")):
        raise AssertionError("not reached")


def test_tables(home: Home) -> None:
    table = pa.table({"a": range(1000), "b": [f"text {i}" for i in range(1000)], "c": noise(1000).hex().split("0")[:1] * 1000})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=100)
    path = home.put("t.parquet", sink.getvalue().to_pybytes())
    assert storage.read_table(path).equals(table)
    assert storage.read_table(path, ["b"]).equals(table.select(["b"]))
    assert storage.read_table(path, ["b"], [("a", ">=", 990)])["b"].to_pylist() == [f"text {i}" for i in range(990, 1000)]
    with storage.open_random(path) as file:
        assert pq.ParquetFile(file).read_row_group(3, columns=["a"])["a"].to_pylist() == list(range(300, 400))


def test_a_broken_local_table_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1" + noise(100) + b"PAR1")
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: pytest.fail("waits for a disk to change its mind"))
    with pytest.raises((OSError, pa.ArrowException)):
        storage.read_table(tmp_path / "t.parquet")


@pytest.mark.parametrize("root", ["memory://", "local://{}/"])
def test_file_systems_of_fsspec(root: str, tmp_path: Path) -> None:
    """One of objects, and one with folders, which have to be made."""
    folder = f"{root.format(tmp_path)}{tmp_path.name}"
    for name, data in {"b.txt": b"bb", "a.txt": b"0123456789", "x/c.txt": b"c"}.items():
        with storage.written(f"{folder}/{name}") as path:
            path.write_bytes(data)
    assert [(f.path, f.size) for f in storage.find(f"{folder}/*.txt", "k")] == [(f"{folder}/a.txt", 10), (f"{folder}/b.txt", 2)]
    assert [f.path for f in storage.find((f"{folder}/x", f"{folder}/b.txt"), "k")] == [f"{folder}/x/c.txt", f"{folder}/b.txt"]
    assert storage.read(f"{folder}/a.txt") == b"0123456789"
    assert storage.read(f"{folder}/a.txt", 3, 4) == b"3456"
    assert storage.read(f"{folder}/a.txt", 8) == b"89"
    with storage.local_copy(f"{folder}/a.txt") as copy:
        assert copy.read_bytes() == b"0123456789"
    with pytest.raises(Missing):
        storage.read(f"{folder}/none", 0, 4)
    storage.delete(folder)
    assert not storage.exists(f"{folder}/a.txt")


def test_a_scheme_that_nobody_serves() -> None:
    with refused("carrier-pigeon://coop/a.jpg", "'carrier-pigeon'"):
        storage.find("carrier-pigeon://coop/a.jpg", "source.paths")
    with pytest.raises(Missing, match="carrier-pigeon"):
        storage.read("carrier-pigeon://coop/a.jpg")


def test_a_question_mark_begins_a_query_on_the_web_only() -> None:
    names = {
        "/pics/why?.jpg": "why?.jpg",
        "/who?/a.tar": "a.tar",
        "s3://b/why?.jpg": "why?.jpg",
        "https://h/a.jpg?sign=/x": "a.jpg",
    }
    assert {path: storage.name_of(path) for path in names} == names


def test_brackets_in_the_names_of_folders(tmp_path: Path) -> None:
    """A folder that is called so means itself; else they are a pattern, and the error says so."""
    for name in ("shards [v2]/0.tar", "shards [v2]/deep [x]/1.tar", "shards v/2.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def found(pattern: str) -> list[str]:
        return [file.path[len(str(tmp_path)) + 1 :] for file in storage.find(str(tmp_path / pattern), "source.paths")]

    assert found("shards [v2]/*.tar") == ["shards [v2]/0.tar"]
    assert found("shards [v2]/**/*.tar") == ["shards [v2]/0.tar", "shards [v2]/deep [x]/1.tar"]
    assert found("shards [v2]/deep [x]/[0-9].tar") == ["shards [v2]/deep [x]/1.tar"]
    assert found("shards [vw]/*.tar") == ["shards v/2.tar"]
    assert found("shards [[]v2]/0.tar") == ["shards [v2]/0.tar"]
    with refused("source.paths", "shards [w3]/*.tar", " [w3] "):
        found("shards [w3]/*.tar")
