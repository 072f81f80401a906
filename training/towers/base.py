"""What all towers share: their mode in training, and where weights come from.

A tower maps uint8 images, or token ids and a mask, to one feature row per sample; normalising images is part of it.
"""

import re
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from pipelines.io import hub
from pipelines.io.artifacts import fingerprint, resolve
from pipelines.program.errors import UserError
from pipelines.program.settings import Settings

Mode = Literal["trainable", "frozen", "locked"]

# Incremented when towers give different features for the same weights, images and texts, which invalidates stored features.
_FEATURES_VERSION = 2


class Tower(nn.Module):
    """`width`: features per row. `about`: JSON values from which `TowerSettings.rebuild` builds the same tower without
    weights."""

    width: int
    about: dict[str, Any]

    def describe(self, **about: Any) -> Self:
        """Record this, and which parameters are not trained; called last by the code that builds the tower."""
        fixed = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        self.about = about | {"fixed": fixed}
        return self


class TowerSettings(Settings):
    """Settings of all towers."""

    mode: Mode = Field(
        "trainable",
        description="trainable; frozen: runs, not trained; locked: features are computed once and stored, only heads train",
    )

    @abstractmethod
    def weights_name(self) -> str | None:
        """The source of pretrained weights, None for random ones."""

    def check_source(self, key: str) -> None:
        """Raises `UserError` if the weights are neither on this machine nor available for download."""
        name = self.weights_name()
        if name is not None and resolve(name, f"{key}.weights") is None:
            hub.check_repository(name, f"{key}.weights", name)

    @abstractmethod
    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        """The implementation of `rebuild` for each kind."""

    def rebuild(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        """The tower that `about` describes, for a checkpoint's weights: reads no file and asks no hub.

        Raises `UserError` if this installation cannot build it.
        """
        try:
            tower = self.again(about, vocabulary_size)
        except UserError:
            raise
        except (
            Exception
        ) as error:  # each library raises its own errors, and a checkpoint of another version may cause any of them
            why = str(error).strip().splitlines() or [type(error).__name__]
            kind = getattr(self, "name", "tower")
            raise UserError(f"checkpoint: its tower of kind {kind} cannot be built again here ({why[0][:150]})") from None
        fixed = set(about["fixed"])
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_(name not in fixed)
        tower.about = about
        return tower

    def identity(self, key: str) -> dict[str, Any]:
        """What decides a locked tower's features, for the name of their folder."""
        name = self.weights_name()
        if name is None:
            encoder = key.endswith("encoder")  # always frozen
            what, other = ("a frozen encoder", "") if encoder else ("a locked tower", f", or {key}.mode=trainable")
            raise UserError(f"{key}: {what} needs pretrained weights; set {key}.weights{other}")
        path = resolve(name, f"{key}.weights")
        settings = self.model_dump(mode="json", exclude={"mode"})
        return settings | {"weights": fingerprint(path) if path else name, "version": _FEATURES_VERSION}


def load_weights(module: nn.Module, path: Path, key: str, spare: tuple[str, ...] = ()) -> None:
    """Load a state dict by name or, if all names differ, by position if shapes, kinds and numbers agree.

    `spare`: prefixes of names that are not needed (a classifier), which the file may lack or have differently. From a training
    checkpoint the averaged weights are taken if there are any, as timm does.

    Raises `UserError` that names what does not fit.
    """
    from timm.models import load_state_dict

    try:
        found = load_state_dict(str(path))
    except Exception as error:  # pickle, zip and torch each raise their own errors
        raise UserError(f"{key}: {path} holds no weights that torch can load ({type(error).__name__})") from None
    if not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UserError(f"{key}: {path} holds other things than tensors, so it is no state dict")
    own = module.state_dict()
    if not own.keys() & found.keys():
        # Ports of one network often rename every layer and keep their order.
        names = list(own) if len(found) == len(own) else [name for name in own if not name.startswith(spare)]
        shapes = [own[name].shape for name in names if not name.startswith(spare)]
        placed = dict(zip(names, found.values(), strict=False))
        if len(found) != len(names) or shapes != [t.shape for name, t in placed.items() if not name.startswith(spare)]:
            raise UserError(f"{key}: {path.name} holds {len(found)} tensors of other names or shapes than the model's {len(own)}")
        if path.suffix == ".safetensors" or not _in_order(names, list(found)):
            raise UserError(
                f"{key}: {path.name} names its tensors otherwise than the model, such as {next(iter(found))}, and does not "
                "list them in the model's order, so that nothing tells which is which; give a file with the model's names"
            )
        found = placed
    needed = {name: tensor for name, tensor in found.items() if not name.startswith(spare)}
    try:
        module.load_state_dict({name: tensor for name, tensor in own.items() if name.startswith(spare)} | needed)
    except RuntimeError as error:
        raise UserError(f"{key}: {path.name} does not fit the model: {' '.join(str(error).split())[:300]}") from None


def _in_order(own: list[str], theirs: list[str]) -> bool:
    """Whether the names of two networks may correspond one by one: shapes can agree in a wrong order, as with equal blocks.

    Each must end like its counterpart (weight, bias); words that both networks use must be in the same places; and layers that
    differ only in their number must ascend, which sorted names do not (block 10 before block 2).
    """
    ours_and_theirs = {word for name in own for word in name.split(".")} & {word for name in theirs for word in name.split(".")}
    shared = {word for word in ours_and_theirs if not re.search("[0-9]", word)}
    for one, other in zip(own, theirs, strict=True):
        first, second = one.split("."), other.split(".")
        if first[-1] != second[-1] or shared.intersection(first) != shared.intersection(second):
            return False
    last: dict[str, list[int]] = {}
    for name in theirs:
        kind, numbers = re.sub("[0-9]+", "#", name), [int(digits) for digits in re.findall("[0-9]+", name)]
        if numbers < last.get(kind, numbers):
            return False
        last[kind] = numbers
    return True


def reached(rows: Tensor) -> set[int]:
    """Identities (`id`) of the parameters that rows depend on."""
    found: set[int] = set()
    seen: set[Any] = {None}
    todo: list[Any] = [rows.grad_fn]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [following for following, _ in node.next_functions]
    return found


def freeze_unreached(network: nn.Module, rows: Callable[[], Tensor]) -> None:
    """Train only the part of a network that runs, for example without a mask token or a pooling head.

    Parameters that never get a gradient learn nothing, and would block several workers.
    """
    with torch.enable_grad():
        depends_on = reached(rows())
    for parameter in network.parameters():
        if id(parameter) not in depends_on:
            parameter.requires_grad_(False)


def batch_statistics(tower: Tower, *inputs: Tensor) -> dict[str, nn.Module]:
    """Modules by name, in their current modes, that see more than one row: BatchNorm, and all that write in a forward pass.

    On a part of the batch they give different results than on the whole, and two parts would update them twice.
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


def synchronised(encoder: Any) -> Any:
    """The network with BatchNorm over the rows of all workers, on GPUs."""
    from timm.layers import convert_sync_batchnorm

    # torch's own conversion would lose the activations that timm's BatchNorm includes.
    return convert_sync_batchnorm(encoder)


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states of real tokens: [b, L, F] and [b, L] to [b, F]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
