"""Downloads from servers as the web has them: each kind of failure is tried again or not, and said in words, in a sane time."""

import math
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.io import http, retry, storage
from pipelines.io.retry import Missing
from tests.patience import PATIENCE, wait_until

IMAGE = np.random.default_rng(0).bytes(70_000)


class Site(ThreadingHTTPServer):
    """What each path answers is in its name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Pages)
        self.asked: Counter[str] = Counter()
        self.files: dict[str, bytes] = {"/image.jpg": IMAGE}
        self.ended = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients leave."""


class _Pages(BaseHTTPRequestHandler):
    server: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked[path] += 1
        times = self.server.asked[path]
        if path in self.server.files:
            self._answer(200, self.server.files[path])
        elif path.startswith("/status-"):
            self._answer(int(path[8:]), b"")
        elif path == "/third-time.jpg":
            self._answer(500 if times < 3 else 200, IMAGE)
        elif path.startswith("/to/"):
            self._answer(302, b"", Location=path[4:])
        elif path == "/moved.jpg":
            self._answer(302, b"", Location="/image.jpg")
        elif path in ("/cut.jpg", "/cut-once.jpg"):
            self._answer(200, IMAGE, cut=path == "/cut.jpg" or times == 1)
        elif path == "/cut-chunks.jpg":
            self._start(200, {"Transfer-Encoding": "chunked"})
            self.wfile.write(b"5\r\nhello\r\n5\r\nhe")
            self.close_connection = True
        elif path == "/until-the-end.jpg":
            self._start(200, {})
            self.wfile.write(IMAGE)
            self.close_connection = True
        elif path == "/not-http":
            self.wfile.write(b"220 mail.example ESMTP\r\n")
            self.close_connection = True
        elif path == "/announced.jpg":
            self._start(200, {"Content-Length": str(1 << 40)})
            self.server.ended.wait(PATIENCE)
        elif path == "/hangs":
            self.server.ended.wait(PATIENCE)
        elif path == "/drips":
            self._start(200, {"Content-Length": "1000000"})
            self.wfile.write(b".")
            self.server.ended.wait(PATIENCE)
        else:
            self._answer(404, b"no such page")

    def _answer(self, status: int, data: bytes, cut: bool = False, **headers: str) -> None:
        self._start(status, headers | {"Content-Length": str(len(data))})
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYLIGN_PRIVATE_HOSTS", "127.0.0.1")
    monkeypatch.setattr(retry, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr(retry, "_PATIENCE", math.inf)
    with Site() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.ended.set()
        server.shutdown()


@pytest.mark.parametrize("path", ["/image.jpg", "/image.jpg?w=1&h=2", "/moved.jpg", "/until-the-end.jpg"])
def test_what_is_there(site: Site, path: str) -> None:
    assert storage.read(site.url(path)) == IMAGE
    assert storage.read(site.url(path), 100, 50) == IMAGE[100:150]


@pytest.mark.parametrize(("path", "times"), [("/third-time.jpg", 3), ("/cut-once.jpg", 2)])
def test_what_fails_at_first_is_asked_for_again(site: Site, path: str, times: int) -> None:
    assert storage.read(site.url(path)) == IMAGE
    assert site.asked[path] == times


@pytest.mark.parametrize(
    ("path", "times", "words"),
    [
        ("/none.jpg", 1, "^HTTP 404 Not Found$"),
        ("/status-403", 1, "^HTTP 403 Forbidden$"),
        ("/status-410", 1, "^HTTP 410 Gone$"),
        ("/status-429", 4, "HTTP 429"),
        ("/status-503", 4, "HTTP 503 Service Unavailable"),
        ("/cut.jpg", 4, "35000 of 70000 bytes"),
        ("/cut-chunks.jpg", 4, "IncompleteRead"),
        ("/not-http", 4, "BadStatusLine"),
        ("/announced.jpg", 1, "100 MiB"),
    ],
)
def test_what_cannot_be_had_says_why(site: Site, path: str, times: int, words: str) -> None:
    with pytest.raises(Missing, match=words):
        storage.read(site.url(path))
    assert site.asked[path] == times


def test_a_body_without_a_length_that_is_too_large(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_BYTES", len(IMAGE) - 1)
    with pytest.raises(Missing, match="MiB"):
        storage.read(site.url("/until-the-end.jpg"))
    monkeypatch.setattr(http, "_MAX_BYTES", len(IMAGE))
    assert storage.read(site.url("/until-the-end.jpg")) == IMAGE


def test_a_server_that_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http._TIMEOUT * http._ATTEMPTS < 90, "seconds that a dead server costs"
    monkeypatch.setattr(http, "_TIMEOUT", 0.3)
    with pytest.raises(Missing, match="timed out"):
        storage.read(site.url("/hangs"))
    wait_until(lambda: site.asked["/hangs"] >= 4)  # the server hears of a request when it comes to it
    assert site.asked["/hangs"] == 4


def test_a_server_that_drips(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is two hundred seconds after the one before."""
    ticks = count(step=200)
    monkeypatch.setattr(http, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with pytest.raises(Missing, match="1024 bytes a second"):
        storage.read(site.url("/drips"))
    assert site.asked["/drips"] == 4


def test_dead_hosts_and_what_is_no_address(site: Site) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and nobody else gets the port, but nobody listens
        with pytest.raises(Missing, match="refused"):
            storage.read(f"http://127.0.0.1:{deaf.getsockname()[1]}/a.jpg")
    for url in (
        "http://",
        "http://host with spaces/a.jpg",
        "http://[::1/a.jpg",
        "http://127.0.0.1:port/",
        site.url("/a b\n.jpg"),
    ):
        with pytest.raises(Missing):
            storage.read(url)


def test_larger_files_come_as_copies(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MAX_BYTES", 1000)
    for path in ("/image.jpg", "/cut-once.jpg", "/until-the-end.jpg"):
        with storage.local_copy(site.url(path)) as copy:
            assert copy.read_bytes() == IMAGE
    with pytest.raises(Missing, match="404"), storage.local_copy(site.url("/none.tar")):
        raise AssertionError("not reached")


def test_tables_and_names(site: Site) -> None:
    table = pa.table({"url": ["a", "b"], "width": [1, 2]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    site.files["/t.parquet"] = sink.getvalue().to_pybytes()
    assert storage.read_table(site.url("/t.parquet"), ["width"]).equals(table.select(["width"]))
    urls = (site.url("/{b,a}.json?x=*"), site.url("/t.parquet"))
    assert [file.path for file in storage.find(urls, "k")] == [site.url(p) for p in ("/b.json?x=*", "/a.json?x=*", "/t.parquet")]
    assert storage.name_of(site.url("/t.parquet?x=/y")) == "t.parquet"


# --- private addresses ---


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",  # 127.0.0.1, as C's functions read numbers
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "224.0.0.1",
    ],
)
def test_private_addresses_are_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delenv(http.PRIVATE_HOSTS)
    with pytest.raises(http.Refused, match=f"{http.PRIVATE_HOSTS}="):
        storage.read(f"http://{host}:{site.server_address[1]}/image.jpg?sig=1")
    assert not site.asked


@pytest.mark.parametrize(
    ("allowed", "host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("10.0.0.0/8 127.0.0.0/8", "127.0.0.1", True),
        ("images.corp,localhost", "localhost", True),
        ("localhost", "127.0.0.1", False),
        ("10.0.0.0/8, ::1", "127.0.0.1", False),
        ("", "127.0.0.1", False),
    ],
)
def test_the_environment_names_hosts_and_networks(
    site: Site, monkeypatch: pytest.MonkeyPatch, allowed: str, host: str, asked: bool
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv(http.PRIVATE_HOSTS, allowed)
    url = f"http://{host}:{site.server_address[1]}/image.jpg"
    if asked:
        assert storage.read(url) == IMAGE
    else:
        with pytest.raises(http.Refused):
            storage.read(url)


def test_redirects_are_judged_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    port = site.server_address[1]
    with pytest.raises(http.Refused, match=r"^127\.0\.0\.2 is"):
        storage.read(site.url(f"/to/http://127.0.0.2:{port}/image.jpg"))
    with pytest.raises(Missing):
        storage.read(site.url("/to/ftp://127.0.0.1/image.jpg"))
    with pytest.raises(Missing):
        storage.read(site.url("/to/file:///etc/passwd"))
    assert site.asked["/image.jpg"] == 0
    assert storage.read(site.url(f"/to/http://127.0.0.1:{port}/image.jpg")) == IMAGE


def test_a_name_is_what_it_stands_for_when_it_is_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of names may answer a public address first and a private one after: it is asked once."""
    monkeypatch.delenv(http.PRIVATE_HOSTS)
    monkeypatch.setenv("no_proxy", "*")
    answers = iter(["127.0.0.1"])
    real = http.socket.getaddrinfo

    def looked_up(host: str, *rest: object, **keys: object) -> object:
        return real(next(answers) if host == "rebound.example" else host, *rest, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(http.socket, "getaddrinfo", looked_up)
    with pytest.raises(http.Refused, match=r"rebound\.example is 127\.0\.0\.1"):
        storage.read(f"http://rebound.example:{site.server_address[1]}/image.jpg")
    assert not site.asked


def test_a_proxy_may_be_private_and_what_it_is_asked_for_may_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(http.PRIVATE_HOSTS)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", site.url(""))
    monkeypatch.setattr(site, "files", {"http://93.184.215.14/image.jpg": IMAGE})
    assert storage.read("http://93.184.215.14/image.jpg") == IMAGE
    with pytest.raises(http.Refused):
        storage.read("http://169.254.169.254/latest/meta-data")
