"""Downloads over http(s), from servers of every quality: slow, gone, cutting bodies short, or answering with something else."""

import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from pipelines.remote import Missing, Unreachable, retried

T = TypeVar("T")

_ATTEMPTS = 4  # the web has many dead servers, and each takes its time
_TIMEOUT = 20  # seconds without a byte
_SLOWEST = 1024  # bytes a second on average, beyond the first `_TIMEOUT` seconds
_MAX_BYTES = 100 << 20  # a picture is smaller


def is_web(path: object) -> bool:
    """Whether a path is a URL of the web."""
    return str(path).startswith(("http://", "https://"))


def fetch(url: str) -> bytes:
    """What lies at a URL. Raises `Missing`, also where it is more than 100 MiB."""

    def get() -> bytes:
        target = io.BytesIO()
        _copy(url, target, _MAX_BYTES)
        return target.getvalue()

    return _patiently(get, url)


def download(url: str, target: BinaryIO) -> None:
    """Write what lies at a URL, of whatever size, to a file that holds nothing yet. Raises `Missing`."""

    def get() -> None:
        target.seek(0)
        target.truncate()
        _copy(url, target, None)

    _patiently(get, url)


def _patiently(get: Callable[[], T], url: str) -> T:
    """Of the web's servers many are gone for good: one that does not answer has no picture for us."""
    try:
        return retried(get, url, _ATTEMPTS)
    except Unreachable as error:
        raise Missing(str(error)) from None


def _copy(url: str, target: BinaryIO, limit: int | None) -> None:
    """Raises `OSError` where another attempt may help, `Missing` where it will not."""
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "raylign"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
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
    except (ValueError, http.client.InvalidURL) as error:
        raise Missing(str(error)) from None
    except http.client.HTTPException as error:
        raise ConnectionError(f"not the answer of a web server: {type(error).__name__} {error}") from None


def _copy_body(answer: http.client.HTTPResponse, target: BinaryIO, limit: int | None) -> None:
    length = answer.headers.get("Content-Length")
    expected, started, done = None if length is None else int(length), time.monotonic(), 0
    while True:
        if limit is not None and max(done, expected or 0) > limit:
            raise Missing(f"more than {limit >> 20} MiB")
        piece = answer.read1(1 << 20)
        if not piece:
            break
        target.write(piece)
        done += len(piece)
        if done < _SLOWEST * (time.monotonic() - started - _TIMEOUT):
            raise TimeoutError(f"slower than {_SLOWEST} bytes a second")
    # The library takes the end of the connection for the end of the body.
    if expected is not None and done != expected:
        raise ConnectionError(f"{done} of {expected} bytes came")
