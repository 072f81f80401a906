"""Networks that an objective puts on top of the towers, and discards after training.

They see the rows of a whole step, whatever `accumulate` is, and normalise over those of all workers, so they are exact for any
number of either. torch's own SyncBatchNorm needs GPUs.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from training.distributed import all_rows, stacked
from training.precision import exact


class BatchNorm(nn.Module):
    """BatchNorm over the rows [b, F] of all workers (Ioffe and Szegedy, arXiv 1502.03167), at least in float32.

    It keeps no running statistics, since it is not used at inference.
    """

    def __init__(self, width: int, affine: bool = True, eps: float = 1e-5):
        super().__init__()
        self._eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None

    def forward(self, rows: Tensor) -> Tensor:
        rows = exact(rows)
        count = all_rows(len(rows))
        centred = rows - stacked(rows.sum(0)).sum(0) / count
        variance = stacked(centred.square().sum(0)).sum(0) / count
        rows = centred * torch.rsqrt(variance + self._eps)
        return rows if self.weight is None or self.bias is None else torch.addcmul(self.bias, rows, self.weight)


def mlp(*widths: int, last_bias: bool = True) -> nn.Sequential:
    """Linear maps, with BatchNorm and ReLU between them. `last_bias`: false if BatchNorm follows, which cancels it."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), BatchNorm(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=last_bias))
