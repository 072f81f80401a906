"""How a tower trains: which of its parameters or what beside them, at what rate, and what it keeps for the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipelines.program.errors import UserError
from training.towers import lora
from training.towers.base import Tower, TowerSettings
from training.towers.depth import Depth, depth_of


def prepare(tower: Tower, settings: TowerSettings, inputs: tuple[Tensor, ...], key: str) -> None:
    """Freeze what does not train, record the learning rates of the rest, and let blocks be recomputed.

    Args:
        inputs: what the tower takes, of one sample.
        key: the tower's place in the config, for errors.
    """
    if settings.mode == "frozen":
        tower.requires_grad_(False)
    by_depth = [name for name in ("layer_decay", "frozen_blocks", "lora", "recompute") if settings.sets(name)]
    if not by_depth:
        trained = [name for name, p in tower.named_parameters() if p.requires_grad]
        tower.lr_scales = dict.fromkeys(trained, settings.lr_scale)
        return
    depth = depth_of(tower, inputs)
    if not depth.blocks:
        problem = f"{getattr(settings, 'name', 'this tower')} has no blocks that follow one another"
        raise UserError(f"{key}.{by_depth[0]}", problem, f"leave out {key}.{f' and {key}.'.join(by_depth)}")
    _freeze(tower, settings, depth, key)
    if settings.lora is not None:
        tower.requires_grad_(False)
        if not lora.add(depth.blocks[settings.frozen_blocks or 0 :], settings.lora):
            problem = f"{getattr(settings, 'name', 'this tower')} has no linear layer, convolution or attention in its blocks"
            raise UserError(f"{key}.lora", problem, f"leave it out, or pass {key}.mode=frozen")
    deepest = len(depth.blocks) + 1
    tower.lr_scales = {
        name: settings.lr_scale * settings.layer_decay ** (deepest - depth.of[lora.plain_name(name)])
        for name, p in tower.named_parameters()
        if p.requires_grad
    }
    if settings.recompute:
        for block in depth.blocks:
            recomputed(block)


def recomputed(block: nn.Module) -> None:
    """Keep only a block's inputs for the backward pass, which runs the block again under the same random numbers."""
    block.forward = partial(_run, block.forward)  # names of parameters stay, as those of a wrapper would not


def _run(forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **named)
    return checkpoint(forward, *arguments, use_reentrant=False, **named)


def _freeze(tower: Tower, settings: TowerSettings, depth: Depth, key: str) -> None:
    """Freeze the first blocks. Raises `UserError` if there are fewer, or if nothing is left to train."""
    first = settings.frozen_blocks
    if first is None:
        return
    if first > len(depth.blocks):
        problem = f"{first}, but the tower has {len(depth.blocks)} blocks"
        raise UserError(f"{key}.frozen_blocks", problem, f"pass less, or {key}.mode=frozen to train none")
    for name, parameter in tower.named_parameters():
        if depth.of[name] <= first:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in tower.parameters()):
        problem = f"{first} are all blocks of the tower, and nothing comes after them"
        raise UserError(f"{key}.frozen_blocks", problem, f"pass less, or {key}.mode=frozen to train none")
