"""Work on foreign bytes in a process of its own, which may die of them: the item it died of is told, and the others go on.

A drawing of a few bytes can ask a renderer for terabytes or for minutes, and a damaged file can crash a decoder. Native code
answers to no exception and no timer of Python's, only to the kernel. So a child process does such work: it says which item it
begins, it has so much CPU time and memory for each, and where it ends the parent goes on behind that item with another child.
CPU time and not time by the clock: a busy machine refuses no good image. A child is kept for the next work.
"""

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_TRIES = 2  # deaths at one item, but by its limits, until they are its fault: a machine short of memory kills whom it likes
_MEMORY_WORDS = ("memory allocation", "out of memory", "cannot allocate", "bad_alloc")  # of what libraries say before they abort


@dataclass(frozen=True)
class Limits:
    """Of one item."""

    # An eighth of the largest image that is read (`images.MAX_PIXELS`) took 0.1 to 0.9 s and 85 to 310 MiB by format.
    seconds: float = 20.0  # of CPU time, all threads together
    memory: int = 4 << 30  # bytes of address space, beyond what the process has


LIMITS = Limits()


@dataclass(frozen=True)
class Fatal:
    """An item that ended the process. `about`: what was said of it when it began; None: the process was not at any item."""

    about: Any
    why: str  # a clause
    costly: bool  # it took more than its limits

    @property
    def reason(self) -> str:
        """Why an image is rejected."""
        return "decompression_bomb" if self.costly else "undecodable"


class _Ended(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """The child is no more."""

    def __init__(self, why: str, costly: bool, final: bool, begun: Any) -> None:
        super().__init__(why)
        self.costly, self.final, self.begun = costly, final, begun


def each(work: Callable[[int], Iterator[T]], limits: Limits = LIMITS) -> Iterator[T | Fatal]:
    """The items of `work(0)`, made in a child.

    Args:
        work: picklable; `work(n)` gives the items from number n on. It calls `begin` before an item that might be the last.

    After an item that ends the child comes a `Fatal`, and then the items behind it. A child that ends before it has begun with
    the next item ends it all: nobody knows how to get past that. What `work` raises is raised.
    """
    done = deaths = 0
    while True:
        try:
            for item in _items(partial(work, done), limits, again=deaths > 0):
                yield item
                done, deaths = done + 1, 0
            return
        except _Ended as ended:
            deaths += 1
            if deaths < _TRIES and not ended.final:
                continue
            yield Fatal(ended.begun, str(ended), ended.costly)
            if ended.begun is None:
                return
            done, deaths = done + 1, 0


def one(work: Callable[[], T], limits: Limits = LIMITS) -> T | Fatal:
    """What `work` returns, in a child, or in this process where it is a child itself."""
    if inside():
        return work()
    (result,) = each(partial(_once, work), limits)
    return result


def _once(work: Callable[[], T], first: int) -> Iterator[T]:
    if first == 0:
        begin("")
        with limited():
            result = work()
        yield result


# --- the child's side ---

_parent: Connection | None = None
_note = -1  # descriptor of the file that says which item was begun: to write it wakes nobody
_limits, _again, _sent = LIMITS, False, 0


def inside() -> bool:
    """Whether this process is such a child."""
    return _parent is not None


def again() -> bool:
    """Whether another child died here: what reads ahead should not, so that what comes before is there."""
    return _again


def begin(about: Any) -> None:
    """Say which item is next, in case it is the last one. Elsewhere than in a child: nothing."""
    if _parent is not None:
        os.pwrite(_note, pickle.dumps((_sent, about)), 0)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """The block has an item's CPU time and memory, or the process ends. Elsewhere than in a child: no limit."""
    if not inside() or signal.getitimer(signal.ITIMER_PROF)[0]:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):  # no /proc, or a narrower limit of the system's
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _limits.memory, before[1]))
    signal.setitimer(signal.ITIMER_PROF, _limits.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)


