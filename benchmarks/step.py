"""An optimizer step beside what a user would pick instead: ours, open_clip's own training function, and a bare PyTorch loop.

    python -m benchmarks step            # about 10 minutes on 2 cores; needs data/openmoji (make demo)
    python -m benchmarks.step --case "conv, batch 128"      # one case; writes nothing

All three train the same towers from the same weights, by the same optimizer, on the same batches, which are in memory: uint8
images and token ids. Their losses have to agree. They take turns in one process (with two workers: in the same two), each for a
few steps, round after round; the order is drawn anew in each round, and ratios are taken within one.
"""

import argparse
import copy
import json
import logging
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.figures import Figure
from benchmarks.runs import machine, plan_of
from pipelines.dataset.stream import Item, Worker
from pipelines.program.display import Display
from training.distributed import gloo
from training.objectives.base import Loss
from training.plan import Plan
from training.state import TrainState
from training.step import over_workers, train_step

CONFIG = Path("training/configs/from-scratch.yaml")
LR, STEPS, ROUNDS = 1e-4, 4, 20  # steps of a turn
LOGGED = 10  # open_clip logs every tenth step, and so does ours
_SMALL: dict[str, Any] = {
    "image_tower": {"name": "conv", "image_size": 48},
    "text_tower": {"name": "transformer", "width": 128, "layers": 2, "max_tokens": 32, "vocabulary_size": 4000},
    "global_batch_size": 128,
}
_VIT: dict[str, Any] = {
    "image_tower": {"name": "timm", "model": "vit_small_patch16_224", "image_size": 224},
    "text_tower": _SMALL["text_tower"],
    "global_batch_size": 16,
}
_COMMON: dict[str, Any] = {
    "objective": {"name": "clip", "mask_false_negatives": False},  # open_clip masks none
    "clip_norm": None,
    "evaluation": {"every_epochs": 30},
}
CASES: dict[str, tuple[dict[str, Any], int]] = {  # settings, and workers
    "conv, batch 128": (_SMALL, 1),
    "conv, batch 128, gradients clipped": (_SMALL | {"clip_norm": 1.0}, 1),
    "conv, batch 128 in 4 parts": (_SMALL | {"accumulate": 4}, 1),
    "conv, batch 128, bf16": (_SMALL | {"precision": "bf16"}, 1),
    "conv, batch 128, 2 workers": (_SMALL, 2),
    "ViT-S/16 at 224, batch 16": (_VIT, 1),
}
Batch = dict[str, Tensor]
Turn = Callable[[Sequence[Batch]], float]  # steps on these batches; the last loss


class Dual(nn.Module):
    """Our encoder as open_clip's loop and a bare one call a model."""

    def __init__(self, encoder: nn.Module, objective: Any):
        super().__init__()
        self.encoder, self.logit_scale = encoder, nn.Parameter(objective.scale.log.detach().clone())

    def forward(self, images: Tensor, texts: Tensor) -> dict[str, Tensor]:
        rows = self.encoder({"image": images, "text": texts[:, 0], "text_mask": texts[:, 1].bool()})
        return {"image_features": rows.image, "text_features": rows.text, "logit_scale": self.logit_scale.exp()}


def pairs(batches: Sequence[Batch], parts: int = 1) -> list[tuple[Tensor, Tensor]]:
    """As the others' loaders give them: an image and a tensor of ids and mask."""
    texts = [torch.stack([batch["text"], batch["text_mask"].long()], dim=1) for batch in batches]
    whole = [(batch["image"], text) for batch, text in zip(batches, texts, strict=True)]
    return [part for image, text in whole for part in zip(image.chunk(parts), text.chunk(parts), strict=True)]


def distributed(module: nn.Module) -> nn.Module:
    """As `ray.train.torch.prepare_model` and open_clip wrap one."""
    return DistributedDataParallel(module, broadcast_buffers=False) if dist.is_initialized() else module


def ours(plan: Plan, made: tuple[Any, Any, Any]) -> Turn:
    encoder, objective, teacher = made
    settings = plan.settings
    optimizer = settings.optimizer.build([encoder, objective])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(distributed(encoder), objective, teacher, optimizer, scaler)

    def turn(batches: Sequence[Batch]) -> float:
        loss: Loss
        for batch in batches:
            loss, _ = train_step(state, batch, settings, LR)  # type: ignore[arg-type]
            if state.step % LOGGED == 0:
                over_workers(loss, settings)
        return over_workers(loss, settings)["loss"]

    return turn


