"""Pure functions of queries, keys and targets: no state, no ranks, always float32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(queries: Tensor, keys: Tensor, targets: Tensor, scale: Tensor, excluded: Tensor | None = None) -> Tensor:
    """Mean over rows of -log softmax_j(scale <q_i, k_j>) at j = targets[i] (van den Oord et al., arXiv 1807.03748).

    Args:
        queries: [b, D] unit rows; keys: [B, D] unit rows; targets: int64 [b]; scale: scalar.
        excluded: bool [b, B], candidates that are no negatives; never true at a target.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = scale.float() * (queries.float() @ keys.float().T)
        if excluded is not None:
            logits = logits.masked_fill(excluded, float("-inf"))
        return F.cross_entropy(logits, targets)


def same_pair(image_id: Tensor, text_id: Tensor, all_image_id: Tensor, all_text_id: Tensor, targets: Tensor) -> Tensor:
    """Bool [b, B]: candidates other than the own pair that share its picture or its caption: false negatives."""
    same = (image_id[:, None] == all_image_id) | (text_id[:, None] == all_text_id)
    same[torch.arange(len(targets), device=targets.device), targets] = False
    return same
