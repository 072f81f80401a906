"""Functions in real processes that talk through gloo, for tests of anything that gathers.

    with Gloo(3) as gloo:
        first, second = gloo(2, function, argument)  # what function(argument) returned on rank 0 and on rank 1

Importing torch takes seconds, joining a process group milliseconds: a server imports once, its forks wait for calls, and
every call gets a process group of its own. Functions are pickled by name, so they stand at the top of a module.
"""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

from tests.patience import PATIENCE


class Gloo:
    """At most `largest` workers at a time. `closed` after a failure: a rank may still hang in a collective."""

    def __init__(self, largest: int):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "timm.optim", "training.step"])
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(largest):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that a process that dies is an end of file here
            self._pipes.append(ours)
            self._processes.append(process)
        self.closed = False

    def __call__(self, world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What the function returned on each rank, in rank order. Raises with a rank's traceback where one failed."""
        assert not self.closed and world_size <= len(self._pipes)
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self._pipes[:world_size]):
                pipe.send((str(Path(folder) / "store"), rank, world_size, function, arguments))
            answers: dict[int, Any] = {}
            while len(answers) < world_size:
                open_pipes = [pipe for rank, pipe in enumerate(self._pipes[:world_size]) if rank not in answers]
                ready = wait(open_pipes, timeout=PATIENCE)
                failure = None if ready else f"no answer of {len(open_pipes)} ranks within {PATIENCE} s"
                for pipe in cast(list[Connection], ready):
                    rank = self._pipes.index(pipe)
                    try:
                        answers[rank], trace = pipe.recv()
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

    def __enter__(self) -> "Gloo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _serve(pipe: Connection) -> None:
    """Answer calls until the pipe closes."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    while True:
        try:
            store, rank, world_size, function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=PATIENCE), rank=rank, world_size=world_size)
            answer, trace = function(*arguments), None
            dist.barrier()  # nobody leaves while another still gathers
            dist.destroy_process_group()
        except Exception:
            answer, trace = None, traceback.format_exc()
        pipe.send((answer, trace))
