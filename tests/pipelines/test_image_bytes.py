"""Images by where they are: ranges and rows in the order asked for, many requests at a time, and memory that stays flat."""

import io
import re
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from pipelines.io import image_bytes, retry, storage
from pipelines.io.image_bytes import Location, read_group, read_location, read_locations
from pipelines.io.storage import Missing
from tests.object_store import Folder
from tests.patience import wait_until

GROUP = 10  # rows of a group
ROWS = [np.random.default_rng(i).bytes(1000 + i) for i in range(45)]


@pytest.fixture(params=["disk", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str, bytes], str]:
    """Place a file; gives its path or URI."""
    if request.param == "s3":
        return request.getfixturevalue("bucket").put

    def place(name: str, data: bytes) -> str:
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return place


@pytest.fixture(autouse=True)
def no_groups_from_before() -> None:
    image_bytes._groups.clear()


def table_file(kind: str, rows: list[bytes | None] = ROWS, group: int = GROUP) -> bytes:
    """A table of images as bytes, and within a struct as Hugging Face has them, in groups of ten rows."""
    images = [None if row is None else {"bytes": row, "path": f"{i}.jpg"} for i, row in enumerate(rows)]
    table = pa.table(
        {"id": range(len(rows)), "encoded": pa.array(rows, pa.binary()), "image": images, "text": ["a text"] * len(rows)}
    )
    sink = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink, row_group_size=group)
    else:
        new = pa.ipc.new_file if kind == "file.arrow" else pa.ipc.new_stream
        with new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return sink.getvalue()


def shuffled(count: int) -> list[int]:
    return np.random.default_rng(7).permutation(count).tolist()


def test_ranges_in_the_order_asked_for(put: Callable[[str, bytes], str]) -> None:
    whole = b"".join(ROWS)
    ends = np.cumsum([len(row) for row in ROWS]).tolist()
    tar, single = put("a.tar", whole), put("single.jpg", ROWS[3])
    order = shuffled(len(ROWS)) * 3
    assert len(order) > image_bytes._AHEAD
    asked = [Location(tar, ends[i] - len(ROWS[i]), len(ROWS[i])) for i in order]
    assert list(read_locations(asked)) == [ROWS[i] for i in order]
    assert list(read_locations([Location(single), asked[0], Location(single)])) == [ROWS[3], ROWS[order[0]], ROWS[3]]
    assert list(read_locations([])) == []


