"""Corruption shifts: blur, noise, JPEG, contrast and grayscale at five severities, computed on the fly for any image.

Inspired by Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019,
arXiv 1903.12261. The parameters are our own, and neither corruptions nor severities equal those of ImageNet-C: compare
models under these shifts with one another, not with published ImageNet-C figures.

A corrupted image depends only on the image, the corruption, the severity, a seed and the sample's id: every process computes the
same. Each severity is further from the original than the one before. Noise and JPEG act on the image's own pixels, and shrinking
averages them away: shrink large images to about the model's size first.
"""

import io

import numpy as np
from PIL import Image, ImageFilter

from pipelines.program.errors import UserError
from pipelines.program.randomness import generator

SEVERITIES = (1, 2, 3, 4, 5)
# One parameter for each severity.
PARAMETERS = {
    "blur": (0.005, 0.010, 0.016, 0.024, 0.035),  # standard deviation of the Gaussian over the image's shorter side
    "noise": (0.04, 0.08, 0.13, 0.20, 0.30),  # standard deviation of independent Gaussians, where black is 0 and white is 1
    "jpeg": (40, 25, 15, 9, 5),  # quality, with colours at half the resolution
    "contrast": (0.65, 0.45, 0.30, 0.18, 0.10),  # remaining fraction of the distance to the image's mean colour
    "grayscale": (0.2, 0.4, 0.6, 0.8, 1.0),  # fraction of the distance to gray of the same luma; a gray image does not change
}


def corrupt(image: Image.Image, name: str, severity: int, seed: int, sample_id: int) -> Image.Image:
    """A corrupted copy, RGB and of the same size.

    Args:
        image: RGB.
        name: one of `PARAMETERS`.
        severity: 1 (mild) to 5.
        seed, sample_id: determine the noise; all severities of a sample scale the same draw.
    Raises:
        UserError: for an unknown name or severity.
    """
    if name not in PARAMETERS:
        raise UserError("corruption", f"'{name}' is unknown", f"choose one of {', '.join(PARAMETERS)}")
    if severity not in SEVERITIES:
        raise UserError("severity", f"{severity} is unknown", f"choose one of {', '.join(map(str, SEVERITIES))}")
    if image.mode != "RGB":
        raise ValueError(f"image: mode {image.mode}, expected RGB")
    parameter = PARAMETERS[name][severity - 1]
    if name == "blur":
        return image.filter(ImageFilter.GaussianBlur(parameter * min(image.size)))
    if name == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "jpeg", quality=int(parameter), subsampling="4:2:0")
        return Image.open(buffer).convert("RGB")
    pixels = np.asarray(image, dtype=np.float64)
    if name == "noise":
        pixels = pixels + 255 * parameter * generator("corruption noise", seed, sample_id).standard_normal(pixels.shape)
    elif name == "contrast":
        mean = pixels.mean(axis=(0, 1))
        pixels = mean + parameter * (pixels - mean)
    else:
        luma = pixels @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
        pixels = pixels + parameter * (luma[..., None] - pixels)
    return Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8))
