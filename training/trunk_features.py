"""Image features of published models before the projection into the joint space: the input of CLIP's linear probe.

CLIP, arXiv 2103.00020, appendix A.3. For a model without projection, such as SigLIP, they are the trunk's output. Where it is
unknown where a model's projection begins, the result is None: no probe is better than one on the wrong features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


def open_clip_features(visual: Any) -> Callable[[Tensor], Tensor] | None:
    """For the image half of an open_clip model: preprocessed images to [n, F]."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):  # CoCa's also gives its tokens
        return lambda pixels: _first(functional_call(visual, {"proj": None}, (pixels,)))  # type: ignore[dict-item]
    if isinstance(visual, ModifiedResNet):
        # Attention pooling reads this layer's weights without calling it, so a hook would never run.
        last = visual.attnpool.c_proj
        same = torch.eye(last.in_features, device=last.weight.device, dtype=last.weight.dtype)
        without = {"attnpool.c_proj.weight": same, "attnpool.c_proj.bias": same.new_zeros(len(same))}
        return lambda pixels: functional_call(visual, without, (pixels,))
    if isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        # Without open_clip's own head, timm's classifier is the projection, if there is one.
        own = len(visual.head) == 0 and visual.trunk.num_classes > 0
        return lambda pixels: _input_of(visual.trunk.get_classifier() if own else visual.head, lambda: visual(pixels))
    return None


def hugging_face_features(network: Any) -> Callable[..., Tensor] | None:
    """For a CLIP-like model of transformers: the input of its `get_image_features` to [n, F]."""
    projection = getattr(network, "visual_projection", None)
    if isinstance(projection, nn.Module):
        return lambda **inputs: _input_of(projection, lambda: network.get_image_features(**inputs))
    if network.config.model_type in ("siglip", "siglip2"):
        return lambda **inputs: network.get_image_features(**inputs).pooler_output
    return None


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _input_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """The input of a module during `run()`."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        run()
    finally:
        handle.remove()
    return seen[0]
