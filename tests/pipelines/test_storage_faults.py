"""An object store that fails: passing faults go unnoticed, lasting ones are said in time, and no file is ever there in part."""

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.io import retry, storage
from pipelines.io.image_bytes import Location, read_locations
from pipelines.io.retry import Missing, Unreachable
from tests.object_store import Folder
from tests.patience import PATIENCE, wait_until

ROOT = Path(__file__).parents[2]
SECOND_PART = "PUT .*partNumber=2"


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture(autouse=True)
def fresh_client() -> Iterator[None]:
    """What a test sets for the store's client counts, and for itself alone."""
    storage._remote_system.cache_clear()
    storage._opened.cache_clear()
    yield
    storage._remote_system.cache_clear()
    storage._opened.cache_clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once, and all of them are made, however long each takes."""
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(retry, "_PATIENCE", math.inf)


def test_missing_is_asked_for_once(bucket: Folder) -> None:
    with pytest.raises(Missing):
        storage.read(bucket.uri("none"), 0, 5)
    assert {r.count for r in bucket.store.requests() if r.key.endswith("none")} == {1}


def test_an_upload_that_fails_half_way_changes_nothing(bucket: Folder, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_REQUEST_ATTEMPTS", 1)
    bucket.put("a.bin", b"old")
    with (
        bucket.store.faulty(errors=1.0, only=SECOND_PART),
        pytest.raises(OSError, match="8 attempts"),
        storage.written(bucket.uri("a.bin")) as path,
    ):
        path.write_bytes(noise(25 << 20))
    assert bucket.get("a.bin") == b"old"
    assert bucket.store.faults()["500"] + bucket.store.faults()["503"] >= 8


def test_an_interrupt_does_not_cut_an_upload_short(bucket: Folder) -> None:
    """Closing an upload makes a file of what was sent until then. Here a part is under way as the interrupt comes."""
    code = f"""
import signal, sys
from pipelines.io import storage
storage._SENT_AT_ONCE = 6 << 20
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
signal.set_wakeup_fd(int(sys.argv[1]))  # told as the signal comes, whatever the main thread is at
try:
    with storage.written({bucket.uri("a.bin")!r}) as path:
        path.write_bytes(bytes(30 << 20))
    print("finished")
except KeyboardInterrupt:
    print("interrupted")
"""
    struck, tell = os.pipe()
    os.set_blocking(tell, False)
    with bucket.store.faulty(errors=0, resets=0, stalls=0, held=SECOND_PART):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tell)], cwd=ROOT, stdout=subprocess.PIPE, text=True, pass_fds=[tell]
        )
        os.close(tell)
        wait_until(lambda: bucket.store.held() > 0 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        assert os.read(struck, 1) == bytes([signal.SIGINT])
    os.close(struck)
    assert process.communicate(timeout=PATIENCE)[0] == "interrupted\n"
    content = bucket.get("a.bin")
    assert content is None or len(content) == 30 << 20


def test_memory_of_an_upload_is_flat(bucket: Folder) -> None:
    code = f"""
import threading, time
from pathlib import Path
from pipelines.io import storage

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) >> 10

storage._SENT_AT_ONCE = 10 << 20
with storage.written({bucket.uri("small")!r}) as path:
    path.write_bytes(bytes(11 << 20))
before = most = anonymous()
done = False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.005)
watcher = threading.Thread(target=watch)
watcher.start()
with storage.written({bucket.uri("large")!r}) as path:
    with path.open("wb") as file:
        file.truncate(100 << 20)
