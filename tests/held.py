"""Programs in forks of one server that has imported torch, held at a place until a signal comes. No Ray: what would be computed
in its tasks and actors is computed in the program itself.
"""

import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.forked import FORKED
from tests.patience import wait_until


class Held:
    """Starts programs; each writes its output to a file of its own."""

    def __init__(self, folder: Path):
        self._folder, self._count = folder, 0
        self._processes: list[BaseProcess] = []

    def __call__(self, package: str, place: str | None, arguments: Sequence[str], number: int = 0) -> tuple[int, list[str]]:
        """The exit code and printed lines of `python -m package arguments`; signal `number` is sent when it is at `place`."""
        self._count += 1
        output, reached = self._folder / f"output-{self._count}.txt", self._folder / f"reached-{self._count}"
        process = FORKED.Process(target=_run, args=(package, place, list(arguments), output, reached))
        self._processes.append(process)
        process.start()
        if number:
            wait_until(lambda: reached.exists() or not process.is_alive(), output.read_text)
            assert reached.exists(), output.read_text()
            assert process.pid is not None
            os.kill(process.pid, number)
        process.join()
        assert process.exitcode is not None
        return process.exitcode, output.read_text().splitlines()

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def _run(package: str, place: str | None, arguments: list[str], output: Path, reached: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, which ignores it
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115 - as long as the process
    sys.argv = [package, *arguments]

    def hold(*_: Any, **__: Any) -> None:
        reached.touch()
        while True:
            signal.pause()

    _without_ray()
    code = {"training": _training, "evaluation": _evaluation}[package](place, hold)
    sys.exit(code)


def _without_ray() -> None:
    from pipelines.features import feature_store
    from pipelines.program import cluster

    cluster.start = lambda *_, **__: None  # type: ignore[assignment]
    feature_store._PART = feature_store._BATCH = 16  # several parts of a few rows


def _hold_at(module: Any, name: str, hold: Any, nth: int) -> None:
    """At the n-th call of a function."""
    work, calls = getattr(module, name), []

    def counted(*arguments: Any, **keys: Any) -> Any:
        calls.append(1)
        return hold() if len(calls) == nth else work(*arguments, **keys)

    setattr(module, name, counted)


def _training(place: str | None, hold: Any) -> int:
    import training.ray_train
    import training.run
    from pipelines.features import feature_store
    from pipelines.program import cluster
    from pipelines.program.cli import run_program
    from training.__main__ import PURPOSE, _run
    from training.config import TrainSettings
    from training.resources import Cluster

    training.run.current_cluster = lambda: Cluster(2, 0)
    training.run.check_driver = lambda *_: None
    training.run._pool = lambda *_: feature_store.Pool(0)
    if place == "start":
        cluster.start = hold  # type: ignore[assignment]
    elif place == "features":
        write = feature_store._write

        def write_two(part: Any, rows: Any) -> None:
            if part.start == 32:
                hold()
            write(part, rows)

        feature_store._write = write_two
    else:
        training.ray_train.fit = hold
    return run_program("training", PURPOSE, TrainSettings, _run)


def _evaluation(place: str | None, hold: Any) -> int:
    import evaluation.embed
    from evaluation.__main__ import PURPOSE, _run
    from evaluation.config import EvaluateSettings
    from evaluation.results import Result
    from pipelines.features import feature_store
    from pipelines.program.cli import run_program

    evaluation.embed.describe = lambda *_: evaluation.embed.EmbedderInfo("known", 20.0, True)
    pool = feature_store.Pool
    feature_store.Pool = lambda *_: pool(0)  # type: ignore[assignment,misc]
    if place == "embedding":
        _hold_at(feature_store, "_write", hold, 2)
    elif place == "scoring":
        _hold_at(Result, "write", hold, 2)
    return run_program("evaluation", PURPOSE, EvaluateSettings, _run)
