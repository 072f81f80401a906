"""What a checkpoint costs a run's steps: saved while a step waits, and while training goes on; on a disk, and in a store.

    python -m benchmarks.checkpoint_cost          # about 4 minutes on 2 cores

One Ray Train worker with one thread trains timm's vit_small (64 pixels) and a small text tower by AdamW, and saves with
`training.saver` as a run does. The store is the tests' S3 server, on the same machine and its CPUs. Before and after each
checkpoint there is a stretch of steps without one. Its cost is the time for which training stood still, and by how much longer
than those steps' median the steps took that were made until it was listed.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from benchmarks.runs import machine
from pipelines.dataset.stream import Item, Worker
from pipelines.features.pool import Pool
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.ray_internals import unreported
from pipelines.program.settings import validate
from tests.object_store import object_store
from tests.training.squares import prepared_by_hand
from training import pulse
from training.build import build_state
from training.checkpoint import snapshot
from training.config import TrainSettings
from training.plan import plan_of
from training.run_store import RunStore, ray_options
from training.saver import Saver
from training.step import train_step

STEPS = 20  # of a stretch without a checkpoint
BATCH = 8
TREE: dict[str, Any] = {
    "image_tower": {"name": "timm", "model": "vit_small_patch16_224", "image_size": 64},
    "text_tower": {"name": "transformer", "width": 256, "layers": 2, "max_tokens": 16},
    "embed_dim": 256,
    "epochs": 1000,
    "global_batch_size": BATCH,
    "optimizer": {"name": "adamw", "lr": 1e-4},
}
PLACES, WAYS = ("disk", "store"), ("the step waits", "training goes on")


def measured(config: dict[str, Any]) -> dict[str, Any]:
    """In the worker: of each checkpoint, its way, seconds stood still, seconds lost in all, and seconds until it was listed."""
    plan, worker = config["plan"], Worker(0, 1, torch.device("cpu"), 1.0)
    _, state = build_state(plan, worker)
    ids = plan.order.batch(0)
    found = plan.stream.compute(Item(ids, 0)) | plan.stream.look_up(ids, 0)
    batch: Any = {name: torch.from_numpy(np.asarray(column)) for name, column in found.items()}
    saver, stretches, saved = Saver(config["folder"], config["store"]), [], []

    def step() -> float:
        begun = time.perf_counter()
        train_step(state, batch, plan.settings, 1e-4)
        return time.perf_counter() - begun

    [step() for _ in range(3)]
    with pulse.Pulse(config["folder"], worker), saver:
        for way in WAYS * config["checkpoints"]:
            stretches.append([step() for _ in range(STEPS)])
            begun = time.perf_counter()
            saver.report({"step": state.step}, partial(snapshot, state, plan, {}))
            while way == WAYS[0] and unreported():
                time.sleep(0.01)
            still, during = time.perf_counter() - begun, []
            while unreported():
                during.append(step())
            saved.append((way, still, during, time.perf_counter() - begun))
    stretches.append([step() for _ in range(STEPS)])
    usual = [statistics.median(before + after) for before, after in pairwise(stretches)]
    rows = [
        (way, still, still + sum(during) - middle * len(during), whole, middle)
        for (way, still, during, whole), middle in zip(saved, usual, strict=True)
    ]
    return {"rows": rows, "bytes": sum(tensor.nbytes for tensor in snapshot(state, plan, {}).tensors.values())}


def run(folder: Path, place: str, checkpoints: int) -> dict[str, Any]:
    """What the worker returned, of a run that is saved there."""
    squares = folder / "squares"
    if not squares.exists():
        prepared_by_hand(squares, "squares")
    tree = TREE | {"name": place, "data": {"path": str(squares)}, "storage": str(folder)}
    with ExitStack() as stack:
        own = None
        if place == "store":
            there = stack.enter_context(object_store())
            os.environ.update(there.environment)
            own = RunStore(there.uri("runs", place))
        plan = plan_of(validate(TrainSettings, tree, place), Pool(0), Display(quiet=True))
        (folder / place).mkdir()
        cluster.start(False)
        stack.callback(ray.shutdown)
        config = {"plan": plan, "folder": folder / place, "store": own, "checkpoints": checkpoints}
        where = ray_options(folder / place if own is None else own.uri)
        keep = ray.train.CheckpointConfig(num_to_keep=1)
        scaling = ray.train.ScalingConfig(num_workers=1)
        trainer = TorchTrainer(
            measured,
            train_loop_config=config,
            scaling_config=scaling,
            run_config=ray.train.RunConfig(**where, checkpoint_config=keep),
        )
        returned = trainer.fit().return_value
    assert returned is not None
    return returned


def spread(values: Sequence[float], form: str) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_cost", description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=5, help="of each kind")
    options = parser.parse_args(arguments)
    print("| where | | a step, s | stood still, s | lost a checkpoint, s | lost at one a minute, % | saved after, s |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for place in PLACES:
            returned = run(Path(folder), place, options.checkpoints)
            for way in WAYS:
                rows = [row[1:] for row in returned["rows"] if row[0] == way]
                still, lost, whole, usual = zip(*rows, strict=True)
                share = spread([100 * seconds / 60 for seconds in lost], ".2f")
                print(
                    f"| {place} | {way} | {spread(usual, '.2f')} | {spread(still, '.2f')} | {spread(lost, '.2f')} | {share} "
                    f"| {spread(whole, '.1f')} |",
                    flush=True,
                )
    print(f"\n{machine()}; a state of {returned['bytes'] / 2**20:.0f} MiB; medians of {options.checkpoints} (least to most)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
