"""Image files and texts to unit rows, float32 [n, D], with open_clip alone."""

import open_clip
import torch
from PIL import Image, ImageOps


def rgb(file):
    """Upright, in three colours, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def load(folder):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


@torch.inference_mode()
def embed_images(loaded, files):
    model, preprocess, _ = loaded
    pixels = torch.stack([preprocess(rgb(file)) for file in files])
    return model.encode_image(pixels, normalize=True).numpy()


@torch.inference_mode()
def embed_texts(loaded, texts):
    model, _, tokenizer = loaded
    return model.encode_text(tokenizer(texts), normalize=True).numpy()