def bare(plan: Plan, made: tuple[Any, Any, Any]) -> Turn:
    """The least that trains: no check, no log. Gathers negatives with gradients, and accumulates by recomputing, as ours does."""
    import open_clip

    settings = plan.settings
    dual = Dual(*made[:2])
    optimizer = settings.optimizer.build([dual])
    model = distributed(dual)
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    measure = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=size)

    def infonce(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        if size > 1:
            return measure(image, text, scale)
        logits, target = scale * image @ text.T, torch.arange(len(image))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def step(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
        optimizer.zero_grad()
        cast = torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16")
        if len(parts) == 1:
            with cast:
                rows = model(*parts[0])
            loss = infonce(rows["image_features"].float(), rows["text_features"].float(), rows["logit_scale"])
            loss.backward()
        else:
            with torch.no_grad(), cast:
                outputs = [model(*part) for part in parts]
            image, text = (
                torch.cat([rows[f"{kind}_features"].float() for rows in outputs]).requires_grad_() for kind in ("image", "text")
            )
            loss = infonce(image, text, dual.logit_scale.exp())
            loss.backward()
            cuts = zip(image.grad.chunk(len(parts)), text.grad.chunk(len(parts)), strict=True)  # type: ignore[union-attr]
            for part, cut in zip(parts, cuts, strict=True):
                with cast:
                    rows = model(*part)
                torch.autograd.backward([rows["image_features"].float(), rows["text_features"].float()], list(cut))
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(dual.parameters(), settings.clip_norm)
        optimizer.step()
        with torch.no_grad():
            dual.logit_scale.clamp_(0, math.log(100))
        return loss

    def turn(batches: Sequence[Batch]) -> float:
        given = pairs(batches, settings.accumulate)
        for group in optimizer.param_groups:
            group["lr"] = LR
        for start in range(0, len(given), settings.accumulate):
            loss = step(given[start : start + settings.accumulate]).detach()
        return _mean(loss)

    return turn


class _Loader:
    """What open_clip's function asks of a loader and of its data."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]):
        self.batches, self.dataloader = batches, self
        self.num_batches, self.num_samples = len(batches), sum(len(image) for image, _ in batches)

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(self.batches)


def theirs(plan: Plan, made: tuple[Any, Any, Any]) -> Turn:
    """open_clip's `train_one_epoch`, with its loss."""
    import open_clip
    from open_clip_train.train import train_one_epoch  # type: ignore[import-untyped]

    settings = plan.settings
    dual = Dual(*made[:2])
    optimizer = settings.optimizer.build([dual])
    for group in optimizer.param_groups:
        group["lr"] = LR
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    measure = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=size)
    model, losses = distributed(dual), []

    def noted(**given: Any) -> Any:
        found = measure(**given)
        losses.append(next(iter(found.values())).detach())
        return found

    told = Namespace(
        device="cpu",
        precision="amp_bf16" if settings.precision == "bf16" else "fp32",
        distill=False,
        accum_freq=settings.accumulate,
        skip_scheduler=False,
        grad_clip_norm=settings.clip_norm,
        horovod=False,
        log_every_n_steps=LOGGED,
        rank=rank,
        local_rank=rank,
        log_local=False,
        world_size=size,
        batch_size=settings.global_batch_size // size // settings.accumulate,
        wandb=False,
    )

    def turn(batches: Sequence[Batch]) -> float:
        data = {"train": _Loader(pairs(batches, settings.accumulate))}
        train_one_epoch(model, data, noted, 0, optimizer, None, lambda step: None, None, told)
        return _mean(losses[-1])

    return turn


FORMS: dict[str, Callable[[Plan, tuple[Any, Any, Any]], Turn]] = {"ours": ours, "open_clip": theirs, "bare": bare}


def _mean(loss: Tensor) -> float:
    """Over workers."""
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss = loss / dist.get_world_size()
    return float(loss)


def measured(case: str, rounds: int, rank: int) -> dict[str, list[float]]:
    """In a worker: seconds a step of each form, a number a round."""
    tree, size = CASES[case]
    logging.disable()
    plan = plan_of(CONFIG, _COMMON | tree, Display(quiet=True))
    made = plan.build(None)
    turns = {name: form(plan, copy.deepcopy(made)) for name, form in FORMS.items()}
    worker = Worker(rank, size, torch.device("cpu"), 1.0)
    batches: list[Batch] = []
    for step in range(STEPS):
        item = Item(plan.order.batch(step, worker.rank, worker.world_size), 0)
        batches.append({name: column for name, column in plan.stream.here(item).items() if name != "sample_id"})  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    chance = random.Random(0)
    for turn in range(rounds + 1):
        losses = {}
        for name in chance.sample(sorted(turns), len(turns)):
            if size > 1:
                dist.barrier()
            begun = time.perf_counter()
            losses[name] = turns[name](batches)
            if turn:  # the first is for warming up
                seconds[name].append((time.perf_counter() - begun) / STEPS)
        least, most = min(losses.values()), max(losses.values())
        # bf16 rounds a loss that is computed under autocast, as open_clip's is, to three digits.
        if most - least > (0.05 if plan.settings.precision == "bf16" else 0.01) * most:
            raise RuntimeError(f"{case}: the losses differ: {losses}")
    return seconds


def child(case: str, rounds: int, rank: int, store: str) -> None:
    """One worker of a case, in this fresh process; prints what worker 0 measured."""
    size = CASES[case][1]
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    with gloo(store, rank, size, 600) if size > 1 else nullcontext():
        seconds = measured(case, rounds, rank)
    print(json.dumps(seconds))


def run(case: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each form, a number a round, as worker 0 has them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.step",
            "--rounds",
            str(rounds),
            "--store",
            f"{folder}/store",
            "--child",
            case,
        ]
        workers = [
            subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in range(CASES[case][1])
        ]
        answers = [worker.communicate() for worker in workers]
    for worker, (_, errors) in zip(workers, answers, strict=True):
        if worker.returncode:
            raise RuntimeError(f"{case}: {errors[-2000:]}")
    return json.loads(answers[0][0].splitlines()[-1])


def figures_of(case: str, seconds: dict[str, list[float]]) -> list[Figure]:
    """Milliseconds of each form, and our speed relative to the two others'."""
    found = [Figure(f"{case}: {name}", [1000 * value for value in values], "ms", "less") for name, values in seconds.items()]
    for name in ("open_clip", "bare"):
        ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds[name], strict=True)]
        found.append(Figure(f"{case}: speed relative to {name}", ratios))
    return found


