"""Text towers that read longer captions than their weights did: positions are stretched.

Zhang et al., "Long-CLIP: Unlocking the Long-Text Capability of CLIP", ECCV 2024, arXiv 2403.15378, section 3.1: the first 20
positions stay, since most captions are short and have trained them well, and those after them are interpolated. The paper does so
by a whole factor, 77 positions to 248; here any length has the last of the old positions as its last (ours).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

_KEPT = 20
_NAMES = ("max_position_embeddings", "n_positions")  # in the configs of transformers


def stretched(table: Tensor, length: int) -> Tensor:
    """Positions [P, W] as [length, W]. Of tables with fewer than twice 20 positions the first half stays."""
    old = len(table)
    kept = min(_KEPT, old // 2)
    places = kept + torch.arange(length - kept, dtype=torch.float64) * (old - 1 - kept) / (length - 1 - kept)
    below = places.long().clamp(max=old - 2)
    share = (places - below).to(table)[:, None]
    return torch.cat([table[:kept], (1 - share) * table[below] + share * table[below + 1]])


def with_positions(old: nn.Module, new: nn.Module, usable: int) -> int:
    """Give a network of more positions, and otherwise the same, another's weights; returns the number of tables of positions.

    Args:
        usable: positions of `old` for tokens. Rows of a table before them, as RoBERTa has for padding, stay.
    """
    weights, own, tables = old.state_dict(), new.state_dict(), 0
    for name, there in own.items():
        found = weights[name]
        if found.shape == there.shape:
            continue
        if not there.is_floating_point():  # the numbers of the positions
            weights[name] = there
            continue
        before = len(found) - usable
        weights[name] = torch.cat([found[:before], stretched(found[before:], len(there) - before)])
        tables += 1
    new.load_state_dict({name: weights[name] for name in own})
    return tables


def longer(config: dict[str, Any], by: int) -> dict[str, Any]:
    """A config of transformers, of a text model or of a dual encoder, with more positions for texts."""
    config = copy.deepcopy(config)
    tree = config.get("text_config") or config
    tree.update({name: tree[name] + by for name in _NAMES if tree.get(name)})
    return config
