"""Failures of remote files: temporary ones are retried, the others are findings about the data.

An object store occasionally returns errors and truncated bodies, which can only be recognised by the error's text.
"""

import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipelines.io.secrets import hidden

T = TypeVar("T")

_ATTEMPTS = 8
_FIRST_WAIT = 0.1  # seconds; doubles with every attempt, some 12 s in all
_PATIENCE = 120  # seconds after which no further attempt begins,
_LEAST = 3  # except the first ones: a single attempt with a large file, or on a busy machine, may take longer
_FINAL = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|NO_SUCH_KEY|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH)"
    r"|HTTP status 4(?!08|29)\d\d"
    r"|Invalid IPC|thrift|[Cc]orrupt"  # the content is not an Arrow or Parquet file
)


_USER = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#'\"]*@")
_QUERY = re.compile(r"(\bhttps?://[^\s?#'\"]*)[?#][^\s'\"]*", re.IGNORECASE)


class Missing(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """A file that does not exist or is not accessible; in some cases `reason` is a specific code."""

    reason = ""


class Unreachable(OSError):  # noqa: N818 - as above
    """A store that did not answer after all retries. Its files do not count as missing."""


def is_remote(path: Path | str) -> bool:
    """Whether a path is a URI outside this machine's disks."""
    return "://" in str(path) and not str(path).startswith("file://")


def is_text(text: str) -> bool:
    """Whether a text can be encoded as UTF-8; the name of a file may not be."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(text: str) -> str:
    """A text that is safe to show and store: URLs in it lose their secrets (user, password, query with a signature), and secrets
    of the environment are replaced by their variables' names.

    Bytes of a file's name that are not UTF-8 become \\xff.
    """
    if not is_text(text):
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # surrogates that do not represent a byte, which JSON can contain
            data = text.encode("utf-8", "backslashreplace")
        text = data.decode("utf-8", "backslashreplace")
    text = hidden(text)
    return _QUERY.sub(r"\1?...", _USER.sub(r"\1...@", text)) if "://" in text else text


def shown_place(place: Path | str) -> str:
    """A path or URL as `shown` would print it, whatever its characters."""
    text = str(place)
    if not text.lower().startswith(("http://", "https://")):
        return shown(text)
    path = re.split("[?#]", text, maxsplit=1)[0]
    return shown(path) + ("?..." if path != text else "")


def shown_tree(tree: Any) -> Any:
    """A tree of JSON values with `shown` applied to every text."""
    if isinstance(tree, dict):
        return {key: shown_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [shown_tree(value) for value in tree]
    return shown_place(tree) if isinstance(tree, str) else tree


def retried(work: Callable[[], T], path: Path | str | None = None, attempts: int = _ATTEMPTS) -> T:
    """Do the work, and retry after an error of the connection or the server; on this machine's disks only once.

    Args:
        work: raises `OSError` where it fails.
        path: what is read; without it, errors for which retrying is useless are raised as `OSError`.

    Raises `Missing` if retrying is useless, and `Unreachable` after the last attempt: an outage says nothing about the data.
    """
    started = time.monotonic()
    if path is not None and not is_remote(path):
        attempts = 1
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
            if path is None:
                raise
            raise Missing(f"{error.strerror or error}") from None
        except OSError as error:
            text, seconds = str(error), time.monotonic() - started
            hopeless = attempts == 1 or _FINAL.search(text)
            if hopeless or attempt == attempts or (seconds > _PATIENCE and attempt >= _LEAST):
                if not hopeless:
                    what = f"{shown_place(path)}: " if path is not None else ""
                    raise Unreachable(f"{what}given up after {attempt} attempts in {seconds:.0f} s: {text}") from None
                raise (OSError(text) if path is None else Missing(text)) from None
            # How long to wait changes no result.
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * (0.5 + random.random()))
    raise AssertionError("unreachable")
