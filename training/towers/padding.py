"""How far captions are padded: to the longest of those that are embedded together, if that changes no row.

A tokenizer pads every text to `max_tokens`, and most captions fill a fraction of that. The positions after the last token of
the longest caption are masked in every row. They are cut off, unless the tower reads them anyway: it may mix all tokens (FNet),
read neighbours beyond the end (convolutions, MobileBERT's trigrams), pool the last position, or have a fixed length. No
config says so; each tower is tested once, when it is built.
"""

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor

from pipelines.dataset.batch import Batch
from pipelines.dataset.tokenizer import TextTokenizer
from training.towers.text import TextTower

_MULTIPLE = 8  # lengths are multiples of this: few shapes, and efficient ones for GPU kernels
_CLOSE = 1e-5  # relative to the largest number; sums over another length differ by rounding
_PROBES = ("a", "a red apple on the table")
# By mask, the columns of a batch that have its length.
_COVERED = {
    "text_mask": ("text", "text_mask", "masked_text", "masked_labels"),
    "other_mask": ("other_text", "other_mask"),
    "more_mask": ("more_text", "more_mask"),
    "label_mask": ("label_text", "label_mask"),
    "frozen_mask": ("frozen_text", "frozen_mask"),
}


class Padded:
    """Tokenizes texts for a tower: ids and mask, int64 [n, L] each on the CPU, padded as far as the tower needs."""

    def __init__(self, tower: TextTower, tokenizer: TextTokenizer):
        self._tokenizer, self._cut = tokenizer, may_cut(tower, tokenizer)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = map(torch.from_numpy, self._tokenizer(texts))
        length = _length(mask) if self._cut else mask.shape[1]
        return ids[:, :length], mask[:, :length]


def shortened(batch: Batch, masks: Collection[str]) -> Batch:
    """A batch in which the columns of `masks` are padded to the longest caption only."""
    columns: dict[str, Tensor] = cast(Any, batch)
    for mask in masks:
        if mask in columns:
            length = _length(columns[mask])
            columns = columns | {name: columns[name][..., :length] for name in _COVERED[mask] if name in columns}
    return cast(Batch, columns)


@torch.no_grad()
def may_cut(tower: TextTower, tokenizer: TextTokenizer) -> bool:
    """Whether texts have the same rows, and tokens the same states, without padding."""
    device, training = next(tower.parameters()).device, tower.training
    tower.eval()
    try:
        return all(_same(tower, *(torch.from_numpy(part).to(device) for part in tokenizer([text]))) for text in _PROBES)
    except (IndexError, RuntimeError, ValueError):  # of a tower with a fixed length
        return False
    finally:
        tower.train(training)


def _same(tower: TextTower, ids: Tensor, mask: Tensor) -> bool:
    """Whether one text [1, L] gives the same with full padding, with none, and with the padding that would be left."""
    used = max(1, int(mask.sum()))
    full = _rows(tower, ids, mask, used)
    return all(_close(_rows(tower, ids[:, :length], mask[:, :length], used), full) for length in (used, _length(mask)))


def _rows(tower: TextTower, ids: Tensor, mask: Tensor, used: int) -> Tensor:
    """A text's row, and its first `used` states if the tower has any."""
    if not tower.states_width:
        return tower(ids, mask).flatten()
    rows, states = tower.with_states(ids, mask)
    return torch.cat([rows.flatten(), states[:, :used].flatten()])


def _close(rows: Tensor, full: Tensor) -> bool:
    return bool((rows - full).abs().max() <= _CLOSE * full.abs().max())


def _length(mask: Tensor) -> int:
    """Positions up to the last that any row of a mask [n, L] or [n, K, L] uses, rounded up."""
    positions = torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    last = max(1, int((mask.flatten(0, -2).any(0) * positions).max()))
    return min(-(-last // _MULTIPLE) * _MULTIPLE, mask.shape[-1])
