"""Folders as from the hub, with small random models, and images to embed."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image


def photographs() -> list[Image.Image]:
    """Of several sizes and shapes, smooth enough that resizing matters."""
    found = []
    for number, size in enumerate([(40, 30), (64, 64), (31, 90), (224, 100), (8, 8), (50, 33)]):
        pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        found.append(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return found


@cache
def clips_tokenizer() -> Any:
    """CLIP's own, of 49,408 tokens, which takes a while."""
    import transformers as t

    from training.towers.open_clip import OpenClipTextSettings

    words = OpenClipTextSettings(name="open_clip", model="ViT-B-32").tokenizer(list).json
    words = words.replace("<start_of_text>", "<|startoftext|>").replace("<end_of_text>", "<|endoftext|>")  # transformers' names
    with TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(words)
        return t.CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def hub(kind: str, folder: Path) -> Path:
    """Weights, tokenizer and preprocessing of a small model: clip, dual, siglip or align."""
    import transformers as t

    tokenizer = clips_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    text = sizes | {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407, "vocab_size": 49408}
    text |= {"max_position_embeddings": 16}
    size = {"height": 32, "width": 32}
    images: Any = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor: Any = t.CLIPProcessor(images, tokenizer)
    torch.manual_seed(0)
    if kind == "clip":
        model: Any = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    elif kind == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision))
        processor = t.SiglipProcessor(t.SiglipImageProcessor(size=size), tokenizer)
    elif kind == "dual":
        config = t.VisionTextDualEncoderConfig.from_vision_text_configs(
            t.ViTConfig(**vision), t.BertConfig(**text), projection_dim=20
        )
        model = t.VisionTextDualEncoderModel(config)
        processor = t.VisionTextDualEncoderProcessor(t.ViTImageProcessor(size=size), tokenizer)
    else:
        tower = {"image_size": 32, "hidden_dim": 32, "depth_coefficient": 0.1, "width_coefficient": 0.1}
        model = t.AlignModel(t.AlignConfig(text_config=text, vision_config=tower, projection_dim=32))
        processor = t.AlignProcessor(t.EfficientNetImageProcessor(size=size), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
