"""Pure functions of queries, keys and targets: no state, no ranks, never less than float32.

None of them holds a large b x B matrix. Sums over rows and over columns come from the same block, so both
directions of InfoNCE cost one product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.ops.blocks import NEVER, Candidates, in_blocks, same
from training.precision import exact


def log_sums(
    queries: Tensor, keys: Tensor, row_scale: Tensor, column_scale: Tensor | None, candidates: Candidates, own: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the scaled products of queries and keys, over all keys and over all queries.

    Args:
        queries: [b, D] unit rows; keys: [B, D] unit rows.
        row_scale: 1/temperature, a scalar or [b], for the sums over keys.
        column_scale: the same, a scalar or [B], for the sums over queries; the same object if it is the same scale; None if these
            sums are not needed.
        own: whether a row's own key is included.

    Returns: [b], and [B] (empty if `column_scale` is None).
    """
    queries, keys = exact(queries), exact(keys)

    def block(candidates: Candidates, queries: Tensor, row_scale: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(queries.device.type, enabled=False):
            if column_scale is None or column_scale is shared:
                logits = candidates.leave_out((row_scale[:, None] * queries) @ keys.T, own)
                rows = logits.logsumexp(1)
                return rows, rows[:0] if column_scale is None else logits.logsumexp(0)
            cosines = queries @ keys.T
            rows = candidates.leave_out(row_scale[:, None] * cosines, own).logsumexp(1)
            return rows, candidates.leave_out(column_scale * cosines, own).logsumexp(0)

    shared = row_scale
    parts = in_blocks(block, len(keys), candidates, queries, row_scale.expand(len(queries)))
    rows, columns = zip(*parts, strict=True)
    return torch.cat(rows), torch.stack(columns).logsumexp(0) if len(columns) > 1 else columns[0]


def soft_cross_entropy(
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    share: Tensor,
    candidates: Candidates,
    alike_is_own: bool = False,
) -> Tensor:
    """Cross entropy [b] of each row's softmax with `share` of the teacher's softmax and the rest on the own key.

    Args:
        student, teacher: queries [b, D], keys [B, D] and scale (a scalar) each; the teacher gets no gradient.
        share: [b], weight of the teacher in the row's target.
        alike_is_own: pairs alike share the own key's target, instead of being left out.
    """
    queries, keys, scale = exact(student[0]), exact(student[1]), student[2]
    taught, taught_keys, sharpness = (exact(part).detach() for part in teacher)

    def block(candidates: Candidates, queries: Tensor, taught: Tensor, share: Tensor) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            logits, targets = (scale * queries) @ keys.T, candidates.targets[:, None]
            with torch.no_grad():
                target = (sharpness * taught) @ taught_keys.T
                if not alike_is_own:
                    target = candidates.leave_out(target, own=True)
                target = target.softmax(1) * share[:, None]
            if not alike_is_own:
                logits = candidates.leave_out(logits, own=True)
            alike = candidates.alike() if alike_is_own else None
            if alike is None:
                hard = logits.gather(1, targets)[:, 0]
            else:
                even = alike.scatter_(1, targets, True).to(logits.dtype)
                hard = (even * logits).sum(1) / even.sum(1)
            return logits.logsumexp(1) - (target * logits).sum(1) - (1 - share) * hard

    return torch.cat(in_blocks(block, len(keys), candidates, queries, taught, share.to(queries.dtype)))


def sigmoid_sums(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, candidates: Candidates) -> Tensor:
    """[b]: sum over keys of another image and caption of softplus(scale <q_i, k_j> + bias)."""
    queries, keys = exact(queries), exact(keys)

    def block(candidates: Candidates, queries: Tensor) -> Tensor:
        assert candidates.ids is not None and candidates.all_ids is not None
        with torch.autocast(queries.device.type, enabled=False):
            logits = (scale * queries) @ keys.T + bias
            return F.softplus(logits.masked_fill_(same(candidates.ids, candidates.all_ids), NEVER)).sum(1)

    return torch.cat(in_blocks(block, len(keys), candidates, queries))


def following(value: Tensor, path: Tensor) -> Tensor:
    """A scalar with the value of `value` and the gradient of `path`."""
    return path + (value - path).detach()


def log_blend(old: Tensor, new: Tensor, gamma: float, adopt: bool = True) -> Tensor:
    """log((1 - gamma) exp(old) + gamma exp(new)); with `adopt`, only `new` where `old` is -inf, that is, not yet set."""
    weights = torch.tensor([1 - gamma, gamma], dtype=new.dtype, device=new.device).log()
    blend = torch.logaddexp(old + weights[0], new + weights[1])
    return torch.where(old.isinf(), new, blend) if adopt else blend