done = True
watcher.join()
print(most - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert int(ended.stdout) < 75, ended.stderr


def test_a_delete_whose_answer_is_lost_is_done(bucket: Folder, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_REQUEST_ATTEMPTS", 1)
    for name in ("f/1", "f/2", "g"):
        bucket.put(name, b"1")
    with bucket.store.faulty(errors=0, stalls=0, resets=1.0, only="^(POST|DELETE) "):
        for name in ("f", "g"):
            storage.delete(bucket.uri(name))
    assert bucket.store.faults()["reset"] >= 2
    assert storage.files_below(bucket.uri()) == []


@pytest.mark.slow
def test_nobody_notices_faults(bucket: Folder) -> None:
    data = noise(3 << 20)
    path = bucket.put("a.bin", data)
    ranges = [((i * 7919 * 13) % (2 << 20), 1 + (i * 104729) % 100_000) for i in range(250)]
    uploads = {f"up-{i}": noise(12 << 20, i) for i in range(3)}

    def send(name: str) -> None:
        with storage.written(bucket.uri(name)) as file:
            file.write_bytes(uploads[name])

    with bucket.store.faulty(errors=0.08, stalls=0.03, resets=0.08), ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda place: storage.read(path, *place), ranges))
        list(pool.map(send, uploads))
        copies = [storage.read(bucket.uri(name)) for name in uploads]
    assert all(found == data[start : start + length] for found, (start, length) in zip(got, ranges, strict=True))
    assert copies == list(uploads.values())
    assert [bucket.get(name) for name in uploads] == copies
    assert all(count >= 3 for count in bucket.store.faults().values()), bucket.store.faults()


@pytest.mark.slow
def test_an_answer_that_never_goes_on_is_asked_for_again(bucket: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_TIMEOUT", 3)
    data = noise(100_000)
    path = bucket.put("a.bin", data)
    storage.read(path, 0, 1)
    bucket.store.forget()
    with bucket.store.faulty(errors=0, resets=0, stalls=1.0, stall_seconds=PATIENCE, only="GET "):
        # Once the request hangs, the store comes to itself again.
        waiting = ThreadPoolExecutor(1).submit(storage.read, path, 0, 50_000)
        wait_until(lambda: bucket.store.faults()["stall"] > 0)
    assert waiting.result(timeout=PATIENCE) == data[:50_000]


def test_a_store_that_is_down_is_given_up(bucket: Folder, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_REQUEST_ATTEMPTS", 1)
    path = bucket.put("a.bin", b"there")
    with bucket.store.faulty(errors=1.0):
        with pytest.raises(Unreachable, match=r"a\.bin: .*8 attempts.*HTTP status 50"):
            storage.read(path)
        with pytest.raises(Unreachable):  # an outage is no finding about an image
            list(read_locations([Location(path, 0, 3)]))
        with pytest.raises(OSError, match="8 attempts"):
            storage.exists(path)
        monkeypatch.setattr(retry, "_PATIENCE", -1)
        with pytest.raises(Unreachable, match="3 attempts"):
            storage.read(path)
    assert storage.read(path) == b"there", "and it may come back"


def test_two_layers_of_attempts_end_in_time() -> None:
    """The store's client waits up to 2 s over three attempts, ours 19 s over eight, and a dead connection takes 20 s.

    An attempt that takes longer than all patience, as a large file does, is not the last one.
    """
    longest = sum(1.5 * retry._FIRST_WAIT * 2**attempt for attempt in range(retry._ATTEMPTS - 1))
    assert longest + retry._ATTEMPTS * 2 * (storage._REQUEST_ATTEMPTS - 1) < 60
    dead = storage._REQUEST_ATTEMPTS * storage._TIMEOUT
    assert retry._LEAST >= 2 and max(retry._PATIENCE + dead, retry._LEAST * dead) < 240


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (
            "When reading information for key 'k' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation: No body.",
            True,
        ),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", True),
        ("AWS Error UNKNOWN (HTTP status 429) during HeadObject operation", False),
        ("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.", False),
        ("AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body.", False),
    ],
)
def test_errors_that_will_not_pass_are_not_tried_again(text: str, final: bool, impatient: None) -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise OSError(text)

    with pytest.raises(Missing if final else Unreachable, match=r"^When|^AWS" if final else "8 attempts"):
        retry.retried(work, "s3://bucket/key")
    assert len(calls) == (1 if final else 8)


def test_the_environment_is_read_at_first_use(bucket: Folder) -> None:
    path = bucket.put("a.bin", b"hello")
    code = f"""
import os
from pipelines.io import storage
os.environ.update({bucket.store.environment!r})
print(storage.read({path!r}))
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.stdout == "b'hello'\n", ended.stderr


def test_the_store_ends_with_whoever_began_it() -> None:
    """Also where the tests are killed."""
    code = """
from tests.object_store import object_store
with object_store() as store:
    print(store.endpoint, flush=True)
    input()
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])
    process.kill()
    process.communicate()
    wait_until(lambda: not listens(port))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
