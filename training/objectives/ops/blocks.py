"""Which pairs a row is compared with, and how to process all of them in blocks.

A large b x B matrix is computed in blocks of rows; only the sums over rows and columns are kept, and blocks are recomputed
in the backward pass (the idea of Cheng et al., "Breaking the Memory Barrier", arXiv 2410.17243).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PLAIN = 2**24  # entries of the largest similarity matrix that is held as a whole: 64 MiB
BLOCK = 2**21  # entries of one block of a larger matrix
NEVER = -1e30  # logit of excluded entries; -inf would turn the gradient of an empty row into NaN


class Candidates(NamedTuple):
    """Which keys each row's query is compared with.

    targets: int64 [b], the column of the row's own pair.
    ids, all_ids: int64 [b, k] and [B, k], at least image and caption; pairs that agree in any of the k are alike.
        None if no two pairs are alike.
    group, all_groups: [b] and [B]; a row is compared only within its group. None: all are one group.
    """

    targets: Tensor
    ids: Tensor | None = None
    all_ids: Tensor | None = None
    group: Tensor | None = None
    all_groups: Tensor | None = None

    def rows(self, block: slice) -> "Candidates":
        """The candidates of some rows only."""
        ids = None if self.ids is None else self.ids[block]
        group = None if self.group is None else self.group[block]
        return self._replace(targets=self.targets[block], ids=ids, group=group)

    def alike(self) -> Tensor | None:
        """Bool [b, B]: other pairs with the same image or caption."""
        if self.ids is None or self.all_ids is None:
            return None
        return same(self.ids, self.all_ids).scatter_(1, self.targets[:, None], False)

    def excluded(self) -> Tensor | None:
        """Bool [b, B]: pairs that are not negatives of a row: those alike, and those of another group."""
        alike = self.alike()
        if self.group is None or self.all_groups is None:
            return alike
        others = self.group[:, None] != self.all_groups
        return others if alike is None else others | alike

    def leave_out(self, logits: Tensor, own: bool) -> Tensor:
        """Exclude from logits [b, B], in place, the pairs that are left out and, unless `own`, each row's own pair."""
        excluded = self.excluded()
        if excluded is not None:
            logits = logits.masked_fill_(excluded, NEVER)
        return logits if own else logits.scatter_(1, self.targets[:, None], NEVER)

    def negatives(self, width: int) -> Tensor:
        """int64 [b]: how many of `width` keys are negatives of each row."""

        def block(candidates: Candidates) -> Tensor:
            excluded = candidates.excluded()
            left_out = torch.zeros_like(candidates.targets) if excluded is None else excluded.sum(1)
            return width - 1 - left_out

        return torch.cat(in_blocks(block, width, self))


def same(ids: Tensor, others: Tensor) -> Tensor:
    """Bool [b, B]: rows [b, k] and [B, k] that agree in any of the k, such as image and caption."""
    agree = ids[:, None, 0] == others[:, 0]
    for own, other in zip(ids.unbind(1)[1:], others.unbind(1)[1:], strict=True):
        agree |= own[:, None] == other
    return agree


def in_blocks(function: Callable[..., Any], width: int, candidates: Candidates, *rows: Tensor) -> list[Any]:
    """`function(candidates, *rows)` on blocks of rows, recomputed in the backward pass; on one block if b x width is small."""
    size = len(candidates.targets)
    if size * width <= PLAIN:
        return [function(candidates, *rows)]
    step = max(1, BLOCK // width)
    blocks = [slice(start, start + step) for start in range(0, size, step)]

    def recomputed(block: slice) -> Any:
        parts = [part[block] for part in rows]
        return checkpoint(function, candidates.rows(block), *parts, use_reentrant=False, preserve_rng_state=False)

    return [recomputed(block) for block in blocks]
