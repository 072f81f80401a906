"""How a transformers text model reads its input, found by running it, since configs do not say.

Rows [n, F] come from ids and a mask, int64 [n, L] each.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.program.errors import UserError
from training.towers.pretrained import first_line

Rows = Callable[[Tensor, Tensor], Tensor]


def text_half(network: Any) -> Any:
    """The text model inside a dual encoder of transformers, or the network as it is."""
    return getattr(network, "text_model", network)


def positions(half: Any) -> int | None:
    """How many positions a text model has; None: unknown.

    RoBERTa and similar models count positions from after the padding token's.
    """
    for name, module in half.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.weight.shape[0] - module.padding_idx - 1
    limit = getattr(half.config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


def words_of(known: int, length: int) -> Tensor:
    """Ids of a meaningless text, [1, length], for a model with this vocabulary size."""
    words = torch.arange(2, max(3, min(known, 17)))
    return words[torch.arange(length) % len(words)][None]


def reads_padding(rows: Rows, short: int, long: int) -> bool:
    """Whether a text's row changes with the length of its masked padding: SigLIP, for one, pools the last position."""

    def padded(length: int) -> Tensor:
        ids, mask = torch.ones(2, 1, length, dtype=torch.int64)
        ids[0, :2], mask[0, 2:] = torch.tensor([3, 4]), 0
        return rows(ids, mask)

    return not _close(padded(short), padded(long))


def first_sees_the_rest(first: Rows, ids: Tensor) -> bool:
    """Whether the first token's state [1, F] depends on what follows, which a causal model's does not."""
    other, mask = torch.cat([ids[:, :1], ids[:, 1:] + 1], dim=1), torch.ones_like(ids)
    return not _close(first(ids, mask), first(other, mask))


def tells_apart(embed: Callable[[list[str]], Any], key: str, name: str) -> None:
    """Raises `UserError` if texts have no rows or all the same, as with a CLIP whose tokenizer adds no end of text."""
    try:
        rows = np.asarray(embed(["one", "two or three words"]))
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"{key}: {name} does not embed texts ({first_line(error)}); give another model") from None
    if rows.ndim != 2:
        raise UserError(f"{key}: {name} does not give one row a text but {list(rows.shape[1:])} numbers; give another model")
    if np.abs(rows[0] - rows[1]).max() <= 1e-6 * np.abs(rows).max():
        raise UserError(
            f"{key}: {name} gives different texts one row: its tokenizer may lack the end of text that it reads, or its last "
            "layers may be untrained; give another model"
        )


def _close(one: Tensor, two: Tensor) -> bool:
    return bool((one - two).abs().max() <= 1e-4 * one.abs().max())
