"""The training loop that every worker runs: batch, step, log, evaluate, checkpoint.

`ray.train.report` is a barrier: all workers must reach it at the same steps. Whether a step reports depends on its number alone,
except for checkpoints by the clock, which rank 0 decides for all, and for the last step of a run that is asked to stop.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch

from pipelines.dataset.stream import Unusable, Worker
from pipelines.program.errors import UserError
from training import pulse
from training.build import build_state, masks_to_cut
from training.cadence import Clock
from training.checkpoint import Snapshot, load_checkpoint, snapshot
from training.distributed import gather_objects, total
from training.held_out_figures import held_out_figures
from training.metrics_file import UNUSABLE, UNUSABLE_ROWS
from training.plan import Plan
from training.state import TrainState
from training.step import over_workers, train_step
from training.stopping import Stopped
from training.towers.padding import shortened
from training.validation import validate_held_out


class DivergenceError(UserError):
    """Loss, gradients or weights are no longer finite."""


_PATIENCE = 20  # excess of skipped over counted steps, in a long run; fp16's scale of 65536 is below 1 after 17
_REMEDY = "a lower optimizer.lr, a longer schedule.warmup_steps, clip_norm=1 or precision=bf16 may help"
_ENOUGH = 1000  # samples before the rate of unusable ones is meaningful
Save = Callable[[], Snapshot]
Report = Callable[[dict[str, Any], Save | None], None]


def never() -> bool:
    return False


def _keep_nothing(*_: Any) -> None:
    pass


def train(
    plan: Plan,
    worker: Worker,
    report: Report,
    checkpoint: ray.train.Checkpoint | None = None,
    asked: Callable[[], bool] = never,
    keep: Callable[[int, list[Any]], Any] = _keep_nothing,
) -> dict[str, Any]:
    """Train to the last step. Needs no Ray if both towers are locked.

    Args:
        report: `report(metrics, save)` is called on every worker at the same steps; `save()` copies the state, None if no
            checkpoint is due.
        asked: once it is true on any worker, the next step that counts is the last, and every worker saves it.
        keep: called on rank 0 with the last evaluation, before its checkpoint is saved; arguments as of `keep_held_out`.

    Returns:
        Step, samples, skipped steps and device at the end; or only `stopped`, the step of a run that was asked to stop;
        `diverged`, why; or `failed`, another error's key, problem and remedy. `completed` raises for these.
    """
    settings = plan.settings
    with checkpoint.as_directory() if checkpoint is not None else nullcontext() as folder:
        encoder, state = build_state(plan, worker, Path(folder) if folder else None)
        if folder:
            load_checkpoint(Path(folder), state, plan)
    clock = Clock(settings, state.seconds)
    cut = masks_to_cut(plan, encoder, state)
    encoder.train()
    if state.step == 0 and settings.starts_trained:
        scores, rows = validate_held_out(state.evaluated, plan, worker)
        begun_with = {name: value for split in scores for name, value in split.metrics.items()}
        if worker.rank == 0:
            begun_with |= held_out_figures(plan.held_out, rows[0], state, settings, worker.device)
        report({"step": 0, "epoch": 0.0, "samples": 0, "workers": worker.world_size} | begun_with, None)
        clock.restart()
    failed: list[Unusable] = []  # rows of this worker, since the last report
    batches = plan.stream.training(plan.order, state.step, plan.total_steps, worker, failed.append)
    while not state.ended:
        pulse.at("read", state.step)
        waited = time.perf_counter()
        batch = shortened(next(batches), cut)
        clock.waited += time.perf_counter() - waited
        pulse.at("step")
        lr = settings.schedule.lr_at(state.step, plan.order.steps_per_epoch, plan.total_steps, settings.optimizer.lr)
        skipped = state.skipped
        state.stopping = state.stopping or asked()
        loss, norm = train_step(state, batch, settings, lr)
        counted = state.skipped == skipped
        if state.failing >= min(_PATIENCE, max(2, plan.total_steps // 2)) or state.skipped == plan.total_steps:
            return {"diverged": _skipped_steps(state, over_workers(loss, settings)["loss"], float(norm))}
        stops = state.stopping and counted
        if not clock.reports(state.step, plan) and not stops:
            continue
        metrics: dict[str, Any] = {"step": state.step, "epoch": state.step / plan.order.steps_per_epoch, "samples": state.samples}
        metrics |= {"lr": lr, "skipped": state.skipped, "workers": worker.world_size}
        if counted:  # else the step has no result: its line has no loss
            metrics |= over_workers(loss, settings) | {"grad_norm": float(norm)}
        metrics |= clock.read()
        evaluate = clock.evaluates(state.step, plan)
        # No checkpoint of a skipped step: a failing run must not replace its good checkpoints.
        saves = (counted or evaluate) and clock.saves(state.step, evaluate or stops)
        if saves and not state.finite():
            return {"diverged": f"the weights are no longer finite at step {state.step}"}
        if evaluate:
            scores, rows = validate_held_out(state.evaluated, plan, worker)
            if not all(np.isfinite(part).all() for split in rows for part in (split.images, split.texts, split.prompts)):
                return {"diverged": f"the embeddings are no longer finite at step {state.step}"}
            metrics |= {name: value for split in scores for name, value in split.metrics.items()}
            if worker.rank == 0:
                metrics |= held_out_figures(plan.held_out, rows[0], state, settings, worker.device)
            clock.restart()
            state.ended = state.step == plan.total_steps or clock.out_of_time()
            if state.ended and worker.rank == 0:
                keep(state.step, [(s.file, s.data, *of) for s, *of in zip(plan.scored, rows, scores, strict=True)])
        state.unusable += round(float(total(torch.tensor(float(len(failed)), device=worker.device))))
        rows_failed = [[row.sample_id, row.reason] for row in failed]
        if saves:  # the checkpoint has all workers': it may be listed by a process that dies before it has listed them
            rows_failed = [row for each in gather_objects(rows_failed) for row in each]
        metrics |= {"unusable": state.unusable, UNUSABLE_ROWS: rows_failed}
        failed.clear()
        state.seconds = clock.total()
        metrics["seconds"] = round(state.seconds, 3)
        begun = time.perf_counter()
        report(metrics, partial(snapshot, state, plan, metrics) if saves else None)
        clock.saving += time.perf_counter() - begun if saves else 0.0
        if state.samples >= _ENOUGH and state.unusable > settings.data.max_unusable_rate * state.samples:
            return {"failed": _too_many_unusable(plan, state)}
        if stops and not state.ended:
            return {"stopped": state.step}
    return {"step": state.step, "samples": state.samples, "skipped": state.skipped, "device": _device_name(worker.device)}


def completed(returned: dict[str, Any]) -> dict[str, Any]:
    """What `train` returned, if it trained to the end. Raises `Stopped`, `DivergenceError` or another `UserError` if not."""
    if "diverged" in returned:
        raise DivergenceError("", f"training stopped: {returned['diverged']}", _REMEDY)
    if "failed" in returned:
        raise UserError(*returned["failed"])
    if "stopped" in returned:
        raise Stopped(returned["stopped"])
    return returned


def _skipped_steps(state: TrainState, loss: float, norm: float) -> str:
    if state.skipped == state.step:
        count = "every step of the run was skipped"
    else:
        count = f"{state.failing} more of the last steps were skipped than counted ({state.skipped:,} of {state.step:,} in all)"
    return f"{count}: at step {state.step} the loss is {loss:g} and the gradient's norm {norm:g}"


def _too_many_unusable(plan: Plan, state: TrainState) -> tuple[str, str, str]:
    data = plan.settings.data
    rate = data.max_unusable_rate
    problem = f"training stopped: {state.unusable:,} of {state.samples:,} rows could not be used, more than the rate {rate}"
    remedy = f"{UNUSABLE} in the run's folder lists the reasons; check the images of {data.path}, or allow a larger rate"
    return "data.max_unusable_rate", problem, remedy


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s) a worker"
