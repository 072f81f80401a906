"""What all towers share: how they take part in training, and where weights come from.

A tower maps uint8 pictures, or token ids and a mask, to one feature row a sample; normalising pictures belongs to it.
"""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.artifacts import fingerprint, resolve
from pipelines.settings import Settings, UserError

Mode = Literal["trainable", "frozen", "locked"]


class Tower(nn.Module):
    """`width`: features a row."""

    width: int


class TowerSettings(Settings):
    """Settings of all towers."""

    mode: Mode = Field(
        "trainable",
        description="trainable; frozen: run, not trained; locked: features are computed once and cached, only heads train",
    )

    @abstractmethod
    def weights_name(self) -> str | None:
        """Where pretrained weights come from, None for random ones."""

    def identity(self, key: str) -> dict[str, Any]:
        """What decides a locked tower's features, for the name of its bank."""
        name = self.weights_name()
        if name is None:
            encoder = key.endswith("encoder")  # frozen by its nature
            what, other = ("a frozen encoder", "") if encoder else ("a locked tower", f", or {key}.mode=trainable")
            raise UserError(f"{key}: {what} needs pretrained weights; set {key}.weights{other}")
        path = resolve(name, f"{key}.weights")
        settings = self.model_dump(mode="json", exclude={"mode"})
        return settings | {"weights": fingerprint(path) if path else name}


class Pixels(nn.Module):
    """uint8 [b, 3, H, W] to normalised float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


def load_weights(module: nn.Module, path: Path, key: str) -> None:
    """Load a state dict by name, or, where all names differ, by position if every shape agrees.

    Raises `UserError` that names what does not fit.
    """
    found: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have errors of their own
        raise UserError(f"{key}: {path} holds no weights that torch can load ({type(error).__name__})") from None
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(f"{key}: {path} holds {type(found).__name__}, not a state dict of tensors")
    own = module.state_dict()
    if not own.keys() & found.keys():
        # Ports of one network often rename every layer and keep their order.
        shapes = [tuple(t.shape) for t in own.values()] == [tuple(t.shape) for t in found.values()]
        if len(own) != len(found) or not shapes:
            raise UserError(f"{key}: {path.name} holds {len(found)} tensors of other names or shapes than the model's {len(own)}")
        found = dict(zip(own, found.values(), strict=True))
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        raise UserError(f"{key}: {path.name} does not fit the model: {' '.join(str(error).split())[:300]}") from None


def freeze_all_but(network: nn.Module, *parts: str) -> None:
    """Where only these parts of a network run: a parameter that never gets a gradient would stop several workers."""
    for name, parameter in network.named_parameters():
        if not name.startswith(parts):
            parameter.requires_grad_(False)


def batch_statistics(tower: Tower, *inputs: Tensor) -> dict[str, nn.Module]:
    """Modules by name, in their present modes, that see more than one row: BatchNorm, and all that write in a forward.

    On a part of the batch they do something else than on the whole, and two parts are written to them twice.
    """
    before = {name: buffer.clone() for name, buffer in tower.named_buffers()}
    with torch.no_grad():
        tower(*inputs)
    written = {name.rpartition(".")[0] for name, buffer in tower.named_buffers() if not torch.equal(buffer, before[name])}
    return {
        name: module
        for name, module in tower.named_modules()
        if name in written or (isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training)
    }


def synchronised(encoder: nn.Module) -> nn.Module:
    """With BatchNorm over the rows of all workers, on GPUs."""
    from timm.layers import convert_sync_batchnorm

    # torch's own would lose the activations that timm's BatchNorm brings along.
    return convert_sync_batchnorm(encoder)


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states of real tokens: [b, L, F] and [b, L] to [b, F]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
