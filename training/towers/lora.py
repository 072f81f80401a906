"""LoRA: a tower's weight matrices stay as they are, and each gets a trained sum of low rank.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685, section 4.1: of a matrix W [o, i]

    W + alpha/rank B A        B [o, rank], zero at the start; A [rank, i], random

The sum is a parametrization of the weight, not a module around the layer as in the package peft. torch's attention, and the fast
path of its transformer layers in evaluation, read the weights of their layers themselves and would leave out what stands around.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, register_parametrization

from pipelines.program.settings_base import Settings

_WEIGHTS = ("weight", "in_proj_weight")
_ADAPTED = re.compile(r"\bparametrizations\.(\w+)\.(original|0\.(?:a|b|scale))$")


class LoraSettings(Settings):
    """LoRA of a tower: of every linear layer, convolution and attention in its blocks. All else of the tower is frozen."""

    rank: int = Field(8, ge=1, description="of each matrix's change; at most the smaller side of the matrix")
    alpha: float = Field(16.0, gt=0, description="the change is scaled by alpha/rank")


class LowRank(nn.Module):
    """A weight [o, ...] plus a matrix of low rank in its shape."""

    scale: Tensor

    def __init__(self, weight: Tensor, settings: LoraSettings):
        super().__init__()
        rows, columns = len(weight), weight[0].numel()
        rank = min(settings.rank, rows, columns)
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.register_buffer("scale", torch.tensor(settings.alpha / rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)  # as nn.Linear's own weights

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a).view_as(weight)


def add(blocks: list[nn.Module], settings: LoraSettings) -> int:
    """Adapt the layers of these blocks; returns their number. The output is the same until `LowRank.b` has been trained."""
    places = [place for block in blocks for place in _matrices(block)]
    for module, name in places:
        register_parametrization(module, name, LowRank(getattr(module, name), settings))
    return len(places)


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which adapted weights are plain ones with their change added, under the names that they had."""
    plain = {name: tensor for name, tensor in state.items() if not _ADAPTED.search(name)}
    for name, weight in state.items():
        if (found := _ADAPTED.search(name)) and found[2] == "original":
            a, b, scale = (state[f"{name.removesuffix('original')}0.{part}"] for part in ("a", "b", "scale"))
            plain[plain_name(name)] = weight + scale * (b @ a).view_as(weight)
    return plain


def plain_name(name: str) -> str:
    """The name that a parameter had before its layer was adapted; of `a` and `b`, that of their weight."""
    return _ADAPTED.sub(r"\1", name)


def _matrices(block: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in block.modules():
        if not isinstance(module, nn.Embedding) and not is_parametrized(module):  # ALBERT's blocks are one
            yield from ((module, n) for n, p in module.named_parameters(recurse=False) if n in _WEIGHTS and p.ndim > 1)
