"""An S3-compatible store on this machine that fails on demand: moto's server behind a proxy that injects faults, and counts.

Both run in one process of their own, so that Ray's workers reach them too; it ends with the block, or with whoever began it.
The proxy decides by the number of a request what happens to it, so that a run can be repeated.
"""

import http.client
import json
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

_CONTROL = "/-/"  # no bucket can be called so
# Who asks without it gets no object of an upload in parts; that it is wrong is all the same to the server.
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20200101/us-east-1/s3/aws4_request"}
_HOP_BY_HOP = {"connection", "content-length", "date", "expect", "keep-alive", "server", "transfer-encoding"}


@dataclass(frozen=True)
class Policy:
    """What is done to requests: shares of them, which exclude each other, and seconds."""

    latency: float = 0.0  # before every answer
    errors: float = 0.0  # 500 and 503 SlowDown by turns, and nothing is done
    resets: float = 0.0  # the connection is reset within the body that is sent, or else the one that is answered
    stalls: float = 0.0  # the answer pauses in the middle of its body, or before it where there is none
    stall_seconds: float = 0.3  # or until the client has gone
    only: str = ""  # faults strike those requests alone in which this regular expression is found, as in "GET /bucket/key?query"
    held: str = ""  # requests in which this one is found wait, and nothing is done, until the policy is another one


@dataclass(frozen=True)
class Requests:
    """Requests that were alike, those that failed on purpose included."""

    method: str
    key: str  # within the bucket
    range: str  # such as bytes=0-99; empty: all of it
    count: int
    bytes: int  # of the bodies answered


@dataclass(frozen=True)
class Store:
    """A running store with one empty bucket."""

    endpoint: str  # goes through the faults
    direct: str  # does not, and is not counted
    bucket: str  # no other store of this machine has one of this name: file systems are kept by it
    latency: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to use the store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def uri(self, *names: str) -> str:
        """The URI of a key in the bucket."""
        return "/".join([f"s3://{self.bucket}", *names])

    @contextmanager
    def faulty(self, errors: float = 0.05, stalls: float = 0.02, resets: float = 0.05, **others: Any) -> Iterator[None]:
        """Faults within the block; `others` are the other fields of `Policy`."""
        usual = Policy(latency=self.latency)
        self._control("PUT", "policy", asdict(replace(usual, errors=errors, stalls=stalls, resets=resets, **others)))
        try:
            yield
        finally:
            self._control("PUT", "policy", asdict(usual))

    def faults(self) -> dict[str, int]:
        """How many were injected since the last `forget`: of `500`, `503`, `reset` and `stall`."""
        return self._control("GET", "counts")["faults"]

    def requests(self) -> list[Requests]:
        """The requests since the last `forget`."""
        return [Requests(*alike) for alike in self._control("GET", "counts")["requests"]]

    def held(self) -> int:
        """How many requests are held now."""
        return self._control("GET", "counts")["held"]

    def most_in_flight(self) -> int:
        """The largest number of requests at one time since the last `forget`."""
        return self._control("GET", "counts")["most_in_flight"]

    def forget(self) -> None:
        """Count from zero, also the requests that decide about faults; what an earlier test left under way ends first."""
        self._control("PUT", "counts", {})
        while self.most_in_flight():
            time.sleep(0.05)
            self._control("PUT", "counts", {})

    def put(self, key: str, data: bytes) -> str:
        """Place an object, past the faults. Returns its URI."""
        _request(self.direct, "PUT", f"/{self.bucket}/{quote(key)}", data)
        return self.uri(key)

    def get(self, key: str) -> bytes | None:
        """An object's bytes, past the faults; None where there is none."""
        return _request(self.direct, "GET", f"/{self.bucket}/{quote(key)}", missing_is_none=True)

    def folder(self, name: str) -> "Folder":
        """What is below a key."""
        return Folder(self, name)

    def _control(self, method: str, what: str, body: Any = None) -> Any:
        return json.loads(_request(self.endpoint, method, _CONTROL + what, json.dumps(body).encode()) or b"null")


@dataclass(frozen=True)
class Folder:
    """A part of the store for one test."""

    store: Store
    name: str

    def uri(self, *names: str) -> str:
        """The URI of a key in the folder."""
        return self.store.uri(self.name, *names)

    def put(self, key: str, data: bytes) -> str:
        """Place an object, past the faults. Returns its URI."""
        return self.store.put(f"{self.name}/{key}", data)

    def get(self, key: str) -> bytes | None:
        """An object's bytes, past the faults; None where there is none."""
        return self.store.get(f"{self.name}/{key}")


