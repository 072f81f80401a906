"""One optimizer step, exact for contrastive losses at any number of workers and micro-batches.

A contrastive loss of parts is not the loss of the whole. With `accumulate` parts (Gao et al., arXiv 2101.06983): embed all
parts and drop their graphs, take the loss on all of them and its gradient with respect to the embeddings, then embed each part
again, under the same random numbers, and push that gradient through.

The global batch is shared by the rule of `pipelines.dataset.shares`, among workers and then, on each, among parts: neither number
need divide it, as long as each part has a row. A worker's loss counts by its share of the rows (`training.distributed`).

A step counts or is skipped. If a loss or a gradient is not finite, on any worker, nothing that is learned changes: no weight, no
optimizer state, no state of the objective or the teacher, no statistics of the encoder. Only counters change, and the scaler's
scale.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch
from pipelines.dataset.shares import shares
from pipelines.program.randomness import torch_seed
from training.config import TrainSettings
from training.distributed import average_gradients, global_batch, mean, rank, total, weighted
from training.moving_average import follow
from training.objectives.base import Embeddings, Loss
from training.state import TrainState, unwrap


def train_step(state: TrainState, batch: Batch, settings: TrainSettings, lr: float) -> tuple[Loss, Tensor]:
    """Teacher, forward, backward, clip, step, updates. Returns the loss and the gradient's norm before clipping.

    `state.skipped` is incremented if the step did not count; `state.stopping` becomes true on all workers if it was on one.
    `batch` holds this worker's share of a global batch of `settings.global_batch_size`.
    """
    with global_batch(settings.global_batch_size):
        return _train_step(state, batch, settings, lr)


def over_workers(loss: Loss, settings: TrainSettings) -> dict[str, float]:
    """`loss` and metrics of a step, over the global batch. To be called on all workers."""
    with global_batch(settings.global_batch_size):
        return {name: float(mean(value)) for name, value in {"loss": loss.total, **loss.metrics}.items()}


def _train_step(state: TrainState, batch: Batch, settings: TrainSettings, lr: float) -> tuple[Loss, Tensor]:
    encoder = unwrap(state.encoder)
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    for group in state.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    batch, loss = gradients(state, batch, settings)
    average_gradients(state.objective)
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if settings.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
    counts, state.stopping = _agreed(loss, norm, state.stopping)
    if counts:
        state.optimizer.step()  # not through the scaler: gradients are unscaled already, and finite
        state.objective.update(batch, loss)
        state.teacher.update(encoder, state.step)
        if settings.ema is not None:
            follow(state.average, encoder, settings.ema.momentum(settings.global_batch_size))
        state.failing = max(0, state.failing - 1)
    else:
        _restore(encoder, before)
        state.objective.skip()
        state.skipped += 1
        state.failing += 1
    state.scaler.update()
    state.step += 1
    state.samples += settings.global_batch_size
    return loss, norm


def gradients(state: TrainState, batch: Batch, settings: TrainSettings) -> tuple[Batch, Loss]:
    """Teacher, forward and backward: the batch with the teacher's columns, and the loss. Adds gradients to `.grad`."""
    batch = _taught(state, batch, settings)
    seed = torch_seed("step", settings.seed, state.step, rank())
    if settings.accumulate > 1:
        return batch, _accumulate(state, batch, settings, seed)
    torch.manual_seed(seed)
    loss = state.objective(_embed(state.encoder, batch, settings), batch)
    state.scaler.scale(weighted(loss.total)).backward()
    return batch, loss


def _agreed(loss: Loss, norm: Tensor, stopping: bool) -> tuple[bool, bool]:
    """Whether everything that the step would write is finite, on every worker; and whether any worker was asked to stop.

    The only synchronisation with the device in a step.
    """
    checks = [loss.total.detach().isfinite(), norm.isfinite()]
    # In memories of normalisers, the logarithm of what was never seen is -inf.
    checks += [~(value.isnan() | value.isposinf()).any() for value in loss.state.values() if value.is_floating_point()]
    failed = 1 - torch.stack(checks).all().float()
    failures, requests = total(torch.stack([failed, failed.new_tensor(float(stopping))])).tolist()
    return failures == 0, requests > 0


@torch.no_grad()
def _restore(encoder: nn.Module, before: dict[str, Tensor]) -> None:
    """Undo what a forward pass wrote, such as statistics of BatchNorm."""
    for name, buffer in encoder.named_buffers():
        if name in before and not torch.equal(buffer, before[name]):
            buffer.copy_(before[name])


def _embed(encoder: nn.Module, batch: Batch, settings: TrainSettings) -> Embeddings:
    """The encoder under autocast. Its results are float32."""
    with _autocast(encoder, settings):
        return encoder(batch)


@torch.no_grad()
def _taught(state: TrainState, batch: Batch, settings: TrainSettings) -> Batch:
    """The batch with the teacher's columns, computed in as many parts as the student's. No column of the batch is copied."""
    with _autocast(state.encoder, settings):
        parts = [cast(dict[str, Tensor], state.teacher(part)) for part in _split(batch, settings.accumulate)]
    added = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name not in batch}
    return cast(Batch, {**batch, **added})


def _autocast(encoder: nn.Module, settings: TrainSettings) -> torch.autocast:
    device = next(encoder.parameters()).device.type
    dtype = torch.float16 if settings.precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype=dtype, enabled=settings.precision != "fp32")


def _accumulate(state: TrainState, batch: Batch, settings: TrainSettings, seed: int) -> Loss:
    """The gradient of the whole batch's loss, `settings.accumulate` parts at a time.

    Both passes run the same module in the same mode, with a graph. Without one, the first pass could use other kernels, or be
    compiled separately, with other dropout masks.
    """
    parts = _split(batch, settings.accumulate)
    outputs = []
    for index, part in enumerate(parts):
        torch.manual_seed(seed + index)
        with _without_exchange(state.encoder):
            rows = _embed(state.encoder, part, settings)
        outputs.append({name: column.detach() for name, column in rows.items()})
    whole = Embeddings(**{name: torch.cat([rows[name] for rows in outputs]).requires_grad_() for name in outputs[0]})
    loss = state.objective(whole, batch)
    state.scaler.scale(weighted(loss.total)).backward()
    gradients = {name: _cut(rows.grad, len(parts)) for name, rows in whole.items() if rows.grad is not None}
    for index, part in enumerate(parts):
        torch.manual_seed(seed + index)
        with nullcontext() if index == len(parts) - 1 else _without_exchange(state.encoder):
            rows = _embed(state.encoder, part, settings)
            torch.autograd.backward([rows[name] for name in gradients], [cut[index] for cut in gradients.values()])
    return loss


def _without_exchange(encoder: nn.Module) -> AbstractContextManager[None]:
    """A context in which DDP does not average gradients. torch.compile's wrapper is outside DDP's."""
    inner = getattr(encoder, "_orig_mod", encoder)
    return inner.no_sync() if isinstance(inner, DistributedDataParallel) else nullcontext()


def _split(batch: Batch, parts: int) -> list[Batch]:
    pieces = {name: _cut(column, parts) for name, column in cast(dict[str, Tensor], batch).items()}
    return [cast(Batch, {name: piece[i] for name, piece in pieces.items()}) for i in range(parts)]


def _cut(rows: Tensor, parts: int) -> tuple[Tensor, ...]:
    return rows.split([len(share) for share in shares(len(rows), parts)])
