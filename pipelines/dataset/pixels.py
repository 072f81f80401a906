"""What a view does to pixels: crop and resize, colours, gray, blur.

With SIMD where the CPU has it, and the same pixels where it has not (hue and saturation to one level). Pillow does the same more
slowly: three to four times for a resize, three to eight times for hue and blur. A resize is Pillow's bicubic to one level,
columns before rows; Pillow's own order goes by the sizes, and shows only where a sharp edge overshoots and is clipped in between.
"""

from typing import Any

import numpy as np
from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from pipelines.dataset.images import Box

# Keys' cubic with a = -0.5, which Pillow calls bicubic: antialiased, as wide as the crop's reduction.
_CUBIC = ResizeAlg.convolution(FilterType.catmull_rom)
_LEVELS = np.arange(256, dtype=np.float32)


def resized(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """A crop of an RGB image, whose sides may be fractions of pixels, as uint8 [size, size, 3]."""
    left, top, right, bottom = box
    crop = CropBox(left, top, min(right, image.width) - left, min(bottom, image.height) - top)
    view = Image.new("RGB", (size, size))
    Resizer().resize_pil(image, view, ResizeOptions(resize_alg=_CUBIC, crop_box=crop))  # one for all threads would not be safe
    return np.asarray(view)


def brighter(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Multiplied by `factor`, as torchvision's `adjust_brightness` (of a Pillow image, as all of these)."""
    return _cv2().LUT(pixels, _table(factor * _LEVELS))


def contrasted(pixels: np.ndarray, factor: float) -> np.ndarray:
    """As torchvision's `adjust_contrast`: further from the mean of its gray, or nearer to it."""
    mean = int(_gray(pixels).mean() + 0.5)
    return _cv2().LUT(pixels, _table(mean + factor * (_LEVELS - mean)))


def saturated(pixels: np.ndarray, factor: float) -> np.ndarray:
    """As torchvision's `adjust_saturation`: further from its own gray, or nearer to it."""
    return _cv2().addWeighted(pixels, factor, gray(pixels), 1 - factor, 0)


def hue_shifted(pixels: np.ndarray, turns: float) -> np.ndarray:
    """As torchvision's `adjust_hue`: by so many turns of the colour circle, in 256 steps."""
    cv2 = _cv2()
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(turns * 255) % 256)  # past the end it begins again
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def gray(pixels: np.ndarray) -> np.ndarray:
    """Without colour (ITU-R 601-2 luma), in three equal channels."""
    return _cv2().cvtColor(_gray(pixels), _cv2().COLOR_GRAY2RGB)


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur with this standard deviation in pixels; the border's pixels go on outside."""
    return _cv2().GaussianBlur(pixels, (0, 0), sigma, borderType=_cv2().BORDER_REPLICATE)


def _gray(pixels: np.ndarray) -> np.ndarray:
    return _cv2().cvtColor(pixels, _cv2().COLOR_RGB2GRAY)


def _table(levels: np.ndarray) -> np.ndarray:
    return levels.clip(0, 255).astype(np.uint8)


def _cv2() -> Any:
    """OpenCV, which takes 0.1 s to import: only programs and tasks that make strong views pay for it."""
    import cv2

    cv2.setNumThreads(0)  # a task has its own CPU, and no more
    return cv2
