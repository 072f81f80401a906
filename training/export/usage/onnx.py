"""Image files and texts to unit rows, float32 [n, D], with onnxruntime, tokenizers, numpy and Pillow alone."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


def rgb(file):
    """Upright, in three colours, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def load(folder):
    vision, text = (onnxruntime.InferenceSession(f"{folder}/{half}_model.onnx") for half in ("vision", "text"))
    pixels = json.loads(Path(folder, "preprocessor_config.json").read_text())
    return vision, text, pixels, Tokenizer.from_file(f"{folder}/tokenizer.json")


def embed_images(loaded, files):
    vision, _, pixels, _ = loaded
    side = pixels["size"]["height"]
    squares = np.stack([np.asarray(ImageOps.fit(rgb(file), (side, side), Image.Resampling.BICUBIC)) for file in files])
    batch = ((squares / 255 - pixels["image_mean"]) / pixels["image_std"]).transpose(0, 3, 1, 2).astype(np.float32)
    return vision.run(None, {"pixel_values": batch})[0]


def embed_texts(loaded, texts):
    _, text, _, tokenizer = loaded
    encoded = tokenizer.encode_batch(texts)
    inputs = {"input_ids": [row.ids for row in encoded], "attention_mask": [row.attention_mask for row in encoded]}
    read = [taken.name for taken in text.get_inputs()]  # some text towers take no mask
    return text.run(None, {name: np.asarray(inputs[name], dtype=np.int64) for name in read})[0]
