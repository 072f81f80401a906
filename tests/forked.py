"""Processes of their own that start at once: forks of one server for all tests of this process.

Imports of libraries take seconds. The server has done them, and knows nothing else of this process. Functions are pickled by
name, so they stand at the top of a module.
"""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
# Said before the first fork, and hence the same for all.
_IMPORTED = ["torch", "timm", "transformers", "sklearn", "training.run", "training.step", "evaluation.reporting"]
FORKED.set_forkserver_preload(_IMPORTED)


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returned in a process of its own. Raises with its traceback where it failed."""
    ours, theirs = FORKED.Pipe()
    process = FORKED.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()  # so that a process that dies is an end of file here
    try:
        answer, trace = ours.recv()
    except EOFError:
        answer, trace = None, "it died"
    process.join()
    if trace:
        raise RuntimeError(trace)
    return answer


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answer, trace = function(*arguments), None
    except Exception:
        answer, trace = None, traceback.format_exc()
    pipe.send((answer, trace))
