"""Functions in real processes that talk through gloo, for tests of anything that gathers.

    with Gloo(3) as gloo:
        first, second = gloo(2, function, argument)  # what function(argument) returned on rank 0 and on rank 1

Importing torch takes seconds, and joining a process group as long as a few steps: forks of a server that has imported it wait
for calls, those of each world size in a process group that lasts. Functions are pickled by name, so they stand at the top of a
module.
"""

import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from tests.forked import FORKED
from tests.patience import PATIENCE


class Gloo:
    """At most `largest` workers at a time. `closed` after a failure: a rank may still hang in a collective."""

    def __init__(self, largest: int):
        self._largest = largest
        self._pipes: dict[int, list[Connection]] = {}  # by world size, in rank order
        self._processes: list[BaseProcess] = []
        self._folder = tempfile.TemporaryDirectory()
        self.closed = False

    def _team(self, world_size: int) -> list[Connection]:
        """The workers of a process group, which start at the first call that needs them."""
        pipes = self._pipes.setdefault(world_size, [])
        for rank in range(len(pipes), world_size):
            ours, theirs = FORKED.Pipe()
            place = str(Path(self._folder.name) / f"store-{world_size}")
            process = FORKED.Process(target=_serve, args=(theirs, place, rank, world_size), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is an end of file here
            pipes.append(ours)
            self._processes.append(process)
        return pipes

    def __call__(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returned on each rank, in rank order. Raises with a rank's traceback where one failed."""
        assert not self.closed and world_size <= self._largest
        pipes = self._team(world_size)
        for pipe in pipes:
            pipe.send((function, arguments))
        answers: dict[int, Any] = {}
        while len(answers) < world_size:
            open_pipes = [pipe for rank, pipe in enumerate(pipes) if rank not in answers]
            ready = wait(open_pipes, timeout=PATIENCE)
            failure = None if ready else f"no answer of {len(open_pipes)} ranks within {PATIENCE} s"
            for pipe in cast(list[Connection], ready):
                rank = pipes.index(pipe)
                try:
                    answers[rank], trace = pickle.loads(pipe.recv_bytes())
                    failure = failure or (trace and f"rank {rank} failed:\n{trace}")
                except EOFError:
                    failure = f"rank {rank} died"
            if failure:
                self.close()
                raise RuntimeError(failure)
        return [answers[rank] for rank in range(world_size)]

    def close(self) -> None:
        """End the processes, whatever they do."""
        self.closed = True
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def __enter__(self) -> "Gloo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection, store: str, rank: int, world_size: int) -> None:
    """Answer calls until the pipe closes."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=PATIENCE), rank=rank, world_size=world_size)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer, trace = function(*arguments), None
            dist.barrier()  # one that gathers once more than the others is found out here, not in the next call
        except Exception:
            answer, trace = None, traceback.format_exc()
        pipe.send_bytes(pickle.dumps((answer, trace)))  # by value: a pipe's own pickler would share each tensor's memory
