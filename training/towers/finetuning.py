"""How a tower trains: which of its parameters, and at what share of the learning rate."""

from torch import Tensor

from pipelines.program.errors import UserError
from training.towers.base import Tower, TowerSettings
from training.towers.depth import Depth, depth_of


def prepare(tower: Tower, settings: TowerSettings, inputs: tuple[Tensor, ...], key: str) -> None:
    """Freeze what does not train, and record the learning rates of the rest.

    Args:
        inputs: what the tower takes, of one sample.
        key: the tower's place in the config, for errors.
    """
    if settings.mode == "frozen":
        tower.requires_grad_(False)
    if settings.layer_decay == 1 and settings.frozen_blocks is None:
        trained = [name for name, p in tower.named_parameters() if p.requires_grad]
        tower.lr_scales = dict.fromkeys(trained, settings.lr_scale)
        return
    depth = depth_of(tower, inputs)
    if not depth.blocks:
        named = "layer_decay" if settings.frozen_blocks is None else "frozen_blocks"
        problem = f"{getattr(settings, 'name', 'this tower')} has no blocks that follow one another"
        raise UserError(f"{key}.{named}", problem, f"leave it out, or pass {key}.lr_scale")
    _freeze(tower, settings, depth, key)
    deepest = len(depth.blocks) + 1
    tower.lr_scales = {
        name: settings.lr_scale * settings.layer_decay ** (deepest - depth.of[name])
        for name, p in tower.named_parameters()
        if p.requires_grad
    }


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
