"""A run whose number of workers changes is the run of one worker: by checkpoints, at a batch that no number but one divides.

The real loop on real batches in processes of their own, without Ray: 1 worker, then 3, then 2, then 1.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import ray.train
import ray.train.torch
import torch
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Item, Stream, Worker
from pipelines.features.feature_store import Pool
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.training.gloo import Gloo
from tests.training.squares import TRAIN, prepared_by_hand
from training import distributed
from training.config import TrainSettings
from training.loop import train
from training.plan import Plan, plan_of

BATCH, EPOCHS = 11, 6  # 2 steps an epoch, and 2 pairs left over
LEGS = ((1, 3), (3, 5), (2, 9), (1, TRAIN // BATCH * EPOCHS))  # workers, and the step at which they stop
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


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(3) as workers:
        yield workers


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    prepared = prepared_by_hand(tmp_path_factory.mktemp("elastic") / "squares", "squares")
    for image in BROKEN:
        (prepared.path / f"{image}.png").write_bytes(b"nothing")
    return prepared


def planned(squares: Prepared, objective: str) -> Plan:
    tree: dict[str, Any] = {
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
        "resources": {"num_workers": [1, 3]},
    }
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
            place.mkdir()
            save(place)

    checkpoint = None if start is None else ray.train.Checkpoint.from_directory(start)
    result = train(plan, worker, report, checkpoint, lambda: first + len(Here.consumed) == end)
    assert result == {"stopped": end} or result["step"] == end
    return lines, Here.consumed


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_run_at_one_three_two_and_one_workers(gloo: Gloo, squares: Prepared, tmp_path: Path, objective: str) -> None:
    """Each step consumes the same samples, and the losses, the weights and the objective's state are the fixed run's."""
    plan = planned(squares, objective)
    assert all(BATCH % workers for workers, _ in LEGS if workers > 1)
    expected, consumed = leg(plan, None, plan.total_steps, tmp_path / f"{plan.total_steps}-fixed")

    start: Any = None
    lines, samples = list[dict[str, Any]](), dict[int, list[int]]()
    for workers, end in LEGS:
        place = tmp_path / str(end)
        parts = [leg(plan, start, end, place)] if workers == 1 else gloo(workers, leg, plan, start, end, place)
        lines += parts[0][0]
        for step, _, ids in sorted(entry for _, entries in parts for entry in entries):
            samples.setdefault(step, []).extend(ids)
        start = place
    assert samples == {step: ids for step, _, ids in consumed}, "in the same order, too"
    assert not {sample for ids in samples.values() for sample in ids} & {*BROKEN} and len(samples) == plan.total_steps
    assert [line["step"] for line in lines] == list(range(1, plan.total_steps + 1))
    assert [line["workers"] for line in lines] == [1] * 3 + [3] * 2 + [2] * 4 + [1] * 3
    for found, fixed in zip(lines, expected, strict=True):
        assert found["loss"] == pytest.approx(fixed["loss"], abs=1e-4), found["step"]
        assert (found["lr"], found["epoch"], found["samples"]) == (fixed["lr"], fixed["epoch"], fixed["samples"])

    assert lines[0]["loss"] != pytest.approx(lines[-1]["loss"], abs=1e-2), "training moves"
    folders = start, tmp_path / f"{plan.total_steps}-fixed"
    ends = [torch.load(folder / "state.pt", weights_only=True) for folder in folders]
    for part in ("encoder", "objective", "teacher"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=1e-3, atol=1e-4)
