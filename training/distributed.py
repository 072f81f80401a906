"""The only module that uses torch.distributed. With one worker, everything here is the identity.

One convention for gradients, here and nowhere else: `Loss.total` is the mean over this worker's own rows; the backward of
`all_gather` sums over workers; encoder and objective gradients are averaged over workers. Together that is exactly the
gradient of the global batch's loss (Ray Train and DDP average; see tests/training/test_distributed.py).

Workers may have different numbers of rows, by the rule of `pipelines.dataset.shares`. Within `global_batch(B)`:

- Worker r of K has b_r of B rows, and `weight()` is K b_r / B: 1 if all have equally many, and 1 on average over workers.
- The step takes the gradient of `weighted(Loss.total)`. Averaged over workers, a mean over own rows is then the mean over the
  global batch, and a value that is the same on every worker counts once. `mean` weights what is logged in the same way.
- `all_gather` pads to the largest share and cuts afterwards; blocks in the ring of `around` have their sender's length. Global
  row indices (`first_row`, `all_rows`) follow from the shares too. No sizes are communicated.
- `stacked` and `total` are for values of one shape on every worker, which do not grow with its rows, such as sums.

Outside of `global_batch`, all workers have equally many rows. It is a module variable, since objectives gather without knowing
of workers; what the backward pass needs is kept by the forward pass, as autograd may run in another thread.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.dataset.shares import shares

_batch_rows: int | None = None  # of the global batch of the step in progress

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


@contextmanager
def global_batch(rows: int) -> Iterator[None]:
    """A context in which workers hold their shares of a global batch of `rows`, which need not be equal.

    Raises `ValueError` if there are more workers than rows.
    """
    global _batch_rows
    shares(rows, world_size())
    before, _batch_rows = _batch_rows, rows
    try:
        yield
    finally:
        _batch_rows = before


def weight() -> float:
    """This worker's rows, divided by the average number of rows of a worker."""
    if _batch_rows is None or _batch_rows % world_size() == 0:
        return 1.0
    return len(shares(_batch_rows, world_size())[rank()]) * world_size() / _batch_rows


def weighted(value: Tensor) -> Tensor:
    """A mean over this worker's rows times `weight()`: the value itself if all workers have equally many."""
    factor = weight()
    return value if factor == 1 else factor * value


def _lengths(rows: int) -> list[int]:
    """How many rows each worker has, where this one has `rows`. Raises `ValueError` if shares differ and this is not its own."""
    size = world_size()
    if _batch_rows is None or _batch_rows % size == 0:
        return [rows] * size
    lengths = [len(share) for share in shares(_batch_rows, size)]
    if rows != lengths[rank()]:
        raise ValueError(
            f"{rows} rows are not this worker's share, {lengths[rank()]} of {_batch_rows}; gather what is not rows of the batch, "
            "such as a sum, with `training.distributed.stacked`"
        )
    return lengths


class _AllGather(torch.autograd.Function):
    """Concatenate over workers; backward: sum over workers, and take this worker's slice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        ctx.start = sum(lengths[: rank()])
        ctx.end = ctx.start + len(rows)
        return _gathered(rows, lengths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.start : ctx.end], None


def _gathered(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """Rows of all workers, of which each has its own of `lengths`. Backends need equal shapes, so rows are padded on the way."""
    largest = max(lengths)
    padded = rows
    if len(rows) < largest:
        padded = torch.cat([rows, rows.new_zeros(largest - len(rows), *rows.shape[1:])])
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def _gather(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    return _AllGather.apply(rows, lengths) if rows.requires_grad else _gathered(rows, lengths)


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all workers in rank order, [B, ...], with gradient. Every worker must pass all rows of its share."""
    return rows if world_size() == 1 else _gather(rows, _lengths(len(rows)))


def stacked(value: Tensor) -> Tensor:
    """Every worker's value, [world_size, ...] in rank order, with gradient. Every worker must pass the same shape."""
    return value[None] if world_size() == 1 else _gather(value[None], [1] * world_size())


class _Pass(torch.autograd.Function):
    """Rows are sent to the next worker and `length` are received from the previous one; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, length: int) -> Tensor:
        ctx.sent = len(rows)
        return _exchange(rows, 1, length)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _exchange(gradients[0], -1, ctx.sent), None


def _exchange(rows: Tensor, step: int, length: int) -> Tensor:
    """Send to the worker `step` places ahead in the ring, and receive `length` rows from the worker as far behind."""
    received, size = rows.new_empty(length, *rows.shape[1:]), world_size()
    send = dist.P2POp(dist.isend, rows.contiguous(), (rank() + step) % size)
    receive = dist.P2POp(dist.irecv, received, (rank() - step) % size)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return received


def around(rows: Tensor, ring: bool) -> Iterator[Tensor]:
    """Every worker's rows, one worker at a time, this worker's first, with gradient.

    `ring`: passed from worker to worker, so that only two blocks are held at a time; else all gathered at once.
    """
    size, lengths = world_size(), _lengths(len(rows))
    senders = [(rank() - hop) % size for hop in range(size)]
    if not ring:
        blocks = all_gather(rows).split(lengths)
        yield from (blocks[sender] for sender in senders)
        return
    for hop, sender in enumerate(senders):
        if hop:
            rows = _Pass.apply(rows, lengths[sender])
        yield rows


def first_row(rows: int) -> int:
    """Index of this worker's first row in a gathered tensor to which it contributes `rows`."""
    return sum(_lengths(rows)[: rank()])


def all_rows(rows: int) -> int:
    """Number of rows in a gathered tensor to which this worker contributes `rows`."""
    return sum(_lengths(rows))


def total(value: Tensor) -> Tensor:
    """Sum over workers of values of one shape, without gradient."""
    result = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(result)
    return result


def mean(value: Tensor) -> Tensor:
    """Mean over the global batch of what is a mean over each worker's rows, or the same on all workers, without gradient."""
    return value.detach() if world_size() == 1 else total(weighted(value)) / world_size()


def mean_over_workers(sums: Tensor, counts: Tensor) -> Tensor:
    """Each worker's share of a mean over values of which workers have different numbers: `mean` makes of it the total sum over
    the total count, or 0 if nothing was counted.

    Args:
        sums, counts: [n] of this worker; `sums` with gradient. Counts may be weights.
    """
    everywhere = stacked(counts.detach().sum()).sum()
    return sums.sum() * (world_size() / weight()) / torch.where(everywhere > 0, everywhere, 1)


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
