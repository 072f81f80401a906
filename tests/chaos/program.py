"""`python -m training` whose workers wait at the points of a schedule, and note what each step consumed: for tests.chaos.

Run as a script: FOLDER CONFIG.yaml KEY=VALUE ...; FOLDER has schedule.json.
"""

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
from pipelines.program import cluster
from pipelines.program.cli import run_program
from tests.chaos import points
from training.__main__ import _run
from training.config import TrainSettings


class PointedStream(Stream):
    """Notes each step's sample ids, and when, as the loop receives batches, one file per attempt and worker."""

    folder: Path
    started: int

    def training(
        self, order: Order, first: int, last: int, worker: Worker, failed: Callable[[Unusable], None] | None = None
    ) -> Iterator[Batch]:
        points.install(self.folder, worker.rank, worker.world_size)
        batches = super().training(order, first, last, worker, failed)
        name = f"{time.time_ns()}-{first:06d}-{worker.rank}-of-{worker.world_size}.jsonl"
        with (self.folder / name).open("w") as file:
            for step in range(first, last):
                points.begin(step + 1)
                points.reach("read")
                batch = next(batches)
                ids = cast(dict, batch).pop("sample_id").tolist()
                line = {"step": step, "epoch": order.epoch_of(step), "ids": ids, "time": time.time()}
                file.write(json.dumps(line) + "\n")
                file.flush()
                yield batch


def main(folder: str, config: str, *overrides: str) -> int:
    PointedStream.folder = Path(folder)

    def pointed(**keys: object) -> Stream:
        return PointedStream(**keys | {"columns": keys["columns"] | {"sample_id"}})  # type: ignore[operator]

    training.plan.Stream = pointed  # type: ignore[assignment,misc]
    cluster._HEAD = 10.0  # seconds that it waits for a lost head: enough here, where none comes back
    return run_program("training", "", TrainSettings, _run, [config, *overrides])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
