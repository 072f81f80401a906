"""An open_clip ViT and its text transformer as transformers' CLIP: the same networks under other names.

transformers has one attention matrix each for queries, keys and values, open_clip one for all three. What else of open_clip's
options CLIP does not have is refused.
"""

import re
from typing import Any

from torch import Tensor

from training.export.model import CannotHoldError

_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "tokenizer_kwargs"}
_DEFAULT_HEAD = 64  # open_clip's width of an attention head of a ViT
_BLOCK = re.compile(r"(?:transformer\.)?resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_VISION_NAMES = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # transformers' spelling
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_TEXT_NAMES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def vision(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """open_clip's config and the weights of its `visual` as a `CLIPVisionModel`, and the projection [D, F].

    Raises `CannotHoldError` if it is no plain ViT.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    about = config["vision_cfg"]
    _plain(about, _VISION, "image")
    sizes = CLIPVisionConfig(
        **_sizes(config, about, about["width"] // about.get("head_width", _DEFAULT_HEAD)),
        image_size=about["image_size"],
        patch_size=about["patch_size"],
    )
    network, rest = CLIPVisionModel(sizes), dict(weights)
    projection = rest.pop("proj")
    network.load_state_dict(_renamed(rest, _VISION_NAMES, "image"))
    return network.eval(), projection.T


def text(config: dict[str, Any], weights: dict[str, Tensor]) -> tuple[Any, Tensor]:
    """open_clip's config and the weights of its text half as a `CLIPTextModel`, and the projection [D, G].

    Raises `CannotHoldError` if it is not the text half of a CLIP.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    about = config["text_cfg"]
    _plain(about, _TEXT, "text")
    end = about["vocab_size"] - 1
    sizes = CLIPTextConfig(
        **_sizes(config, about, about["heads"]),
        vocab_size=about["vocab_size"],
        max_position_embeddings=about.get("context_length", 77),
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    network, rest = CLIPTextModel(sizes), dict(weights)
    projection = rest.pop("text_projection")
    network.load_state_dict(_renamed(rest, _TEXT_NAMES, "text"))
    return network.eval(), projection.T


def _plain(about: dict[str, Any], allowed: set[str], half: str) -> None:
    other = sorted(name for name in about.keys() - allowed if about[name] not in (None, False, 0.0))
    if other:
        raise CannotHoldError(f"its {half} tower is open_clip's with {', '.join(other)}, which transformers' CLIP does not have")


def _sizes(config: dict[str, Any], about: dict[str, Any], heads: int) -> dict[str, Any]:
    return {
        "hidden_size": about["width"],
        "intermediate_size": int(about["width"] * about.get("mlp_ratio", 4.0)),
        "num_hidden_layers": about["layers"],
        "num_attention_heads": heads,
        "hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu",
        "projection_dim": config["embed_dim"],
    }


def _renamed(weights: dict[str, Tensor], names: dict[str, str], half: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        block = _BLOCK.fullmatch(name)
        if name in names:
            renamed[names[name]] = tensor
        elif block is None:
            raise CannotHoldError(f"its {half} tower is open_clip's with {name}, which transformers' CLIP does not have")
        else:
            layer, (part, _, kind) = f"encoder.layers.{block[1]}.", block[2].rpartition(".")
            if part == "attn" and kind in ("in_proj_weight", "in_proj_bias"):
                for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{layer}self_attn.{letter}_proj.{kind.removeprefix('in_proj_')}"] = rows
            elif part in _IN_BLOCK:
                renamed[f"{layer}{_IN_BLOCK[part]}.{kind}"] = tensor
            else:
                raise CannotHoldError(f"its {half} tower is open_clip's with {name}, which transformers' CLIP does not have")
    return renamed
