"""Hugging Face: `CLIPModel`, `SiglipModel` and other whole dual encoders, or else `VisionTextDualEncoderModel`; with processor.

transformers' dual encoders take a model's own pooled output and project it by one matrix. A text model whose token states are
averaged, a head with a hidden layer, and raylign's own small towers have no class there.
"""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from training.export import clip_weights, processor
from training.export.model import CannotHoldError, Model, Side
from training.export.open_clip import text_weights
from training.towers.image import HuggingFaceVisionSettings, TimmSettings
from training.towers.open_clip import OpenClipImageSettings, OpenClipTextSettings
from training.towers.text import HuggingFaceTextSettings

NAME, LIBRARY = "huggingface", "transformers"
_OWN_PROJECTION = ("siglip", "siglip2")  # types of models without a projection of their pooled outputs


def express(model: Model) -> Any:
    """The run as a model of transformers. Raises `CannotHoldError`."""
    model.image.pixels(reordered=False)
    network = _whole(model) or _joined(model)
    with torch.no_grad():
        for name, number in (("logit_scale", math.log(model.scale)), ("logit_bias", model.bias)):
            if hasattr(network, name):
                getattr(network, name).fill_(number)
    return network.eval()


def write(model: Model, network: Any, folder: Path) -> None:
    """Weights, config, image processor and tokenizer, as `AutoModel` and `AutoProcessor` read them."""
    import transformers

    kinds = {"clip": "CLIPProcessor", "siglip": "SiglipProcessor"}
    kind = getattr(transformers, kinds.get(network.config.model_type, "VisionTextDualEncoderProcessor"))
    network.save_pretrained(folder)
    kind(processor.image_processor(model), processor.tokenizer(model)).save_pretrained(folder)


def notes(model: Model, network: Any) -> list[str]:
    """What a user of this export has to know."""
    side = model.settings.image_tower.image_size
    notes = [
        'Load the processor with `backend="pil"`: the default resizes with torchvision, whose pixels differ slightly.',
        "Of an image that is not square the processor crops whole pixels, and the run half pixels and what is beside them: "
        f"crop it with `PIL.ImageOps.fit(image, ({side}, {side}), Image.Resampling.BICUBIC)` first for the run's own pixels.",
    ]
    if not hasattr(network, "logit_scale"):
        notes.append(f"The temperature of {type(network).__name__} is not the run's: multiply cosines by {model.scale:.4f}.")
    if model.bias and not hasattr(network, "logit_bias"):
        notes.append(f"{type(network).__name__} has no bias: add {model.bias:.4f} to its logits.")
    if model.tokenizer.clean is not None:
        notes.append("Texts that need ftfy or have HTML entities: open_clip cleans them, and this tokenizer does not.")
    return notes


def _whole(model: Model) -> Any:
    """Both halves of one dual encoder without further heads: the class that they came from. None if they are not."""
    from transformers import CONFIG_MAPPING, AutoModel

    sides = model.image, model.text
    if not all(isinstance(s.settings, HuggingFaceVisionSettings | HuggingFaceTextSettings) for s in sides):
        return None
    if not all(side.settings.projected for side in sides) or any(side.projects for side in sides):
        return None
    image, text = model.image.tower.network.network, model.text.tower.network
    config = text.source["config"]
    if image.source["config"] != config:
        return None
    network = AutoModel.from_config(CONFIG_MAPPING[config["model_type"]].from_dict(config), dtype=torch.float32)
    missing, unexpected = network.load_state_dict(image.state_dict() | text.state_dict(), strict=False)
    if unexpected or set(missing) - {"logit_scale", "logit_bias"}:
        names = ", ".join([*missing, *unexpected][:3])
        raise CannotHoldError(f"its halves do not make a whole {type(network).__name__}: {names}")
    return network


