"""How far captions are padded: to the longest of those that are embedded together, if that changes no row.

A tokenizer pads every text to `max_tokens`, and most captions fill a fraction of that. The positions after the last token of
the longest caption are masked in every row, and are cut off unless the tower reads them anyway: it may mix all tokens (FNet),
read neighbours beyond the end (convolutions, MobileBERT's trigrams), pool the last position, or have a fixed length. No
config says so, so each tower is tested once when it is built.
"""

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor

from pipelines.dataset.batch import Batch
from pipelines.dataset.tokenizer import TextTokenizer
from training.towers.text import TextTower

_MULTIPLE = 8  # lengths are multiples of this: few shapes, and efficient ones for GPU kernels
_CLOSE = 1e-5  # relative to the largest number: rounding differences of sums over another length, with some margin
_PROBES = ("a", "a red apple on the table")
# Columns of a batch that a mask covers.
_COVERED = {
    "text_mask": ("text", "text_mask", "masked_text", "masked_labels"),
    "other_mask": ("other_text", "other_mask"),
    "guide_mask": ("guide_text", "guide_mask"),
}


class Padded:
    """Texts to ids and mask, int64 [n, L] each on the CPU, padded as far as a tower needs."""

    def __init__(self, tower: TextTower, tokenizer: TextTokenizer):
        self._tokenizer, self._cut = tokenizer, may_cut(tower, tokenizer)

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids, mask = map(torch.from_numpy, self._tokenizer(texts))
        length = _length(mask) if self._cut else mask.shape[1]
        return ids[:, :length], mask[:, :length]


def shortened(batch: Batch, masks: Collection[str]) -> Batch:
    """A batch with captions padded to the longest of them, in the columns that `masks` cover."""
    columns: dict[str, Tensor] = cast(Any, batch)
    for mask in masks:
        if mask in columns:
            length = _length(columns[mask])
            columns = columns | {name: columns[name][:, :length] for name in _COVERED[mask] if name in columns}
    return cast(Batch, columns)


@torch.no_grad()
def may_cut(tower: TextTower, tokenizer: TextTokenizer) -> bool:
    """Whether texts have the same rows, and tokens the same states, without padding."""
    device, training = next(tower.parameters()).device, tower.training
    tower.eval()
    try:
        return all(_same(tower, *(torch.from_numpy(part).to(device) for part in tokenizer([text]))) for text in _PROBES)
    except (IndexError, RuntimeError, ValueError):  # it has a fixed length
        return False
    finally:
        tower.train(training)


def _same(tower: TextTower, ids: Tensor, mask: Tensor) -> bool:
    """Whether one text [1, L] gives the same without padding and with the padding that would be left."""
    used = max(1, int(mask.sum()))
    wanted = _rows(tower, ids, mask, used)
    return all(_close(_rows(tower, ids[:, :length], mask[:, :length], used), wanted) for length in (used, _length(mask)))


def _rows(tower: TextTower, ids: Tensor, mask: Tensor, used: int) -> Tensor:
    """A text's row, and its first `used` states if the tower has any."""
    if not tower.states_width:
        return tower(ids, mask).flatten()
    rows, states = tower.with_states(ids, mask)
    return torch.cat([rows.flatten(), states[:, :used].flatten()])


def _close(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() <= _CLOSE * two.abs().max())


def _length(mask: Tensor) -> int:
    """Positions [n, L] up to the last that any row reads, rounded up."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = max(1, int((mask.any(0) * places).max()))
    return min(-(-last // _MULTIPLE) * _MULTIPLE, mask.shape[1])
