"""How deep each parameter of a tower lies, found by running it: for learning rates, freezing and recomputation by depth.

Blocks are the elements of a network's outermost lists of modules: the blocks of a transformer, the residual blocks of a ResNet,
the stages of a hierarchical network such as ConvNeXt or Swin. Networks name and order them in many ways, so what belongs to which
block is read from the graph of one forward pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.towers.base import Tower, reached


@dataclass(frozen=True)
class Depth:
    """Blocks in the order in which they run, and the depth of each parameter by name.

    Depth 0 comes before the first block (patches, tokens, positions); k is the k-th block, or between it and the one before; what
    comes after the last block, such as a norm, a pooler or a projection, is one deeper than that.
    """

    blocks: list[nn.Module]
    of: dict[str, int]


def depth_of(tower: Tower, inputs: tuple[Tensor, ...]) -> Depth:
    """The depth of a tower's parameters. `inputs`: what the tower takes, of one sample."""
    ran: list[tuple[nn.Module, Tensor | None]] = []

    def remember(block: nn.Module, _: Any, result: Any) -> None:
        if all(block is not before for before, _ in ran):  # ALBERT runs one block again and again
            ran.append((block, _first(result)))

    hooks = [block.register_forward_hook(remember) for block in _candidates(tower)]
    training = tower.training
    try:
        with torch.enable_grad():
            tower.eval()(*inputs)
    finally:
        tower.train(training)
        for hook in hooks:
            hook.remove()
    depths: dict[int, int] = {}
    for number, (block, _) in enumerate(ran, 1):
        for parameter in block.parameters():
            depths.setdefault(id(parameter), number)
    seen: set[Any] = set()
    for number, (_, rows) in enumerate(ran, 1):
        for parameter_id in set() if rows is None else reached(rows, seen):
            depths.setdefault(parameter_id, number if number > 1 else 0)
    after = len(ran) + 1
    return Depth([block for block, _ in ran], {name: depths.get(id(p), after) for name, p in tower.named_parameters()})


def _candidates(module: nn.Module) -> Iterator[nn.Module]:
    """Elements of the outermost lists that consist of modules and have parameters. Lists of lists are one list."""
    in_list = isinstance(module, nn.ModuleList | nn.Sequential)
    for child in module.children():
        if in_list and type(child) not in (nn.ModuleList, nn.Sequential):
            if next(child.children(), None) is not None and next(child.parameters(), None) is not None:
                yield child
        else:
            yield from _candidates(child)


def _first(result: Any) -> Tensor | None:
    """The first tensor of what a block returns."""
    if isinstance(result, Tensor):
        return result
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
    return next((tensor for tensor in map(_first, parts) if tensor is not None), None)
