"""The only module that uses torch.distributed. With one worker, everything here is the identity.

One convention for gradients, here and nowhere else: `Loss.total` is the mean over this worker's own rows; the backward of
`all_gather` sums over workers; encoder and objective gradients are averaged over workers. Together that is exactly the
gradient of the global batch's loss (Ray Train and DDP average; see tests/training/test_distributed.py).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PeerLost = dist.DistError
"""What torch raises if another worker has died."""


def world_size() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


@contextmanager
def gloo(store: str, rank: int, size: int, patience: float) -> Iterator[None]:
    """Joins this process to a group, without Ray Train, as worker `rank` of `size` on CPUs. `store`: a new file's path."""
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=patience), rank=rank, world_size=size)
    try:
        yield
        dist.barrier()  # no worker leaves while another still gathers
    finally:
        dist.destroy_process_group()


class _AllGather(torch.autograd.Function):
    """Concatenate over workers; backward: sum over workers, and take this worker's slice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.size = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.size : (rank() + 1) * ctx.size]


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all workers in rank order, [world_size * b, ...], with gradient. Every worker must pass the same number."""
    if world_size() == 1:
        return rows
    if rows.requires_grad:
        return _AllGather.apply(rows)
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class _Pass(torch.autograd.Function):
    """Rows are sent to the next worker and received from the previous one; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _exchange(rows, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _exchange(gradients[0], -1)


def _exchange(rows: Tensor, step: int) -> Tensor:
    """Send to the worker `step` places ahead in the ring, and receive from the worker as far behind."""
    received, size = torch.empty_like(rows, memory_format=torch.contiguous_format), world_size()
    send = dist.P2POp(dist.isend, rows.contiguous(), (rank() + step) % size)
    receive = dist.P2POp(dist.irecv, received, (rank() - step) % size)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return received


def around(rows: Tensor, ring: bool) -> Iterator[Tensor]:
    """Every worker's rows, one worker at a time, this worker's first, with gradient.

    `ring`: passed from worker to worker, so that only two blocks are held at a time; else all gathered at once.
    """
    size = world_size()
    if not ring:
        blocks = all_gather(rows).chunk(size)
        yield from (blocks[(rank() - hop) % size] for hop in range(size))
        return
    for hop in range(size):
        if hop:
            rows = _Pass.apply(rows)
        yield rows


def first_row(rows: int) -> int:
    """Index of this worker's first row in a gathered tensor to which each worker contributes `rows`."""
    return rank() * rows


def mean(value: Tensor) -> Tensor:
    """Mean over workers, without gradient."""
    if world_size() == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def mean_over_workers(sums: Tensor, counts: Tensor) -> Tensor:
    """Each worker's share of a mean over values of which workers have different numbers: its average over workers is the total
    sum over the total count, or 0 if nothing was counted.

    Args:
        sums, counts: [n] of this worker; `sums` with gradient.
    """
    total = all_gather(counts.detach().sum()[None]).sum()
    return sums.sum() * world_size() / total.clamp(min=1)


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of a module that DDP does not wrap, such as an objective's temperature."""
    if world_size() == 1:
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def gather_objects(value: Any) -> list[Any]:
    """Every worker's picklable value, in rank order, on every worker."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_zero(flags: Iterable[bool]) -> list[bool]:
    """Rank 0's decisions, on every worker."""
    values = list(flags)
    if world_size() == 1:
        return values
    tensor = torch.tensor([float(v) for v in values])
    if dist.get_backend() == "nccl":
        tensor = tensor.cuda()
    dist.broadcast(tensor, src=0)
    return [bool(v) for v in tensor.tolist()]