@contextmanager
def object_store(latency: float = 0.0) -> Iterator[Store]:
    """A store that runs while the block does. `latency`: seconds before every answer."""
    command = [sys.executable, __file__, str(latency)]
    # The pipe's end tells it that this process ended, however that came.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        started = process.stdout.readline()
        if not started:
            raise RuntimeError(f"the object store ended at its start with code {process.wait()}")
        yield Store(**json.loads(started))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _request(address: str, method: str, path: str, body: bytes | None = None, missing_is_none: bool = False) -> bytes | None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=900)
    try:
        connection.request(method, path, body, _SIGNED)
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status == 404 and missing_is_none:
        return None
    if answer.status >= 300:
        raise RuntimeError(f"{method} {path}: {answer.status} {data[:200]!r}")
    return data


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, upstream: str, policy: Policy):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.policy = policy
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)  # the policy
        self.in_flight = self.held = 0
        self.forget()

    def forget(self) -> None:
        self.number = 0
        self.most_in_flight = self.in_flight
        self.faults = Counter({"500": 0, "503": 0, "reset": 0, "stall": 0})
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.answered: Counter[tuple[str, str, str]] = Counter()

    def begin(self, alike: tuple[str, str, str], line: str) -> str:
        """Count a request. Returns what is to happen to it: a kind of fault, or nothing."""
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.seen[alike] += 1
            policy = self.policy
            if not re.search(policy.only, line):
                return ""
            self.number += 1
            drawn, fault = random.Random(self.number).random(), ""
            if drawn < policy.errors:
                fault = ("500", "503")[(self.faults["500"] + self.faults["503"]) % 2]
            elif drawn < policy.errors + policy.resets:
                fault = "reset"
            elif drawn < policy.errors + policy.resets + policy.stalls:
                fault = "stall"
            if fault:
                self.faults[fault] += 1
            return fault

    def hold(self, line: str) -> None:
        """Wait, if the policy says so."""
        with self.changed:
            policy = self.policy
            if policy.held and re.search(policy.held, line):
                self.held += 1
                self.changed.wait_for(lambda: self.policy is not policy)
                self.held -= 1

    def end(self, alike: tuple[str, str, str], answered: int) -> None:
        with self.lock:
            self.in_flight -= 1
            self.answered[alike] += answered

    def counts(self) -> dict[str, Any]:
        with self.lock:
            requests = [[*alike, count, self.answered[alike]] for alike, count in self.seen.items()]
            return {"faults": self.faults, "requests": requests, "most_in_flight": self.most_in_flight, "held": self.held}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    _alike: tuple[str, str, str] | None = None  # the request that is being answered
    _upstream: http.client.HTTPConnection | None = None  # one a client's connection

    def _serve(self) -> None:
        if self.path.startswith(_CONTROL):
            self._control(self.path.removeprefix(_CONTROL))
            return
        bucket_and_key = unquote(self.path.partition("?")[0]).lstrip("/").partition("/")
        self._alike = (self.command, bucket_and_key[2], self.headers.get("Range", ""))
        fault = self.server.begin(self._alike, f"{self.command} {self.path}")
        try:
            self.server.hold(f"{self.command} {self.path}")
            self._pass_on(fault)
        finally:
            self._count(0)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _count(self, answered: int) -> None:
        """The request is over. Said before the client can know it, who may ask for the counts at once."""
        if self._alike is not None:
            self.server.end(self._alike, answered)
            self._alike = None

    def handle_expect_100(self) -> bool:
        """Whoever sends a large body waits for this a second long."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def _pass_on(self, fault: str) -> None:
        length = int(self.headers.get("Content-Length", 0))
        if fault == "reset" and length > 1 << 16:
            self.rfile.read(length // 2)
            self._reset(0)
            return
        body = self._chunks() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(length)
        policy = self.server.policy
        time.sleep(policy.latency)
        if fault in ("500", "503"):
            self._fail(int(fault))
            return
        status, headers, data = self._ask(body)
        self._answer(status, headers, data, fault, policy.stall_seconds)

    def _chunks(self) -> bytes:
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(pieces)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        if self._upstream is None:
            self._upstream = http.client.HTTPConnection(self.server.upstream)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        self._upstream.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
        answer = self._upstream.getresponse()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP_BY_HOP]
        if self.command == "HEAD" and (size := answer.getheader("Content-Length")):
            kept.append(("Content-Length", size))
        return answer.status, kept, answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, fault: str, stall: float) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        half = len(data) // 2
        if half and fault:
            self.end_headers()
            self.wfile.write(data[:half])
            self.wfile.flush()
        if fault == "reset":
            self._reset(half)
            return
        if fault == "stall":
            select.select([self.connection], [], [], stall)
        self._count(len(data))
        if half and fault:
            self.wfile.write(data[half:])
        else:
            self.end_headers()
            self.wfile.write(data)
        self.wfile.flush()

    def _fail(self, status: int) -> None:
        code = {500: "InternalError", 503: "SlowDown"}[status]
        data = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>on purpose</Message></Error>'.encode()
        data = b"" if self.command == "HEAD" else data
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self._count(len(data))
        self.wfile.write(data)

    def _reset(self, answered: int) -> None:
        """Close so that the other side sees a reset: what is still to send is thrown away."""
        self._count(answered)
        time.sleep(0.005)  # what was sent before arrives
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # The duplicates that the files of this handler hold would keep it open.
        os.close(self.connection.detach())
        self.close_connection = True

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        if self.connection.fileno() >= 0:
            super().finish()

    def _control(self, what: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found: Any = None
        if self.command == "GET":
            found = self.server.counts()
        elif what == "policy":
            with self.server.changed:
                self.server.policy = replace(Policy(), **json.loads(body))
                self.server.changed.notify_all()
        else:
            with self.server.lock:
                self.server.forget()
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Thousands of requests are no news either."""


def _main(latency: float) -> None:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    direct = "{}:{}".format(*moto.get_host_and_port())
    bucket = f"raylign-{os.urandom(6).hex()}"
    _request(direct, "PUT", f"/{bucket}")
    proxy = _Proxy(direct, Policy(latency=latency))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{proxy.server_address[1]}"
    print(json.dumps(asdict(Store(endpoint, f"http://{direct}", bucket, latency))), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _main(float(sys.argv[1]))
