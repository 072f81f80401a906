"""open_clip's layout: `open_clip_config.json` and safetensors in a folder that `local-dir:FOLDER` opens.

An image half is open_clip's own or any model of timm at its own size; a text half is open_clip's own, since open_clip builds text
models of Hugging Face from a name on the hub and not from a folder.
"""

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.program.errors import UserError
from training.export import processor
from training.export.model import CannotHoldError, Model, Side
from training.towers.image import TimmSettings
from training.towers.open_clip import OpenClipImageSettings, OpenClipTextSettings

NAME, LIBRARY = "open_clip", "open_clip"


def express(model: Model) -> Any:
    """The run as a model of open_clip, with its config as `config`. Raises `CannotHoldError`."""
    model.image.pixels(reordered=False)
    vision, visual, quick_image = _vision(model.image)
    words, textual, quick_text = _text(model.text)
    if None not in (quick_image, quick_text) and quick_image != quick_text:
        raise CannotHoldError("one of its towers was trained with QuickGELU and the other without, and open_clip has one setting")
    config = {
        "embed_dim": model.settings.embed_dim,
        "vision_cfg": vision,
        "text_cfg": words,
        "quick_gelu": bool(quick_image or quick_text),
        "custom_text": True,  # both towers by themselves, whatever they are
    } | ({} if model.trained.bias is None else {"init_logit_bias": model.bias})
    from open_clip import CustomTextCLIP

    network: Any = CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"})
    _load(network.visual, visual, "image")
    _load(network.text, textual, "text")
    with torch.no_grad():
        network.logit_scale.fill_(math.log(model.scale))
    network.config = config
    return network.eval()


def write(model: Model, network: Any, folder: Path) -> None:
    """Weights, config with preprocessing, and the tokenizer in transformers' form for whoever wants it."""
    from safetensors.torch import save_file

    mean, std = model.image.pixels(reordered=False)
    pixels = {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": network.config, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    processor.tokenizer(model).save_pretrained(folder)


def notes(model: Model, network: Any) -> list[str]:
    """What a user of this export has to know."""
    return [
        "open_clip resizes an image before it crops the centre, and the run crops first: images that are not square get other "
        "pixels at the edges."
    ]


def text_weights(side: Side) -> dict[str, Tensor]:
    """The weights of an open_clip tower's text half, by the names of its `TextTransformer`."""
    weights = side.tower.model.state_dict()
    if any(name.startswith("text.") for name in weights):
        return {name.removeprefix("text."): tensor for name, tensor in weights.items() if name.startswith("text.")}
    return {name: tensor for name, tensor in weights.items() if name not in ("logit_scale", "logit_bias")}


def _vision(side: Side) -> tuple[dict[str, Any], dict[str, Tensor], bool | None]:
    """vision_cfg, weights with the heads in their last projection, and whether it has QuickGELU (None: it does not matter)."""
    settings, network = side.settings, side.tower.network
    if isinstance(settings, OpenClipImageSettings):
        config = side.tower.about["config"]
        vision = config["vision_cfg"] | {"output_tokens": False, "timm_model_pretrained": False}
        return vision, _projected(side, network), bool(config.get("quick_gelu"))
    if not isinstance(settings, TimmSettings):
        raise CannotHoldError(f"open_clip has no image model like the tower '{settings.name}'")
    if settings.options:
        raise CannotHoldError(f"its image tower is timm's {settings.model} with options, which open_clip does not pass on")
    if settings.size_option() and settings.image_size != _own_size(settings):
        problem = f"its image tower is timm's {settings.model} at {settings.image_size} pixels, which open_clip builds"
        raise CannotHoldError(f"{problem} at {_own_size(settings)}")
    vision = {"timm_model_name": settings.model, "timm_pool": "", "timm_proj": "linear", "image_size": settings.image_size}
    weights = {f"trunk.{name}": tensor for name, tensor in network.state_dict().items()}
    return vision, weights | {"head.proj.weight": side.projection()}, None


def _own_size(settings: TimmSettings) -> int | None:
    import timm

    about = timm.get_pretrained_cfg(settings.model)
    return about.input_size[-1] if about is not None else None


def _projected(side: Side, visual: Any) -> dict[str, Tensor]:
    """The weights of open_clip's image half, with the heads multiplied into its last matrix."""
    weights = dict(visual.state_dict())
    if not side.projects:
        return weights
    if "proj" in weights:
        return weights | {"proj": side.projection(weights["proj"].T).T}
    names = ("attnpool.c_proj.weight", "head.proj.weight", "head.mlp.fc2.weight")
    last = next((name for name in names if name in weights), None)
    if last is None:
        raise CannotHoldError(f"its image tower, open_clip's {type(visual).__name__}, ends with no matrix to put a head into")
    bias = last.replace("weight", "bias")
    if bias in weights:
        weights[bias] = side.projection(weights[bias][:, None])[:, 0]
    return weights | {last: side.projection(weights[last])}


def _text(side: Side) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """text_cfg, weights with the head in the projection, and whether it has QuickGELU."""
    settings = side.settings
    if not isinstance(settings, OpenClipTextSettings):
        raise CannotHoldError(f"open_clip opens no text tower '{settings.name}' from a folder, only its own text transformer")
    config, weights = side.tower.about["config"], text_weights(side)
    text = config["text_cfg"] | {"output_tokens": False}
    if side.projects:
        if isinstance(weights.get("text_projection"), Tensor):
            weights["text_projection"] = side.projection(weights["text_projection"].T).T
        elif "text_projection.weight" in weights:
            weights["text_projection.weight"] = side.projection(weights["text_projection.weight"])
            if "text_projection.bias" in weights:
                weights["text_projection.bias"] = side.projection(weights["text_projection.bias"][:, None])[:, 0]
        else:
            raise CannotHoldError("its text tower ends with no matrix to put a head into")
    context, used = text.get("context_length", 77), settings.max_tokens
    if used < context:
        if text.get("no_causal_mask") or text.get("embed_cls") or text.get("pool_type", "argmax") not in ("argmax", "eos"):
            raise CannotHoldError(f"its texts are cut to {used} tokens and padded to {context}, which its text tower reads")
        # The end of a text sees nothing that comes after it.
        text["context_length"] = used
        weights["positional_embedding"] = weights["positional_embedding"][:used]
    return text, weights, bool(config.get("quick_gelu"))


def _load(network: nn.Module, weights: dict[str, Tensor], half: str) -> None:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise CannotHoldError(f"the weights of its {half} tower do not fit open_clip's model ({first})") from None


def check_library() -> None:
    """Raises `UserError` if open_clip is not installed."""
    try:
        import open_clip  # noqa: F401
    except ImportError:
        raise UserError("--to", "open_clip is not installed", "pip install 'raylign[open_clip]'") from None


def usage() -> ModuleType:
    """As a user would read the folder."""
    from training.export.usage import open_clip

    return open_clip
