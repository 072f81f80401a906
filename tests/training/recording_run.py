"""`python -m training` that records the samples of each step, and can wait at a step: a program for tests that kill it.

Run as a script: CONFIG.yaml STEPS KEY=VALUE ... After so many steps (0: never) its workers wait until there is a file `go` beside
what they have noted, so that whoever kills it comes neither too early nor too late, on any machine; or until the run is asked to
stop, and then no longer than that.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import training.plan
from pipelines.dataset.batch import Batch
from pipelines.dataset.order import Order
from pipelines.dataset.stream import Stream, Unusable, Worker
from pipelines.program.cli import run_program
from pipelines.program.settings import load, parse_overrides
from training.__main__ import _run
from training.config import TrainSettings
from training.stopping import Asked


class RecordingStream(Stream):
    """Writes (step, sample ids) as the loop receives batches, one file per attempt and worker."""

    folder: Path
    attempt: int
    wait_after: int  # steps

    def training(
        self, order: Order, first: int, last: int, worker: Worker, failed: Callable[[Unusable], None] | None = None
    ) -> Iterator[Batch]:
        name = f"{self.attempt}-{first:06d}-{worker.rank}-of-{worker.world_size}.jsonl"
        asked = [value for value in gc.get_objects() if isinstance(value, Asked)]  # rank 0 has one, and the others follow it
        with (self.folder / name).open("w") as file:
            for step, batch in enumerate(super().training(order, first, last, worker, failed), first):
                while self.wait_after and step - first >= self.wait_after and not (self.folder / "go").exists():
                    (self.folder / f"waits-{worker.rank}").touch()
                    if any(request() for request in asked):
                        (self.folder / "go").touch()
                    time.sleep(0.02)
                ids = cast(dict, batch).pop("sample_id").tolist()
                file.write(json.dumps({"step": step, "epoch": order.epoch_of(step), "ids": ids}) + "\n")
                file.flush()
                yield batch


def consumed_in(storage: Path, name: str) -> Path:
    """The folder of a run's records."""
    return storage / "consumed" / name


def main(config: str, wait_after: str, *overrides: str) -> int:
    settings = load(TrainSettings, config, parse_overrides(overrides))
    folder = consumed_in(settings.storage, settings.name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go").unlink(missing_ok=True)
    attempt = time.time_ns()

    def recording(**keys: object) -> Stream:
        stream = RecordingStream(**keys | {"columns": keys["columns"] | {"sample_id"}})  # type: ignore[arg-type,operator]
        # Of the object, which reaches a worker as it is, where the class may be imported.
        vars(stream).update(folder=folder, attempt=attempt, wait_after=int(wait_after))
        return stream

    training.plan.Stream = recording  # type: ignore[assignment,misc]
    return run_program("training", "", TrainSettings, _run, [config, *overrides])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
