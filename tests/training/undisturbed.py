"""The real training loop without Ray's tasks, on squares two of which cannot be read: what a disturbed run is held against."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Item, Stream, Worker
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.training.squares import prepared_by_hand
from training import distributed
from training.config import TrainSettings
from training.loop import train
from training.plan import Plan, plan_of

BATCH, EPOCHS = 11, 6  # 2 steps an epoch, and 2 pairs left over
BROKEN = (4, 15)  # training images that cannot be read

OBJECTIVES: dict[str, dict[str, Any]] = {
    "clip": {},
    "siglip": {},  # passes its blocks around
    "isogclr": {"max_temperature": 0.4},  # a normaliser and a temperature of each image and each caption
    "declip": {"hidden": 8, "queue": 17},  # a queue that batches do not fill evenly, and BatchNorm
    "mcd": {},  # a teacher that follows
}


class Here(Stream):
    """Reads in its own process, without Ray's tasks."""

    consumed: list[tuple[int, int, list[int]]]  # step, rank, samples: of all streams of this process

    def training(self, order: Order, first: int, last: int, worker: Worker, *_: Any) -> Iterator[Batch]:
        place = worker.rank, worker.world_size
        for step in range(first, last):
            ids = order.batch(step, *place)
            batch = self.here(Item(ids, order.epoch_of(step), partial(order.spares, step, *place)))
            Here.consumed.append((step, worker.rank, cast(dict, batch).pop("sample_id").tolist()))
            yield batch

    def evaluation(self, sample_ids: np.ndarray, batch_size: int, worker: Worker) -> Iterator[Batch]:
        for start in range(0, len(sample_ids), batch_size):
            yield self.here(Item(sample_ids[start : start + batch_size], 0))


def broken_squares(folder: Path) -> Prepared:
    """Squares by hand, some of whose training images are no images."""
    prepared = prepared_by_hand(folder, "squares")
    for image in BROKEN:
        (prepared.path / f"{image}.png").write_bytes(b"nothing")
    return prepared


def tree_of(squares: Prepared, objective: str) -> dict[str, Any]:
    return {
        "name": "run",
        "data": {"path": str(squares.path)},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [16, 24]},
        "text_tower": {"name": "bag", "width": 16, "max_tokens": 8},
        "embed_dim": 8,
        "objective": {"name": objective, "temperature": 0.2} | OBJECTIVES[objective],
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "epochs": EPOCHS,
        "global_batch_size": BATCH,
        "log_every": 1,
        "evaluation": {"every_epochs": EPOCHS, "recall_at": [1], "templates": ["a {}"]},
        "checkpoint": {"every_minutes": None},
        "resources": {"num_workers": [1, 3], "max_failures": 0},
        "tensorboard": False,
    }


def planned(tree: dict[str, Any]) -> Plan:
    plan = plan_of(validate(TrainSettings, tree, "run"), Pool(0), Display(quiet=True))

    def here(stream: Stream, *more: str) -> Stream:
        return Here(**vars(stream) | {"columns": stream.columns | {*more}})

    scored = tuple(replace(split, images=here(split.images)) for split in plan.scored)
    return replace(plan, stream=here(plan.stream, "sample_id"), scored=scored)


def leg(plan: Plan, start: Path | None, end: int, place: Path) -> tuple[list[dict[str, Any]], list[tuple[int, int, list[int]]]]:
    """Train from the checkpoint `start` to the step `end`, whose checkpoint is `place`: lines, and what was consumed."""
    worker = Worker(distributed.rank(), distributed.world_size(), torch.device("cpu"), 1.0)
    if worker.world_size > 1:
        ray.train.torch.prepare_model = lambda model, parallel_strategy_kwargs: DistributedDataParallel(
            model, **parallel_strategy_kwargs
        )
    lines: list[dict[str, Any]] = []
    first = 0 if start is None else int(start.name)
    Here.consumed = []

    def report(metrics: dict[str, Any], save: Any) -> None:
        lines.append(metrics)
        if save is not None and worker.rank == 0:
            place.mkdir(exist_ok=True)
            save().write(place)

    checkpoint = None if start is None else ray.train.Checkpoint.from_directory(start)
    result = train(plan, worker, report, checkpoint, lambda: first + len(Here.consumed) == end)
    assert result == {"stopped": end} or result["step"] == end
    return lines, Here.consumed
