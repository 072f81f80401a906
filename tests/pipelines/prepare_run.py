"""`python -m pipelines` that stops for good at a place: a program for tests that kill it there, run as a script.

    STOP CONFIG.yaml KEY=VALUE ...

STOP: `reading` with a third of the missing parts left, `ids` when all are read, `shards` when the rows of some shards have ids.
Whoever kills it does not come too late, on any machine.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pipelines.__main__
import pipelines.prepare.assign_ids
import pipelines.prepare.prepare
from pipelines.__main__ import PURPOSE, _run
from pipelines.io import storage
from pipelines.prepare.config import PrepareSettings
from pipelines.program.cli import run_program

SHARDS = 4  # that have ids where it stops at them


def stop(*_: Any) -> None:
    while True:
        signal.pause()


def stop_reading() -> None:
    read = pipelines.prepare.prepare.read_parts

    def some(parts: list, *others: Any) -> Iterator[Any]:
        yield from read(parts[: -(len(parts) // 3)], *others)
        stop()

    pipelines.prepare.prepare.read_parts = some


def stop_at_shards() -> None:
    written, done = storage.written, []

    @contextmanager
    def some(path: Path | str) -> Iterator[Path]:
        if len(done) == SHARDS:
            stop()
        with written(path) as aside:
            yield aside
        done.append(path)

    pipelines.prepare.assign_ids.storage.written = some


def main(where: str, config: str, *overrides: str) -> int:
    if where == "reading":
        stop_reading()
    elif where == "ids":
        pipelines.prepare.prepare.assign_ids = stop
    else:
        assert where == "shards"
        stop_at_shards()
    pipelines.__main__.prepare = pipelines.prepare.prepare.prepare
    return run_program("pipelines", PURPOSE, PrepareSettings, _run, [config, *overrides])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
