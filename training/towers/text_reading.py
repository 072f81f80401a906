"""How a text model of transformers reads its input: positions, padding, direction. Found by running it, since configs do not say.

A model is a function from ids and a mask, int64 [n, L] each, to rows [n, F].
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
    """The text model inside a dual encoder of transformers; any other network unchanged."""
    return getattr(network, "text_model", network)


def positions(half: Any) -> int | None:
    """How many positions a text model has for tokens; None if unknown.

    RoBERTa and similar models start counting after the padding token's position.
    """
    for name, module in half.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.weight.shape[0] - module.padding_idx - 1
    limit = getattr(half.config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


def any_tokens(vocabulary_size: int, length: int) -> Tensor:
    """Ids of a meaningless text, [1, length]."""
    ids = torch.arange(2, max(3, min(vocabulary_size, 17)))
    return ids[torch.arange(length) % len(ids)][None]


def reads_padding(rows: Rows, short: int, long: int) -> bool:
    """Whether a text's row depends on the length of its masked padding, as with SigLIP, which pools the last position."""

    def padded(length: int) -> Tensor:
        ids, mask = torch.ones(2, 1, length, dtype=torch.int64)
        ids[0, :2], mask[0, 2:] = torch.tensor([3, 4]), 0
        return rows(ids, mask)

    return not _close(padded(short), padded(long))


def first_sees_the_rest(first: Rows, ids: Tensor) -> bool:
    """Whether the first token's state [1, F] depends on later tokens. That of a causal model does not."""
    other, mask = torch.cat([ids[:, :1], ids[:, 1:] + 1], dim=1), torch.ones_like(ids)
    return not _close(first(ids, mask), first(other, mask))


def tells_apart(embed: Callable[[list[str]], Any], key: str, name: str) -> None:
    """Raises `UserError` if a model gives no rows, or the same row for all texts, as a CLIP whose tokenizer adds no end of text.

    Args:
        key, name: the setting and the model, for errors.
    """
    try:
        rows = np.asarray(embed(["one", "two or three words"]))
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(key, f"{name} does not embed texts ({first_line(error)})", "choose another model") from None
    if rows.ndim != 2:
        problem = f"{name} gives {list(rows.shape[1:])} numbers for a text, not one row"
        raise UserError(key, problem, "choose another model")
    if np.abs(rows[0] - rows[1]).max() <= 1e-6 * np.abs(rows).max():
        raise UserError(
            key,
            f"{name} gives different texts the same row: its tokenizer may add no end of text, which the model reads, or its "
            "last layers may be untrained",
            "choose another model",
        )


def _close(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).abs().max() <= 1e-4 * first.abs().max())
