"""What all towers share: their mode in training, where their weights come from, and how they are rebuilt for a checkpoint.

A tower maps uint8 images, or token ids and a mask, to one row of features per sample; normalising images is part of it. Its
settings build it. Where they take a `key`, it is the tower's place in the config, such as `image_tower`, for errors.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from pipelines.io import hub
from pipelines.io.artifacts import fingerprint, resolve
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings
from training.towers.lora import LoraSettings

Mode = Literal["trainable", "frozen", "locked"]

# Incremented when towers give different features for the same weights, images and texts, which invalidates stored features.
_FEATURES_VERSION = 2


class Tower(nn.Module):
    """`width`: features per row. `about`: JSON values from which `TowerSettings.rebuild` builds the tower without its weights.

    `lr_scales`: factors of the learning rate by name of trained parameters (finetuning.py).
    """

    width: int
    about: dict[str, Any]
    lr_scales: Mapping[str, float] = MappingProxyType({})

    def describe(self, **about: Any) -> Self:
        """Record `about`, and which parameters are not trained. Builders call this last."""
        fixed = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        self.about = about | {"fixed": fixed}
        return self


class TowerSettings(Settings):
    """Settings of all towers. `how_it_trains`: the keys that do not decide its features."""

    how_it_trains: ClassVar[tuple[str, ...]] = ("mode", "lr_scale", "layer_decay", "frozen_blocks", "lora", "recompute")
    mode: Mode = Field(
        "trainable",
        description="trainable; frozen: runs, not trained; locked: features are computed once and stored, only heads train",
    )
    lr_scale: float = Field(1.0, gt=0, description="factor of optimizer.lr for this tower; heads and the temperature have none")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor of the learning rate from each block to the one before; 1 for what follows the last"
    )
    frozen_blocks: int | None = Field(
        None, ge=0, description="train neither the first N blocks nor what comes before them; 0: only the latter; null: train all"
    )
    lora: LoraSettings | None = Field(
        None, description="train a change of low rank of each weight matrix in the blocks, and nothing else; null: train all"
    )
    recompute: bool = Field(
        False,
        description="activation checkpointing: run each block again in the backward pass instead of keeping its activations",
    )

    @field_validator("lr_scale", "layer_decay", "frozen_blocks", "lora", "recompute")
    @classmethod
    def _trains(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        mode = info.data.get("mode", "trainable")
        if mode != "trainable" and value != cls.model_fields[info.field_name].default:
            raise ValueError(f"a tower that is {mode} does not train; leave it out, or pass mode=trainable for this tower")
        return value

    @abstractmethod
    def weights_name(self) -> str | None:
        """Where pretrained weights come from; None for random ones."""

    @property
    def pretrained(self) -> bool:
        """Whether it has weights to start from, which need not be there any more."""
        return getattr(self, "weights", None) is not None

    def check_source(self, key: str) -> None:
        """Raises `UserError` if the weights are neither on this machine nor available for download. Loads nothing."""
        name = self.weights_name()
        if name is not None and resolve(name, f"{key}.weights") is None:
            hub.check_repository(name, f"{key}.weights", name)

    @abstractmethod
    def again(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        """`rebuild` for this kind of tower; may raise anything."""

    def rebuild(self, about: dict[str, Any], vocabulary_size: int) -> Tower:
        """The tower that `about` describes, for a checkpoint's weights. Reads no file and asks no hub.

        Raises `UserError` if this installation cannot build it.
        """
        try:
            tower = self.again(about, vocabulary_size)
        except UserError:
            raise
        except Exception as error:  # each library raises its own errors; `about` may be from another version of it
            why = str(error).strip().splitlines() or [type(error).__name__]
            problem = f"its tower '{getattr(self, 'name', '')}' cannot be rebuilt here ({why[0][:150]})"
            raise UserError("checkpoint", problem, "install the package versions with which it was trained") from None
        fixed = set(about["fixed"])
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_(name not in fixed)
        tower.about = about
        return tower

    def sets(self, name: str) -> bool:
        """Whether a key has another value than its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    def of_features(self) -> dict[str, Any]:
        """The settings that decide its features, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.how_it_trains))

    def locked(self) -> Self:
        """The same tower, as one whose features are computed once."""
        defaults = {name: type(self).model_fields[name].default for name in self.how_it_trains}
        return self.model_copy(update=defaults | {"mode": "locked"})

    def identity(self, key: str) -> dict[str, Any]:
        """What determines a locked tower's features: the name of their folder is its digest."""
        name = self.weights_name()
        if name is None:
            encoder = key.endswith("encoder")  # always frozen
            what, other = ("a frozen encoder", "") if encoder else ("a locked tower", f", or pass {key}.mode=trainable")
            source = "weights" if "weights" in type(self).model_fields else "name to a tower that has them"
            raise UserError(key, f"{what} needs pretrained weights", f"set {key}.{source}{other}")
        path = resolve(name, f"{key}.weights")
        return self.of_features() | {"weights": fingerprint(path) if path else name, "version": _FEATURES_VERSION}