def measure(rounds: int, cases: Sequence[str] = tuple(CASES)) -> list[Figure]:
    """Of all cases; tells of each as it goes."""
    found = []
    for case in cases:
        new = figures_of(case, run(case, rounds))
        print("\n".join(f"{figure.name}: {figure} {figure.unit}" for figure in new), flush=True)
        found += new
    return found


def table(command: str, figures: Sequence[Figure]) -> list[str]:
    """The page, in Markdown."""
    named = {figure.name: figure for figure in figures}
    rounds = len(figures[0].values)
    lines = [
        "# A step",
        "",
        f"`{command}`; {machine()}.",
        f"Milliseconds of a step, median (quartiles) of {rounds} rounds of {STEPS} steps of each; and our speed relative to that",
        "of the others, whose ratios are taken within a round; above 1 ours is faster. Same towers, weights, optimizer and",
        "batches, in memory; their losses agree.",
        "",
        "| | ours, ms | open_clip, ms | bare loop, ms | ours, of open_clip's speed | of the bare loop's |",
        "|---|---|---|---|---|---|",
    ]
    columns = [*FORMS, "speed relative to open_clip", "speed relative to bare"]
    lines += [f"| {' | '.join([case, *(str(named[f'{case}: {column}']) for column in columns)])} |" for case in CASES]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of {STEPS} steps of each of the three")
    parser.add_argument("--case", choices=list(CASES), action="append", help="only this one; may be repeated")
    parser.add_argument("--child", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        child(told.child, told.rounds, told.rank, told.store)
    else:
        measure(told.rounds, told.case or list(CASES))


if __name__ == "__main__":
    main()
