"""Random numbers of a sample in a step, made from its `draw`, a column that is a function of (seed, epoch, sample).

So what an objective draws is the same on any number of workers, in any parts, and each time `forward` runs.
"""

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood, OOPSLA 2014), in wrapping int64.
_STEP, _FIRST, _SECOND = (number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def uniforms(draw: Tensor, count: int, purpose: int) -> Tensor:
    """float32 [b, count] in [0, 1), of int64 draws [b]; other numbers for another purpose."""
    places = torch.arange(1, count + 1, device=draw.device) + (purpose << 32)
    mixed = draw[:, None] + places * _STEP
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    return _shifted(mixed ^ _shifted(mixed, 31), 40).float() / 2**24


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """To the right, as unsigned numbers."""
    return (numbers >> bits) & (2 ** (64 - bits) - 1)
