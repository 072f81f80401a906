"""`python -m training` that also notes which samples each step consumed: a program for the resume tests, run as a script."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import training.plan
from pipelines.batch import Batch
from pipelines.display import Display
from pipelines.order import Order
from pipelines.settings import load, parse_overrides
from pipelines.stream import Stream, Unusable, Worker
from training.config import TrainSettings
from training.run import run


class RecordingStream(Stream):
    """Writes (step, sample ids) as batches are handed to the loop, a file an attempt and worker."""

    folder: Path
    attempt: int

    def training(
        self, order: Order, first: int, last: int, worker: Worker, failed: Callable[[Unusable], None] | None = None
    ) -> Iterator[Batch]:
        name = f"{self.attempt}-{first:06d}-{worker.rank}-of-{worker.world_size}.jsonl"
        with (self.folder / name).open("w") as file:
            for step, batch in enumerate(super().training(order, first, last, worker, failed), first):
                ids = cast(dict, batch).pop("sample_id").tolist()
                file.write(json.dumps({"step": step, "epoch": order.epoch_of(step), "ids": ids}) + "\n")
                file.flush()
                yield batch


def main(config: str, *overrides: str) -> None:
    settings = load(TrainSettings, config, parse_overrides(overrides))
    RecordingStream.attempt = time.time_ns()
    RecordingStream.folder = settings.storage / "consumed" / settings.name
    RecordingStream.folder.mkdir(parents=True, exist_ok=True)

    def recording(**keys: object) -> Stream:
        return RecordingStream(**keys | {"columns": keys["columns"] | {"sample_id"}})  # type: ignore[arg-type,operator]

    training.plan.Stream = recording  # type: ignore[assignment,misc]
    run(settings, Display(quiet=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
