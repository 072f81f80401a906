"""Images whose every pixel is known, and JPEGs stored as a camera stores them that is held sideways."""

import numpy as np
from PIL import Image

from tests.pipelines.corpus import encoded


def noise(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def gradient(width: int, height: int) -> Image.Image:
    """Red is x, green is y: a view of it tells which part it shows."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


UPRIGHT = {  # what a viewer must do to the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),  # stored on its side: a quarter turn clockwise puts it right
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}
STORED = {**UPRIGHT, 6: UPRIGHT[8], 8: UPRIGHT[6]}  # the way back: the others undo themselves


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def oriented_jpeg(displayed: np.ndarray, orientation: int) -> bytes:
    """A JPEG that is displayed as these pixels, stored as a camera would that was held so."""
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](displayed)))
    return encoded(stored, "JPEG", quality=95, exif=exif(orientation))