def _joined(model: Model) -> Any:
    """Two models and two projections: a `CLIPModel` if both are CLIP's, else a `VisionTextDualEncoderModel`."""
    import transformers as t

    (vision, visual), (words, textual) = _vision(model.image), _text(model.text)
    width = model.settings.embed_dim
    if isinstance(vision.config, t.CLIPVisionConfig) and isinstance(words.config, t.CLIPTextConfig):
        halves = {"vision_config": vision.config.to_dict(), "text_config": words.config.to_dict()}
        network: Any = t.CLIPModel(t.CLIPConfig(**halves, projection_dim=width))
        network.vision_model.load_state_dict(vision.state_dict())
        network.text_model.load_state_dict(words.state_dict())
    else:
        config = t.VisionTextDualEncoderConfig.from_vision_text_configs(vision.config, words.config, projection_dim=width)
        network = t.VisionTextDualEncoderModel(config, vision, words)
    network.visual_projection.weight.data = visual
    network.text_projection.weight.data = textual
    return network


def _vision(side: Side) -> tuple[Any, Tensor]:
    """A vision model with a pooled output, and the projection [D, F] of that."""
    import transformers as t

    settings, network = side.settings, side.tower.network
    if isinstance(settings, OpenClipImageSettings):
        vision, projection = clip_weights.vision(side.tower.about["config"], network.state_dict())
        return vision, side.projection(projection)
    if isinstance(settings, TimmSettings):
        arguments = settings.options | settings.size_option()
        config = t.TimmWrapperConfig(architecture=settings.model, model_args=arguments, hidden_size=side.tower.width)
        vision = t.TimmWrapperModel(config)
        vision.timm_model.load_state_dict(network.state_dict())
        return vision.eval(), side.projection()
    if not isinstance(settings, HuggingFaceVisionSettings):
        raise CannotHoldError(f"transformers has no image model like the tower '{settings.name}'")
    inner = network.network
    own: Tensor | None = None
    if settings.projected:
        inner, own = inner.vision_model, _projection(inner, "visual_projection")
    vision = t.CLIPVisionModel(inner.config) if isinstance(inner.config, t.CLIPVisionConfig) else _again(inner)
    _load(vision, inner)
    size = settings.image_size
    with torch.no_grad():
        pooled = getattr(vision(pixel_values=torch.zeros(1, 3, size, size)), "pooler_output", None)
    if pooled is None or pooled.ndim != 2 or pooled.shape[1] != getattr(vision.config, "hidden_size", None):
        raise CannotHoldError(f"its image tower, a {type(vision).__name__}, has no pooled output of one row an image")
    return vision, side.projection(own)


def _text(side: Side) -> tuple[Any, Tensor]:
    """A text model with a pooled output, and the projection [D, G] of that."""
    settings = side.settings
    if isinstance(settings, OpenClipTextSettings):
        words, projection = clip_weights.text(side.tower.about["config"], text_weights(side))
        return words, side.projection(projection)
    if not isinstance(settings, HuggingFaceTextSettings):
        raise CannotHoldError(f"transformers has no text model like the tower '{settings.name}'")
    whole = side.tower.network
    if not settings.projected and settings.pooling == "pooler":
        words = _again(whole)
        _load(words, whole)
        return words, side.projection()
    if not settings.projected:
        pools = "averages the states of its tokens" if settings.pooling == "mean" else "takes the first token's state as it is"
        raise CannotHoldError(
            f"its text tower {pools}, and transformers' dual encoders take a model's own pooled output "
            "(text_tower.pooling=pooler in training)"
        )
    words, own = _again(whole.text_model), _projection(whole, "text_projection")
    _load(words, whole.text_model)
    return words, side.projection(own)


def _again(network: Any) -> Any:
    from transformers import AutoModel

    return AutoModel.from_config(network.config, dtype=torch.float32)


def _load(network: Any, trained: Any) -> None:
    try:
        network.load_state_dict(trained.state_dict())
    except RuntimeError:
        raise CannotHoldError(f"a {type(trained).__name__} is no model by itself in transformers") from None
    network.eval()


def _projection(whole: Any, name: str) -> Tensor | None:
    """The matrix with which a dual encoder projects a pooled output."""
    projection = getattr(whole, name, None)
    if isinstance(projection, nn.Linear) and projection.bias is None:
        return projection.weight
    if projection is None and whole.config.model_type in _OWN_PROJECTION:
        return None
    raise CannotHoldError(f"{type(whole).__name__} projects by more than a matrix, and the other half or a head is not its own")


def check_library() -> None:
    """Nothing beyond raylign's own requirements."""


def usage() -> ModuleType:
    """As a user would read the folder."""
    from training.export.usage import huggingface

    return huggingface
