"""Image files and texts to unit rows, float32 [n, D], with transformers alone."""

import torch
from PIL import Image, ImageOps
from transformers import AutoModel, AutoProcessor


def rgb(file):
    """Upright, in three colours, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def load(folder):
    # Of pixels resized by Pillow, as in training. The default is torchvision, whose pixels differ slightly.
    processor = AutoProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
    return AutoModel.from_pretrained(folder, trust_remote_code=False).eval(), processor


@torch.inference_mode()
def embed_images(loaded, files):
    model, processor = loaded
    inputs = processor(images=[rgb(file) for file in files], return_tensors="pt")
    rows = model.get_image_features(**inputs).pooler_output
    return torch.nn.functional.normalize(rows, dim=-1).numpy()


@torch.inference_mode()
def embed_texts(loaded, texts):
    model, processor = loaded
    inputs = processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
    rows = model.get_text_features(**inputs).pooler_output
    return torch.nn.functional.normalize(rows, dim=-1).numpy()
