"""Embedding rows in at least float32, whatever the precision of the encoder."""

import torch
import torch.nn.functional as F
from torch import Tensor


def exact(rows: Tensor) -> Tensor:
    """Lower precision to float32: rounding cosines to bfloat16 would change exponentials by a tenth."""
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def unit(rows: Tensor) -> Tensor:
    """L2-normalised along the last axis."""
    with torch.autocast(rows.device.type, enabled=False):
        return F.normalize(exact(rows), dim=-1, eps=1e-12)
