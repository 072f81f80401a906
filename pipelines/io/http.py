"""Downloads over http(s), from servers of every quality: slow, gone, cutting bodies short, or answering with something else.

URLs come from the data. Machines in a cloud or company network answer internal requests with secrets (credentials at
169.254.169.254, services without a password), so a non-public address is contacted only if the environment names its host or
network: RAYLIGN_PRIVATE_HOSTS=images.corp,10.1.0.0/16. This applies to the resolved address at connection time, and to every
redirect. A proxy in the environment is trusted to choose whom it contacts.
"""

import http.client
import io
import ipaddress
import os
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

from pipelines.io.archives import LARGEST
from pipelines.io.retry import Missing, Unreachable, retried

T = TypeVar("T")

PRIVATE_HOSTS = "RAYLIGN_PRIVATE_HOSTS"
_ATTEMPTS = 4  # the web has many dead servers, each of which takes until the timeout
_TIMEOUT = 20  # seconds without a byte
_SLOWEST = 1024  # bytes a second on average, beyond the first `_TIMEOUT` seconds
_MAX_BYTES = 100 << 20  # images are smaller


class Refused(Missing):
    """A host that data must not refer to."""

    reason = "private_address"


def is_web(path: object) -> bool:
    """Whether a path is a URL of the web."""
    return str(path)[:8].lower().startswith(("http://", "https://"))


def fetch(url: str) -> bytes:
    """The content of a URL. Raises `Missing`, also if it is more than 100 MiB."""

    def get() -> bytes:
        target = io.BytesIO()
        _copy(url, target, _MAX_BYTES)
        return target.getvalue()

    return _with_retries(get, url)


def download(url: str, target: BinaryIO) -> None:
    """Download a URL, up to 64 GiB, into an empty file. Raises `Missing`."""

    def get() -> None:
        target.seek(0)
        target.truncate()
        _copy(url, target, LARGEST)

    _with_retries(get, url)


def _with_retries(get: Callable[[], T], url: str) -> T:
    """Many servers on the web are gone for good, so a server that does not answer counts as missing."""
    try:
        return retried(get, url, _ATTEMPTS)
    except Unreachable as error:
        raise Missing(str(error)) from None


def _copy(url: str, target: BinaryIO, limit: int) -> None:
    """Raises `OSError` if another attempt may help, `Missing` if not."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "raylign"})
        with _opener().open(request, timeout=_TIMEOUT) as answer:
            _copy_body(answer, target, limit)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in (408, 425, 429) or error.code >= 500:
                raise OSError(f"HTTP {error.code} {error.reason}") from None
            raise Missing(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionError):
            raise
        raise Missing(str(error.reason)) from None  # no such host, a certificate that does not fit
    except (ValueError, http.client.InvalidURL):  # its message repeats the URL, which may contain secrets
        raise Missing("not a valid URL") from None
    except http.client.HTTPException as error:
        raise ConnectionError(f"not the answer of a web server: {type(error).__name__} {error}") from None


def _copy_body(answer: http.client.HTTPResponse, target: BinaryIO, limit: int) -> None:
    length = answer.headers.get("Content-Length")
    expected, started, done = None if length is None else int(length), time.monotonic(), 0
    while True:
        if max(done, expected or 0) > limit:
            raise Missing(f"more than {limit >> 20} MiB")
        piece = answer.read1(1 << 20)
        if not piece:
            break
        target.write(piece)
        done += len(piece)
        if done < _SLOWEST * (time.monotonic() - started - _TIMEOUT):
            raise TimeoutError(f"slower than {_SLOWEST} bytes a second")
    # The library treats the end of the connection as the end of the body.
    if expected is not None and done != expected:
        raise ConnectionError(f"only {done} of {expected} bytes were received")


def _opener() -> urllib.request.OpenerDirector:
    """Like urllib's own, but without ftp, files and private addresses."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _Http(),
        _Https(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_guarded(http.client.HTTPConnection, req), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_guarded(http.client.HTTPSConnection, req), req)


def _guarded(kind: type[http.client.HTTPConnection], request: urllib.request.Request) -> Any:
    """A function that connects for this request, to a public address. Raises `Refused`."""
    if request.has_proxy() or getattr(request, "_tunnel_host", None):
        host = urllib.parse.urlsplit(request.full_url).hostname or ""
        with suppress(OSError):  # only the proxy knows it
            _addresses(host, None)
        return kind

    def make(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        connection._create_connection = _connect  # type: ignore[attr-defined] # socket.create_connection, by default
        return connection

    return make


def _connect(address: tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
    """Like `socket.create_connection`. The name is resolved once, so the checked address is the one connected to."""
    last_error: OSError | None = None
    for ip in _addresses(*address):
        try:
            return socket.create_connection((ip, address[1]), timeout, source)
        except OSError as error:
            last_error = error
    raise last_error or OSError("no address")


def _addresses(host: str, port: int | None) -> list[str]:
    """The addresses of a host. Raises `OSError` if it cannot be resolved, `Refused` if one of them is not allowed."""
    addresses = list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    for address in addresses:
        if not _is_allowed(host, address):
            raise Refused(f"{host} is {address}, which is not public; {PRIVATE_HOSTS}={host} in the environment allows it")
    return addresses


def _is_allowed(host: str, address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.is_global and not ip.is_multicast and _embedded(ip).is_global:
        return True
    for entry in os.environ.get(PRIVATE_HOSTS, "").replace(",", " ").split():
        if entry.lower() == host.lower():
            return True
        try:
            if ip in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:  # a name
            continue
    return False


def _embedded(ip: Any) -> Any:
    """The IPv4 address embedded in an IPv6 address, if any: 6to4, and NAT64's prefix."""
    if ip.version == 6 and ip in ipaddress.ip_network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return getattr(ip, "sixtofour", None) or ip
