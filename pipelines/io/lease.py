"""One holder of a place in a store, where files cannot be locked: an object with the holder's name, renewed as long as it lives.

Clocks of machines are not compared: whoever finds a lease watches whether it is renewed, and takes it over once it has not been
for `EXPIRY` seconds; at once if its holder was a process of this machine that has ended. Stores that pyarrow writes to have no
"write if absent", so a new holder reads its lease back: of two that begin together the later one stays.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.io import storage
from pipelines.io.patient import outlast
from pipelines.io.retry import Missing, Unreachable

RENEWAL = 10.0  # seconds
EXPIRY = 60.0
_POLL = 2.0
_SETTLE = 2.0  # until the lease of another process that began at the same time has arrived


class Taken(Exception):  # noqa: N818 - nothing went wrong
    """Another process holds the lease."""


class Lease:
    """A context that holds the lease at `uri`, an object that stays, empty, when it is given back. Raises `Taken`.

    Args:
        wait: called once if there is a lease that may be one of a process that died.
        lost: called in a thread if another process has taken the lease over, as after this one stood still.
    """

    def __init__(self, uri: str, wait: Callable[[], None], lost: Callable[[], None]):
        self._uri, self._wait, self._lost = uri, wait, lost
        self._own = {"holder": uuid.uuid4().hex, "machine": platform.node(), "process": os.getpid()}
        self._beat = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        self._outlive(self._read())
        outlast(self._put)
        time.sleep(_SETTLE)
        if not self._holds():
            raise Taken
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._holds():
            outlast(lambda: self._write({}))

    def _outlive(self, found: dict[str, Any] | None) -> None:
        """Return once a lease is gone, or its holder dead. Raises `Taken` as soon as it is renewed."""
        if not found or _ended(found):
            return
        self._wait()
        until = time.monotonic() + EXPIRY
        while time.monotonic() < until:
            time.sleep(_POLL)
            now = self._read()
            if not now:
                return
            if now != found:
                raise Taken

    def _read(self) -> dict[str, Any] | None:
        try:
            return _content(outlast(lambda: storage.read(self._uri)))
        except Missing:
            return None

    def _holds(self) -> bool:
        found = self._read()
        return found is not None and found.get("holder") == self._own["holder"]

    def _put(self) -> None:
        self._beat += 1
        self._write(self._own | {"beat": self._beat})

    def _write(self, content: dict[str, Any]) -> None:
        with storage.written(self._uri) as file:
            file.write_text(json.dumps(content))

    def _renew(self) -> None:
        while not self._over.wait(RENEWAL):
            try:
                if not self._holds():
                    self._lost()
                    return
                self._put()
            except (Unreachable, OSError):  # nobody else can take it meanwhile
                continue


def held(copies: Mapping[str, Path]) -> set[str]:
    """Those of these leases that a living process holds, for somebody who only looks.

    One that was renewed a moment ago is not watched; the others are, all at once, for as long as two renewals take.

    Args:
        copies: of the lease at each URI, a file with its content and time.
    """
    found = {uri: lease for uri, copy in copies.items() if (lease := _content(copy.read_bytes())) and not _ended(lease)}
    living = {uri for uri in found if abs(time.time() - copies[uri].stat().st_mtime) < EXPIRY}
    until = time.monotonic() + 2 * RENEWAL
    while (doubtful := found.keys() - living) and time.monotonic() < until:
        time.sleep(min(_POLL, RENEWAL))
        for uri in doubtful:
            try:
                now = _content(storage.read(uri))
            except Missing:
                now = {}
            if not now:
                del found[uri]
            elif now != found[uri]:
                living.add(uri)
    return living


def _content(data: bytes) -> dict[str, Any]:
    """A lease; empty: of nobody."""
    try:
        return json.loads(data)
    except ValueError:
        return {}


def _ended(lease: dict[str, Any]) -> bool:
    """Whether a lease is one of a process of this machine that has ended."""
    if lease.get("machine") != platform.node():
        return False
    try:
        os.kill(int(lease["process"]), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, LookupError, TypeError, ValueError):
        return False
    return int(lease["process"]) == os.getpid()  # of an earlier block of this process