@pytest.mark.parametrize("kind", ["parquet", "file.arrow", "stream.arrow"])
@pytest.mark.parametrize("column", ["encoded", "image.bytes"])
def test_rows_of_tables(put: Callable[[str, bytes], str], kind: str, column: str) -> None:
    path = put(f"t.{kind}", table_file(kind))
    order = shuffled(len(ROWS))
    asked = [Location(path, i // GROUP, i % GROUP, column) for i in order]
    assert list(read_locations(asked)) == [ROWS[i] for i in order]
    assert read_group(path, 4, column).to_pylist() == ROWS[40:], "the last group is shorter"


@pytest.mark.parametrize("kind", ["parquet", "file.arrow", "stream.arrow"])
def test_each_row_is_missing_for_itself(put: Callable[[str, bytes], str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    path = put(f"t.{kind}", table_file(kind, [b"one", None, b"three"]))
    broken = put(f"broken.{kind}", table_file(kind)[200:-200])
    bad = {
        "no image": Location(path, 0, 1, "image.bytes"),
        "no row 3 among the 3": Location(path, 0, 3, "encoded"),
        "str, not bytes": Location(path, 0, 0, "text"),
        "IndexError|KeyError": Location(path, 0, 0, "none"),
        "IndexError|KeyError|ArrowInvalid": Location(path, 0, 0, "image.none"),
        "IndexError|ArrowInvalid": Location(path, 1, 0, "encoded"),
        "ArrowInvalid|Invalid IPC": Location(broken, 0, 0, "encoded"),
        "not|No": Location(f"{path}.gone", 0, 0, "encoded"),
        "No|not": Location(f"{path}.gone", 0, 5),
    }
    good = Location(path, 0, 2, "image.bytes")
    found = list(read_locations([place for one in bad.values() for place in (one, good)]))
    assert found[1::2] == [b"three"] * len(bad)
    for words, missing in zip(bad, found[::2], strict=True):
        assert isinstance(missing, Missing) and re.search(words, str(missing)), (words, missing)
    with pytest.raises(Missing, match="no image"):
        read_location(Location(path, 0, 1, "encoded"))


def test_many_requests_are_out_at_a_time(bucket: Folder) -> None:
    path = bucket.put("a.tar", bytes(range(100)))
    storage.read(path, 0, 1)
    bucket.store.forget()
    with ThreadPoolExecutor(1) as pool:
        with bucket.store.faulty(errors=0, stalls=0, resets=0, held="GET "):
            found = pool.submit(lambda: b"".join(read_locations([Location(path, i, 1) for i in range(100)])))
            wait_until(lambda: bucket.store.held() > 16)  # before any is answered
        assert found.result() == bytes(range(100))
    assert 16 < bucket.store.most_in_flight() <= image_bytes._THREADS
    assert sum(request.bytes for request in bucket.store.requests()) == 100, "an image costs its own bytes"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, and images ahead, so that a bound shows after a few requests."""
    monkeypatch.setattr(image_bytes, "_THREADS", 8)
    monkeypatch.setattr(image_bytes, "_AHEAD", 32)


def test_what_is_fetched_ahead_is_bounded(bucket: Folder, few: None) -> None:
    path = bucket.put("a.tar", bytes(500))
    storage.read(path, 0, 1)
    bucket.store.forget()
    images = read_locations([Location(path, i, 1) for i in range(500)])
    for taken in range(1, 76):
        next(images)
        if taken in (1, 2, 75):
            assert taken < settled(bucket, taken) <= taken + image_bytes._AHEAD
    images.close()


def settled(bucket: Folder, taken: int) -> int:
    """The number of requests once there are more than were taken, and no more come."""

    def asked() -> int:
        return sum(request.count for request in bucket.store.requests())

    wait_until(lambda: asked() > taken)
    before, now = -1, 0
    while now != before:
        time.sleep(0.2)
        before, now = now, asked()
    return now


def test_what_was_read_is_not_kept(bucket: Folder, few: None) -> None:
    size = 1 << 19
    path = bucket.put("a.tar", bytes(size))
    tracemalloc.start()
    try:
        images = read_locations([Location(path, 0, size)] * 100)
        assert all(len(next(images)) == size for _ in range(99))
        last = next(images)
        assert isinstance(last, bytes)
        now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now < 20 * size, "at the end all but the last are gone"
    assert image_bytes._THREADS * size < most < (image_bytes._AHEAD + 3 * image_bytes._THREADS) * size


def test_leaving_early_waits_for_nothing_and_cancels_what_waits(bucket: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer threads than the store's client has connections, so that the slow ones cannot take all of them."""
    monkeypatch.setattr(image_bytes, "_THREADS", 8)
    quick, slow = bucket.put("quick", b"q"), bucket.put("slow", bytes(100))
    storage.read(slow, 0, 1)
    bucket.store.forget()
    images = read_locations([Location(quick), *[Location(slow, i, 1) for i in range(99)], *[Location(slow, 0, 2)] * 100])
    others = set(threading.enumerate())
    with bucket.store.faulty(errors=0, resets=0, stalls=0, held="slow"):
        assert next(images) == b"q"
        wait_until(lambda: bucket.store.held() > 1)
        images.close()
        assert set(threading.enumerate()) - others, "close waited"
        assert sum(request.bytes for request in bucket.store.requests() if request.key.endswith("slow")) == 0
    wait_until(lambda: set(threading.enumerate()) <= others)
    asked = sum(request.count for request in bucket.store.requests() if request.key.endswith("slow"))
    assert 0 < asked <= image_bytes._THREADS, "those that were out, and none of those that waited"


def test_a_group_is_read_once_however_many_ask(bucket: Folder) -> None:
    data = table_file("parquet", ROWS * 4, len(ROWS))
    path = bucket.put("t.parquet", data)
    rows = [Location(path, group, row, "encoded") for group in range(4) for row in range(len(ROWS))]
    with bucket.store.faulty(errors=0, stalls=0, resets=0, latency=0.05):
        assert list(read_locations(rows)) == ROWS * 4
    footers = 4 * (64 << 10)
    assert sum(r.bytes for r in bucket.store.requests()) < 0.6 * len(data) + footers, "one of the two columns of images, once"


def test_groups_are_read_a_few_at_a_time(bucket: Folder) -> None:
    path = bucket.put("t.parquet", table_file("parquet", ROWS * 4))
    with ThreadPoolExecutor(1) as pool:
        with bucket.store.faulty(errors=0, stalls=0, resets=0, held="GET |HEAD "):
            found = pool.submit(lambda: list(read_locations([Location(path, group, 0, "encoded") for group in range(18)])))
            wait_until(lambda: bucket.store.held() > 1)
        assert found.result() == (ROWS * 4)[::GROUP]
    assert 1 < bucket.store.most_in_flight() <= 4


def test_groups_that_are_kept_are_bounded_by_their_bytes(
    put: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_bytes, "_KEPT_BYTES", 45_000)
    path = put("t.parquet", table_file("parquet", ROWS * 8))
    for group in range(36):
        assert read_location(Location(path, group, 5, "encoded")) == (ROWS * 8)[group * GROUP + 5]
        kept = [found.result() for found in image_bytes._groups.values()]
        assert sum(column.nbytes for column in kept) <= 45_000
    assert [group for _, group, _ in image_bytes._groups] == [32, 33, 34, 35], "some 10 kB each; the newest are kept"
    read_location(Location(path, 32, 0, "encoded"))
    read_location(Location(path, 3, 0, "encoded"))
    assert [group for _, group, _ in image_bytes._groups] == [34, 35, 32, 3], "what was used last goes last"
    monkeypatch.setattr(image_bytes, "_KEPT_BYTES", 10)
    assert read_location(Location(path, 9, 0, "encoded")) == (ROWS * 8)[90]
    assert [group for _, group, _ in image_bytes._groups] == [9], (
        "one that is larger than all may be is kept as long as it is the newest"
    )


def test_a_group_that_failed_is_asked_for_again(tmp_path: Path) -> None:
    location = Location(str(tmp_path / "t.parquet"), 0, 1, "encoded")
    with pytest.raises(Missing):
        read_location(location)
    (tmp_path / "t.parquet").write_bytes(table_file("parquet"))
    assert read_location(location) == ROWS[1]


@pytest.mark.slow
def test_nobody_notices_faults(bucket: Folder) -> None:
    path = bucket.put("t.parquet", table_file("parquet", ROWS * 8))
    tar = bucket.put("a.tar", b"".join(ROWS))
    rows = shuffled(len(ROWS) * 8)
    asked = [Location(path, row // GROUP, row % GROUP, "encoded") for row in rows]
    asked += [Location(tar, i * 100, 100) for i in range(150)]
    with bucket.store.faulty(errors=0.06, stalls=0.03, resets=0.06):
        found = list(read_locations(asked))
    assert found[: len(rows)] == [(ROWS * 8)[row] for row in rows]
    assert b"".join(part for part in found[len(rows) :] if isinstance(part, bytes)) == b"".join(ROWS)[:15_000]
    assert all(count > 0 for count in bucket.store.faults().values()), bucket.store.faults()
