"""Masked language modelling: predict the masked words from the text tower's states (Devlin et al., arXiv 1810.04805).

`pipelines.dataset.tokenizer` masks them. DeCLIP and MCD add it to a contrastive loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.distributed import mean_over_workers
from training.precision import exact


def masked_loss(head: nn.Module, states: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the masked words of all workers; 0, with a gradient of 0, if none are masked.

    Args:
        head: states to logits over the vocabulary.
        states: float [b, L, F].
        labels: int64 [b, L], the masked token, -100 elsewhere.
    """
    hidden = labels >= 0
    logits = head(exact(states)[hidden])
    # Added with weight 0, so that every worker has a gradient for the head and the tower.
    nothing = 0.0 * (head(exact(states)[:1, 0]).sum() + states.sum())
    losses = F.cross_entropy(logits, labels[hidden], reduction="sum") if bool(hidden.any()) else logits.sum()
    return nothing + mean_over_workers(losses[None], torch.as_tensor([float(hidden.sum())], device=states.device))
