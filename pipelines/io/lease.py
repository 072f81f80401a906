"""One holder of a place in a store, or on a disk that machines share: an object or a file with its name, renewed while it lives.

Clocks of machines are not compared: whoever finds a lease watches whether it is renewed, and takes it over once it has not been
for `EXPIRY` seconds; at once if its holder was a process of this machine that has ended. Stores that pyarrow writes to have no
"write if absent", so a new holder reads its lease back: of two that begin together the later one stays, and the other one ends.

On a disk the file is locked too, by whoever holds the lease or wants it: on one machine that alone decides. It is written in
place, at one go: another machine may see a new file late, and the new content of an old one as soon as it opens it.
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
SETTLE = 2.0  # until the lease of another process that began at the same time has arrived
_SIZE = 512  # bytes of a file
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Taken(Exception):  # noqa: N818 - nothing went wrong
    """Another process holds the lease."""


class Lease:
    """A context that holds the lease at `place`, an object or file that stays, empty, when it is given back. Raises `Taken`.

    Args:
        place: a URI, or a file that this process has locked.
        wait: called once if there is a lease that may be one of a process that died.
        lost: called in a thread if another process has taken the lease over, as after this one stood still.
        settle: seconds before the lease of an object is read back; 0: nobody else can begin at the same time. None: `SETTLE`.
    """

    def __init__(self, place: Path | str, wait: Callable[[], None], lost: Callable[[], None], settle: float | None = None):
        self._place, self._wait, self._lost, self._settle = place, wait, lost, SETTLE if settle is None else settle
        self._own = {"holder": uuid.uuid4().hex, "machine": platform.node(), "process": os.getpid(), "system": _system()}
        self._beat = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        self._outlive(self._read())
        outlast(self._put)
        if isinstance(self._place, str):
            time.sleep(self._settle)
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
        if not found or _over(self._place, found):
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
            return _content(outlast(lambda: storage.read(self._place)))
        except Missing:
            return None

    def _holds(self) -> bool:
        found = self._read()
        return found is not None and found.get("holder") == self._own["holder"]

    def _put(self) -> None:
        self._beat += 1
        self._write(self._own | {"beat": self._beat})

    def _write(self, content: dict[str, Any]) -> None:
        text = json.dumps(content)
        if isinstance(self._place, str):
            with storage.written(self._place) as aside:
                aside.write_text(text)
            return
        with self._place.open("r+b") as file:
            file.write(text.encode().ljust(_SIZE))

    def _renew(self) -> None:
        pause = SETTLE
        while not self._over.wait(pause):
            pause = RENEWAL
            try:
                if isinstance(self._place, Path) and not self._place.exists():
                    continue  # its holder deletes the folder
                if not self._holds():
                    self._lost()
                    return
                self._put()
            except (Unreachable, OSError):  # nobody else can take it meanwhile
                continue


def held(copies: Mapping[Path | str, Path]) -> set[Path | str]:
    """Those of these leases that a living process holds, for somebody who only looks.

    One that was renewed a moment ago is not watched; the others are, all at once, for as long as two renewals take.

    Args:
        copies: of the lease at each place, a file with its content and time. Files in their own place are not locked.
    """
    read = {place: _content(copy.read_bytes()) for place, copy in copies.items()}
    found = {place: lease for place, lease in read.items() if lease and not _over(place, lease)}
    living = {place for place in found if abs(time.time() - copies[place].stat().st_mtime) < EXPIRY}
    until = time.monotonic() + 2 * RENEWAL
    while (doubtful := found.keys() - living) and time.monotonic() < until:
        time.sleep(min(_POLL, RENEWAL))
        for place in doubtful:
            try:
                now = _content(storage.read(place))
            except Missing:
                now = {}
            if not now:
                del found[place]
            elif now != found[place]:
                living.add(place)
    return living


def _over(place: Path | str, lease: dict[str, Any]) -> bool:
    """Whether the holder has ended for sure: on this machine, or, of a file that is not locked, under this system."""
    return _ended(lease) if isinstance(place, str) else lease.get("system") == _system()


def _content(data: bytes) -> dict[str, Any]:
    """A lease; empty: of nobody."""
    try:
        return json.loads(data)
    except ValueError:
        return {}


def _system() -> str:
    """The running system, which all containers of a machine share, as they do locks of files; elsewhere the machine's name."""
    return _BOOT.read_text().strip() if _BOOT.exists() else platform.node()


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
