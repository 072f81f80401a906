"""Rows of embeddings in float32 at least, whatever precision the encoder runs in."""

import torch
import torch.nn.functional as F
from torch import Tensor


def exact(rows: Tensor) -> Tensor:
    """float32 where it was less; rounding cosines to bfloat16 changes exponentials by a tenth."""
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def unit(rows: Tensor) -> Tensor:
    """L2-normalised along the last axis."""
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(exact(rows), dim=-1, eps=1e-12)
