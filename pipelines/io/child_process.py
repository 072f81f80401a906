"""Process untrusted bytes in a child process, which may crash: the item that crashed it is reported, and the others continue.

A drawing of a few bytes can make a renderer use terabytes or minutes, and a damaged file can crash a decoder. Python's
exceptions and timers cannot stop native code; only the kernel can. So a child process does such work: it announces each item
before it begins, has limited CPU time and memory for it, and if it dies the parent continues after that item with a new child.
The limit is CPU time, not wall-clock time, so a busy machine does not reject good images. A child is reused for later work.
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

# Deaths at one item, other than by its limits, before it is blamed: a machine short of memory kills arbitrary processes.
_TRIES = 2
_MEMORY_WORDS = ("memory allocation", "out of memory", "cannot allocate", "bad_alloc")  # of what libraries say before they abort


@dataclass(frozen=True)
class Limits:
    """Limits for one item."""

    # An eighth of the largest image that is read (`images.MAX_PIXELS`) took 0.1 to 0.9 s and 85 to 310 MiB by format.
    seconds: float = 20.0  # CPU time, of all threads together
    memory: int = 4 << 30  # bytes of address space, in addition to what the process already has


LIMITS = Limits()


@dataclass(frozen=True)
class Fatal:
    """An item that ended the process. `about`: what `begin` was called with; None if no item had begun."""

    about: Any
    why: str  # a clause
    costly: bool  # it took more than its limits

    @property
    def reason(self) -> str:
        """Why an image is rejected."""
        return "decompression_bomb" if self.costly else "undecodable"


class _Ended(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """The child has ended."""

    def __init__(self, why: str, costly: bool, final: bool, begun: Any) -> None:
        super().__init__(why)
        self.costly, self.final, self.begun = costly, final, begun


def each(work: Callable[[int], Iterator[T]], limits: Limits = LIMITS) -> Iterator[T | Fatal]:
    """The items of `work(0)`, produced in a child.

    Args:
        work: picklable; `work(n)` gives the items from number n on. It calls `begin` before an item that might be the last.

    After an item that ends the child comes a `Fatal`, and then the following items. If a child ends before it has begun the next
    item, the iteration ends, since it cannot be skipped. Exceptions of `work` are raised here.
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
_note = -1  # descriptor of the file with the current item: writing it wakes no other process
_limits, _again, _sent = LIMITS, False, 0


def inside() -> bool:
    """Whether this process is such a child."""
    return _parent is not None


def again() -> bool:
    """Whether an earlier child died here: then work should not read ahead, so that earlier items are not lost."""
    return _again


def begin(about: Any) -> None:
    """Announce the next item, in case it ends the process. Does nothing outside a child."""
    if _parent is not None:
        os.pwrite(_note, pickle.dumps((_sent, about)), 0)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Limit the block to an item's CPU time and memory; exceeding them ends the process. No limit outside a child."""
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
    """The main loop of a child: one work after another, until the parent is gone."""
    global _parent, _note, _limits, _again, _sent
    _parent, _note = Connection(descriptor), note
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
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
    except Exception:  # some cannot be pickled
        data = pickle.dumps(("raised", RuntimeError(traceback.format_exc())))
    return data


# --- the parent's side ---


class _Child:
    def __init__(self) -> None:
        self.connection, child_end = Pipe()
        # What libraries print before they end the process.
        self._output = tempfile.TemporaryFile(prefix="raylign-")  # noqa: SIM115 - closed with the child
        self._note = tempfile.TemporaryFile(prefix="raylign-")  # noqa: SIM115
        # The same module path as here; extra threads would only use address space.
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
                f"from pipelines.io.child_process import serve; serve({child_end.fileno()}, {self._note.fileno()})",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=environment,
            pass_fds=[child_end.fileno(), self._note.fileno()],
        )
        child_end.close()

    def start(self, request: bytes) -> None:
        self._output.truncate(0)
        self._output.seek(0)
        self._note.truncate(0)
        self.connection.send_bytes(request)

    def ended(self, limits: Limits, received: int) -> _Ended:
        """Why it ended; called after the end."""
        code = self._process.wait()
        number, begun = pickle.loads(os.pread(self._note.fileno(), 1 << 20, 0) or pickle.dumps((-1, None)))
        begun = begun if number == received else None  # otherwise it would have sent that item
        if code == -signal.SIGPROF:
            return _Ended(f"takes more than {limits.seconds:g} s of CPU time", True, True, begun)
        self._output.seek(0)
        lines = self._output.read(1 << 16).decode("utf-8", "replace").splitlines()
        message = next((f": {line.strip()[:200]}" for line in lines if line.strip()), "")
        costly = any(words in message.lower() for words in _MEMORY_WORDS)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        limit = f", which may have {limits.memory / (1 << 30):g} GiB" if costly else ""
        return _Ended(f"ends the process that reads it{limit} ({name}{message})", costly, costly, begun)

    def kill(self) -> None:
        self.connection.close()
        self._output.close()
        self._note.close()
        self._process.kill()
        self._process.wait()


_idle: dict[int, list[_Child]] = {}  # by owning process, since a fork must not use them


def _items(work: Callable[[], Iterator[Any]], limits: Limits, again: bool) -> Iterator[Any]:
    """Run the work in a child. Raises `_Ended`, and exceptions of the work."""
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
    except (pickle.PicklingError, AttributeError, TypeError):  # exceptions of a program's own classes
        import ray.cloudpickle

        return ray.cloudpickle.dumps(work)
