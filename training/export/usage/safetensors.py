"""Image files and texts to unit rows, float32 [n, D], with raylign."""

from PIL import Image, ImageOps

from training.checkpoint import load_embedder


def rgb(file):
    """Upright, in three colours, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def load(folder):
    return load_embedder(str(folder))


def embed_images(loaded, files):
    return loaded.embed_images([rgb(file) for file in files])


def embed_texts(loaded, texts):
    return loaded.embed_texts(texts)
