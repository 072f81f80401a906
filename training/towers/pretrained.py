"""Loads models of transformers, and verifies that every weight in use comes from the file and that eval mode is deterministic.

`from_pretrained` fills weights that a file lacks with random numbers, with only a warning. A tower is rebuilt in every process
that reads a checkpoint or computes stored features, so such numbers would differ each time.
"""

import json
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from pipelines.io.artifacts import resolve
from pipelines.program.errors import UserError


def load_pretrained(
    weights: str, key: str, part: Callable[[Any], Any] = lambda network: network, may_lack: Collection[str] = ()
) -> Any:
    """A model of transformers in eval mode, float32, in which every weight in use comes from the file.

    Args:
        weights: hub name, folder, or package:NAME/FILE.
        key: the setting that names the weights, for errors.
        part: gets the whole model, removes what does not run, and returns the rest: only its weights are required.
        may_lack: submodules of the part, such as a pooler, that are set to None if the file has none of their weights.

    Returns: the part. Its `source` is JSON values from which `rebuild_pretrained` rebuilds it without weights.

    Raises: `UserError` if there is no such model, or if the file lacks weights of the part or has them in another shape.
    """
    from transformers import AutoModel

    try:
        # `dtype="auto"` would keep a file's half precision, which suits neither the input images nor the optimizer.
        network, info = AutoModel.from_pretrained(
            resolve(weights, key) or weights,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, with names
        )
    except Exception as error:  # the hub, json, safetensors and each model raise their own errors
        problem = f"{weights} cannot be loaded: {first_line(error)}"
        raise UserError(key, problem, "give a folder or a hub name that transformers can load") from None
    wrong = {name: f"{_shape(file)} in the file, {_shape(model)} here" for name, file, model in info["mismatched_keys"]}
    # BatchNorm's update count has no effect, and old files lack it.
    wrong |= {name: "" for name in info["missing_keys"] if not name.endswith("num_batches_tracked")}
    config = json.loads(network.config.to_json_string())
    tensors = dict(network.state_dict(keep_vars=True))
    lacking = {id(tensors[name]): name for name in wrong.keys() - _never_saved(network) if name in tensors}

    used, without = part(network), []
    for name in may_lack:
        module = getattr(used, name, None)
        weights_of = [id(tensor) for tensor in module.state_dict(keep_vars=True).values()] if module is not None else []
        if weights_of and all(tensor in lacking for tensor in weights_of):
            setattr(used, name, None)
            without.append(name)
    needed = used.state_dict(keep_vars=True).values()
    names = sorted({lacking[id(tensor)] for tensor in needed if id(tensor) in lacking})
    if names:
        first = ", ".join(f"{name} ({wrong[name]})" if wrong[name] else name for name in names[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        other = sorted(info["unexpected_keys"])
        unused = f" (it has {len(other)} of other names, such as {other[0]})" if other else ""
        raise UserError(
            key,
            f"{weights} lacks {len(names)} of the {len(needed)} weights that {type(network).__name__} runs with: "
            f"{first}{more}{unused}",
            "give a file saved from this kind of model",
        )
    used.source = {"config": _without_paths(config), "without": without}
    return used.eval()


def rebuild_pretrained(source: dict[str, Any], part: Callable[[Any], Any]) -> Any:
    """What `load_pretrained` returned, in eval mode, with random weights."""
    from transformers import CONFIG_MAPPING, AutoModel

    config = CONFIG_MAPPING[source["config"]["model_type"]].from_dict(source["config"])
    used = part(AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False))
    for name in source["without"]:
        setattr(used, name, None)
    used.source = source
    return used.eval()


def _never_saved(network: Any) -> set[str]:
    """Names of weights that the class of the file leaves out because it computes them, such as Marian's sines of positions."""
    import transformers

    classes = [getattr(transformers, name, None) for name in network.config.architectures or ()]
    names = [name for kind in classes for name in getattr(kind, "_keys_to_ignore_on_save", None) or ()]
    return {name.removeprefix(f"{network.base_model_prefix}.") for name in names}


def _without_paths(tree: Any) -> Any:
    """A config without the paths that it was loaded from, which are not part of its identity."""
    if isinstance(tree, dict):
        return {key: _without_paths(value) for key, value in tree.items() if key != "_name_or_path"}
    return [_without_paths(value) for value in tree] if isinstance(tree, list) else tree


def measure(run: Callable[[], Tensor], key: str, name: str) -> int:
    """Features per row, F, of a tower in eval mode.

    Args:
        run: runs it on one fixed input; gives [1, F].
        key, name: the setting and the model, for errors.

    Raises: `UserError` if two runs differ, as with a masked autoencoder that draws its mask in eval mode too (ViTMAE): an image
        would have another embedding each time.
    """
    with torch.no_grad():
        first, second = run(), run()
    if first.is_meta:  # shapes without data
        return first.shape[-1]
    if not (first.isfinite().all() and second.isfinite().all()):
        raise UserError(key, f"{name} gives numbers that are not finite", "give other weights")
    if (first - second).abs().max() > 1e-4 * first.abs().max():
        problem = f"{name} gives other features for the same input each time, in eval mode too, as masked autoencoders do"
        raise UserError(key, problem, "choose a model without random masking")
    return first.shape[-1]


def first_line(error: Exception) -> str:
    """The first line of another library's error message, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else type(error).__name__


def _shape(sizes: Any) -> str:
    return " x ".join(map(str, sizes)) or "one number"