def serve(descriptor: int, note: int) -> None:
    """A child's whole life: work after work, until the parent is gone."""
    global _parent, _note, _limits, _again, _sent
    _parent, _note = Connection(descriptor), note
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = _parent.recv_bytes()
            try:
                (work, _limits, _again), _sent = pickle.loads(request), 0
                for _sent, item in enumerate(work(), 1):
                    _parent.send_bytes(pickle.dumps(("item", item), pickle.HIGHEST_PROTOCOL))
            except BaseException as error:
                _parent.send_bytes(_pickled_error(error))
            else:
                _parent.send_bytes(pickle.dumps(("end", None)))


def _pickled_error(error: BaseException) -> bytes:
    error.add_note(traceback.format_exc())
    try:
        data = pickle.dumps(("raised", error))
        pickle.loads(data)
    except Exception:  # some do not travel
        data = pickle.dumps(("raised", RuntimeError(traceback.format_exc())))
    return data


# --- the parent's side ---


class _Child:
    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        # What libraries write before they end the process.
        self._said = tempfile.TemporaryFile(prefix="raylign-")  # noqa: SIM115 - closed with the child
        self._note = tempfile.TemporaryFile(prefix="raylign-")  # noqa: SIM115
        # As this process finds its modules; a thread more would only ask for address space.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        environment = os.environ | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "RUST_BACKTRACE": "0",
        }
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                f"from pipelines.io.child_process import serve; serve({theirs.fileno()}, {self._note.fileno()})",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            env=environment,
            pass_fds=[theirs.fileno(), self._note.fileno()],
        )
        theirs.close()

    def start(self, request: bytes) -> None:
        self._said.truncate(0)
        self._said.seek(0)
        self._note.truncate(0)
        self.connection.send_bytes(request)

    def ended(self, limits: Limits, received: int) -> _Ended:
        """Why it is no more, to be called when it is."""
        code = self._process.wait()
        number, begun = pickle.loads(os.pread(self._note.fileno(), 1 << 20, 0) or pickle.dumps((-1, None)))
        begun = begun if number == received else None  # else it had sent that item
        if code == -signal.SIGPROF:
            return _Ended(f"takes more than {limits.seconds:g} s of CPU time", True, True, begun)
        self._said.seek(0)
        lines = self._said.read(1 << 16).decode("utf-8", "replace").splitlines()
        said = next((f": {line.strip()[:200]}" for line in lines if line.strip()), "")
        costly = any(words in said.lower() for words in _MEMORY_WORDS)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        limit = f", which may have {limits.memory / (1 << 30):g} GiB" if costly else ""
        return _Ended(f"ends the process that reads it{limit} ({name}{said})", costly, costly, begun)

    def kill(self) -> None:
        self.connection.close()
        self._said.close()
        self._note.close()
        self._process.kill()
        self._process.wait()


_idle: dict[int, list[_Child]] = {}  # by the process that they belong to: a fork of it must not talk to them


def _items(work: Callable[[], Iterator[Any]], limits: Limits, again: bool) -> Iterator[Any]:
    """What a child makes of the work. Raises `_Ended`, and what the work raises."""
    request = _pickled((work, limits, again))
    idle = _idle.setdefault(os.getpid(), [])
    child = idle.pop() if idle else _Child()
    whole, received = False, 0
    try:
        child.start(request)
        while True:
            kind, value = pickle.loads(child.connection.recv_bytes())
            whole = kind in ("end", "raised")
            if kind == "raised":
                raise value
            if kind == "end":
                return
            received += 1
            yield value
    except (EOFError, ConnectionError):
        if whole:  # the work raised it
            raise
        raise child.ended(limits, received) from None
    finally:
        if whole:
            idle.append(child)
        else:
            child.kill()


def _pickled(work: Any) -> bytes:
    try:
        return pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):  # of a program's own classes
        import ray.cloudpickle

        return ray.cloudpickle.dumps(work)
