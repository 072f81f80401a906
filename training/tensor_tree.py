"""Trees of tensors and plain values as two files, without pickle: tensors in safetensors, everything else in JSON.

    NAME.safetensors   each tensor once, by its path in the tree (`optimizer.state.0.exp_avg`)
    NAME.json          the tree; a tensor is the name of one in the other file

Loading gives bit for bit what was saved: types (tuples, integer keys, dtypes), numbers that are not finite, and the order of a
tensor in memory. What JSON has no form for is an object with the key "$".
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.program.errors import UserError

_TAG = "$"  # what follows it: the kind of value
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def files_of(name: str) -> tuple[str, str]:
    """The names of both files."""
    return f"{name}.safetensors", f"{name}.json"


def save_tree(tree: Any, folder: Path, name: str) -> None:
    """Write both files. Raises `UserError` for a value that is neither a tensor nor plain."""
    write_encoded(*encode(tree), folder, name)


def write_encoded(tensors: dict[str, Tensor], text: str, folder: Path, name: str) -> None:
    """Write both files, of what `encode` returned."""
    from safetensors.torch import save_file

    weights, rest = files_of(name)
    save_file(tensors, folder / weights)
    (folder / rest).write_text(text, encoding="utf-8")


def load_tree(folder: Path, name: str) -> Any:
    """What `save_tree` wrote, on the CPU. Raises `OSError`, or `ValueError` for other content."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights, rest = files_of(name)
    try:
        # Copies: the tensors are the file, mapped into memory, and an optimizer would keep them, also once it is deleted.
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / weights).items()}
        return decode(tensors, (folder / rest).read_text(encoding="utf-8"))
    except SafetensorError as error:
        raise ValueError(f"{weights}: {error}") from None


def encode(tree: Any, copy: bool = False) -> tuple[dict[str, Tensor], str]:
    """The contents of both files. Raises `UserError` for a value that is neither a tensor nor plain.

    `copy`: whether tensors on the CPU are copied as well, so that what is returned stays as it is when the tree's change.
    """
    found = _Found(copy)
    text = json.dumps(_encode(tree, "", found), allow_nan=False)
    return found.tensors, text


def decode(tensors: dict[str, Tensor], text: str) -> Any:
    """What was encoded. Raises `ValueError` for another text."""
    try:
        return _decode(json.loads(text), tensors)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not a tree of these tensors ({type(error).__name__})") from None


@dataclass
class _Found:
    """The tensors of a tree so far, also by their place in memory, so that tied weights are saved once."""

    copy: bool = False
    tensors: dict[str, Tensor] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict)


def _encode(value: Any, path: str, found: _Found) -> Any:
    """A value as JSON."""

    def inside(key: Any, item: Any) -> Any:
        return _encode(item, f"{path}.{key}" if path else str(key), found)

    # Subclasses, such as numpy's float or torch.Size, would come back as another type.
    kind = type(value)
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return _tensor(value, path, found)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {_TAG: "float", "value": str(value)}
    if kind is torch.dtype:
        return {_TAG: "dtype", "value": str(value).removeprefix("torch.")}
    if kind is list:
        return [inside(number, item) for number, item in enumerate(value)]
    if kind is tuple:
        return {_TAG: "tuple", "items": [inside(number, item) for number, item in enumerate(value)]}
    if isinstance(value, dict):  # a module's is ordered
        pairs = [(key, inside(key, item)) for key, item in value.items()]
        if all(type(key) is str and key != _TAG for key in value):
            return dict(pairs)
        return {_TAG: "dict", "items": [[_encode(key, f"{path}, a key", _Found()), item] for key, item in pairs]}
    remedy = "keep tensors, numbers, strings, lists and dicts in the state_dict"
    raise UserError("checkpoint", f"the state's {path} is a {kind.__name__}, which a checkpoint cannot hold", remedy)


def _tensor(value: Tensor, path: str, found: _Found) -> dict[str, Any]:
    value, tensors, known = value.detach(), found.tensors, found.known
    memory = value.untyped_storage().data_ptr()
    same = (value.data_ptr(), value.device, value.dtype, value.shape, value.stride())
    if same in known:
        return known[same]
    name = path
    while name in tensors:  # a key with a dot, beside a dict
        name += "."
    node: dict[str, Any] = {_TAG: "tensor", "name": name}
    # A dense tensor may lie in memory in another order of its dimensions, such as channels last.
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    if not value.is_contiguous() and value.permute(order).is_contiguous():
        node["order"], value = order, value.permute(order)
    value = value.contiguous().cpu()
    storage = value.untyped_storage()
    if storage.nbytes() != value.nbytes or storage.data_ptr() in known or (found.copy and storage.data_ptr() == memory):
        value = value.clone()  # of the memory that tensors share, each gets its part
    tensors[name], known[same], known[storage.data_ptr()] = value, node, True
    return node


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: _decode(item, tensors) for key, item in value.items()}
    if kind == "tensor":
        tensor, order = tensors[value["name"]], value.get("order")
        return tensor if order is None else tensor.permute([order.index(dim) for dim in range(len(order))])
    if kind == "float":
        return _FLOATS[value["value"]]
    if kind == "dtype" and isinstance(dtype := getattr(torch, value["value"]), torch.dtype):
        return dtype
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in value["items"])
    if kind == "dict":
        return {_decode(key, tensors): _decode(item, tensors) for key, item in value["items"]}
    raise ValueError(f"an unknown kind of value: {kind}")
