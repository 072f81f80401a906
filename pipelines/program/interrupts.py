"""Ctrl-C, SIGTERM (`kill`, `ray job stop`, a scheduler's limit) and a closed terminal: how a program stops when asked.

Finished work is always on disk, so in most places a signal immediately raises `KeyboardInterrupt`. If work would be lost that
can be saved first, `asking(ask)` makes the first signal call `ask`, and the work continues to its own end. A second signal
ends the program immediately, and so does the first if the work has not ended after two minutes.

Either way the program ends with one line that says what is kept and how to resume, and with exit code 128 + the signal's number.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TOGETHER = 0.5  # seconds within which repeated signals count as one: `timeout` sends it to the program and to its group
PATIENCE = 120.0  # seconds for the work to end after a request


class Interrupted(KeyboardInterrupt):
    """A `KeyboardInterrupt` that says what is kept."""


class _State:
    """State of this process: the signal received, and the handler to ask."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.when = 0.0
        self.late = False
        self.ask: Callable[[], None] | None = None
        self.over = False  # the program has finished its work and is exiting


_state: _State | None = None  # there is none while a program is still importing


@contextmanager
def handled() -> Iterator[None]:
    """Install the handlers of this module."""
    global _state
    before, _state = {number: signal.getsignal(number) for number in _SIGNALS}, _State()
    install()
    try:
        yield
    finally:
        _state.over = True
        if _mine():
            for number, handler in before.items():
                if handler is not None:  # else it was not set from Python
                    signal.signal(number, handler)


def install() -> None:
    """Install handlers: before long imports, and again after other code, such as `ray.init`, has replaced them.

    A signal that was ignored when the program started, as Ctrl-C is in the background, stays ignored.
    """
    if _mine():
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _receive)


def retake() -> None:
    """`install` in a program that handles signals; nothing if raylign is used as a library in another program."""
    if _state is not None and not _state.over:
        install()


def came(number: int) -> None:
    """Handle a signal that another handler received. Raises `KeyboardInterrupt`."""
    if _state is not None and _state.received is None:
        _state.received, _state.when = signal.Signals(number), time.monotonic()
    raise KeyboardInterrupt


def received() -> signal.Signals:
    """The signal that the program was asked to stop with."""
    return (_state and _state.received) or signal.SIGINT


def _mine() -> bool:
    """Only the main thread may set handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def asking(ask: Callable[[], None]) -> Iterator[None]:
    """Inside the block, the first signal calls `ask` in a thread.

    The program is interrupted when it leaves the block, or else when `ask` returns, or `PATIENCE` later.
    """
    if _state is None:
        yield
        return
    _state.ask = ask
    try:
        yield
    finally:
        _state.ask = None
    if _state.received is not None:
        raise KeyboardInterrupt


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """Inside the block, an interruption says what is kept; the innermost block has precedence."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(kept()) from None


def _receive(number: int, _: FrameType | None) -> None:
    name, now = signal.Signals(number).name, time.monotonic()
    if _state is None:
        say(f"{name}: stopped before anything was done")
        os._exit(128 + number)
    if _state.late:  # the work has had its time
        _state.late = False
        raise KeyboardInterrupt
    if _state.received is None and not _state.over:
        _state.received, _state.when = signal.Signals(number), now
        if _state.ask is None:
            raise KeyboardInterrupt
        say(f"{name}: stopping as soon as what is under way is saved; once more, and it stops at once")
        threading.Thread(target=_ask, args=(_state, _state.ask), daemon=True).start()
    elif now - _state.when >= _TOGETHER:
        os._exit(128 + number)


def _ask(state: _State, ask: Callable[[], None]) -> None:
    asked = threading.Thread(target=_quietly, args=(ask,), daemon=True)
    asked.start()
    asked.join(PATIENCE)
    if state.ask is ask:
        state.late = True
        os.kill(os.getpid(), state.received or signal.SIGTERM)


def _quietly(ask: Callable[[], None]) -> None:
    with suppress(Exception):  # if the request fails, for example because the cluster is gone, do not wait
        ask()


def say(line: str) -> None:
    """Write a line to standard error, from any point of the program; errors of a closed terminal are ignored."""
    with suppress(OSError, ValueError):
        os.write(sys.stderr.fileno(), f"{line}\n".encode(errors="backslashreplace"))