def load_weights(module: nn.Module, path: Path, key: str, spare: tuple[str, ...] = ()) -> None:
    """Load a state dict by name or, if all names differ, by position if shapes, kinds and numbers of layers agree.

    From a training checkpoint the averaged weights are taken if there are any, as timm does.

    Args:
        key: the setting that names the file, for errors.
        spare: prefixes of names that are not needed (a classifier), which the file may lack or have in another shape.

    Raises: `UserError` that names what does not fit.
    """
    from timm.models import load_state_dict

    try:
        weights = load_state_dict(str(path))
    except Exception as error:  # pickle, zip and torch each raise their own errors
        problem = f"{path} holds no weights that torch can load ({type(error).__name__})"
        raise UserError(key, problem, "give a state dict saved by torch or safetensors") from None
    if not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(key, f"{path} does not hold only tensors, so it is not a state dict", "save the model's state_dict()")
    own = module.state_dict()
    if not own.keys() & weights.keys():
        # Ports of one network often rename every layer and keep the order.
        names = list(own) if len(weights) == len(own) else [name for name in own if not name.startswith(spare)]
        shapes = [own[name].shape for name in names if not name.startswith(spare)]
        by_position = dict(zip(names, weights.values(), strict=False))
        if len(weights) != len(names) or shapes != [t.shape for name, t in by_position.items() if not name.startswith(spare)]:
            problem = f"{path.name} holds {len(weights)} tensors, with other names or shapes than the model's {len(own)}"
            raise UserError(key, problem, "give a file saved from this model")
        if path.suffix == ".safetensors" or not _in_order(names, list(weights)):
            raise UserError(
                key,
                f"{path.name} has other names for its tensors than the model, such as {next(iter(weights))}, and does not list "
                "them in the model's order, so they cannot be matched",
                "give a file with the model's names",
            )
        weights = by_position
    needed = {name: tensor for name, tensor in weights.items() if not name.startswith(spare)}
    try:
        module.load_state_dict({name: tensor for name, tensor in own.items() if name.startswith(spare)} | needed)
    except RuntimeError as error:
        problem = f"{path.name} does not fit the model: {' '.join(str(error).split())[:300]}"
        raise UserError(key, problem, "give a file saved from this model") from None


def _in_order(names: list[str], file_names: list[str]) -> bool:
    """Whether the names of a model and of a file may correspond one to one. Shapes alone can agree in a wrong order, as those of
    equal blocks do.

    Each name must end like its counterpart (weight, bias); words that both use must be in the same places; and layers that
    differ only in their number must ascend, which names sorted as text do not (block 10 before block 2).
    """
    model_words, file_words = ({word for name in some for word in name.split(".")} for some in (names, file_names))
    shared = {word for word in model_words & file_words if not re.search("[0-9]", word)}
    for name, file_name in zip(names, file_names, strict=True):
        first, second = name.split("."), file_name.split(".")
        if first[-1] != second[-1] or shared.intersection(first) != shared.intersection(second):
            return False
    last: dict[str, list[int]] = {}
    for name in file_names:
        kind, numbers = re.sub("[0-9]+", "#", name), [int(digits) for digits in re.findall("[0-9]+", name)]
        if numbers < last.get(kind, numbers):
            return False
        last[kind] = numbers
    return True


def reached(rows: Tensor, seen: set[Any] | None = None) -> set[int]:
    """The `id`s of the parameters that rows depend on. `seen`: nodes of the graph to leave out, to which all others are added."""
    parameters: set[int] = set()
    seen = set() if seen is None else seen
    todo: list[Any] = [rows.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            parameters.add(id(node.variable))
        todo += [following for following, _ in node.next_functions]
    return parameters


def freeze_unreached(network: nn.Module, rows: Callable[[], Tensor]) -> None:
    """Train only the parameters that `rows()` depends on: not a mask token or an unused pooling head.

    DDP waits for a gradient of every trained parameter, so one that never gets any would block several workers.
    """
    with torch.enable_grad():
        depends_on = reached(rows())
    for parameter in network.parameters():
        if id(parameter) not in depends_on:
            parameter.requires_grad_(False)


def batch_statistics(tower: Tower, *inputs: Tensor) -> dict[str, nn.Module]:
    """Modules by name whose result for a row depends on other rows, in their current mode: BatchNorm, and all that write buffers.

    They give other results for a part of the batch than for the whole, and two parts would update them twice.
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
    """The network with BatchNorm over the rows of all workers; needs GPUs."""
    from timm.layers import convert_sync_batchnorm

    # torch's own conversion would lose the activations that timm's BatchNorm includes.
    return convert_sync_batchnorm(encoder)


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of the hidden states of real tokens: [b, L, F] and [b, L] to [b, F]."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
