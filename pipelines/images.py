"""Pictures: bytes to RGB on a chosen background, resizing, encoding, and the views that training and evaluation see.

Pure functions. What cannot be decoded raises `BadImage` with a short reason, which becomes a row of `rejected.parquet`.
"""

import io
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from pydantic import Field

from pipelines.settings import Settings

ImageFormat = Literal["png", "jpeg", "webp"]
_SVG_PROBE = 256  # pixels of the square that an SVG is fitted into to learn its proportions
_SVG_RATIO = 30  # longer than this it would be a bomb


class BadImage(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """A picture that cannot be used: `reason` is a short code, `detail` what the decoder said."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Augment(Settings):
    """The random view that training sees of a picture."""

    crop_scale: tuple[float, float] = Field((0.5, 1.0), description="area of the random crop, as a share of the picture")
    crop_ratio: tuple[float, float] = Field((0.75, 1.3333), description="width / height of the random crop")
    flip: bool = Field(True, description="mirror every second view")


def decode(data: bytes, background: str = "white", svg_size: int = 512) -> Image.Image:
    """Encoded bytes (any format Pillow reads, or SVG) to RGB.

    The EXIF orientation is applied, transparency is composited on `background` (a CSS colour), 16-bit grey is scaled to 8
    bits, an animation gives its first frame, an SVG is rendered with `svg_size` pixels on its shorter side. Raises
    `BadImage`: empty, svg, undecodable, truncated, decompression_bomb.
    """
    if not data:
        raise BadImage("empty", "0 bytes")
    if _is_svg(data):
        data = _render_svg(data, svg_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(data))
            image.load()
            image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage("decompression_bomb", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("undecodable", f"not an image in a known format; begins with {data[:16]!r}") from None
    except Exception as error:  # decoders raise what they like on damaged data: OSError, SyntaxError, RuntimeError, struct.error
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, str(error)) from None
    if image.mode.startswith("I;16") or image.mode == "I":
        pixels = np.asarray(image).astype(np.float64)
        image = Image.fromarray((pixels / (257 if pixels.max(initial=0) > 255 else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, ImageColor.getrgb(background))
        ground.alpha_composite(image)
        image = ground
    return image.convert("RGB")


def _is_svg(data: bytes) -> bool:
    head = data[:1024].lstrip()
    return head.startswith((b"<?xml", b"<svg", b"<!DOCTYPE svg", b"<!--", b"\xef\xbb\xbf<")) and b"<svg" in data[:65536]


def _render_svg(data: bytes, size: int) -> bytes:
    """An SVG as PNG, its shorter side `size` pixels."""
    import resvg_py

    try:
        text = data.decode("utf-8")
        with Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text, width=_SVG_PROBE, height=_SVG_PROBE)))) as probe:
            width, height = probe.size
        if max(width, height) > _SVG_RATIO * min(width, height):
            raise BadImage("svg", f"more than {_SVG_RATIO} times as long as wide")
        if width <= height:
            return bytes(resvg_py.svg_to_bytes(svg_string=text, width=size))
        return bytes(resvg_py.svg_to_bytes(svg_string=text, height=size))
    except (ValueError, UnicodeDecodeError) as error:
        raise BadImage("svg", str(error)) from None


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Shrink until the shorter side has `size` pixels; smaller pictures stay as they are."""
    shorter = min(image.size)
    if shorter <= size:
        return image
    width, height = (max(1, round(side * size / shorter)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def encode(image: Image.Image, file_format: ImageFormat, quality: int) -> bytes:
    """RGB to encoded bytes; `quality` is for jpeg and webp."""
    buffer = io.BytesIO()
    options = {"compress_level": 4} if file_format == "png" else {"quality": quality}
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def train_view(image: Image.Image, size: int, augment: Augment, random: np.random.Generator) -> np.ndarray:
    """A random crop of the chosen area and ratio, resized to `size`, perhaps mirrored; uint8 [3, size, size]."""
    width, height = image.size
    box = (0.0, 0.0, float(width), float(height))
    for _ in range(10):
        area = random.uniform(*augment.crop_scale) * width * height
        ratio = np.exp(random.uniform(*np.log(augment.crop_ratio)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            box = (x, y, x + w, y + h)
            break
    view = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if augment.flip and random.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _pixels(view)


def eval_view(image: Image.Image, size: int) -> np.ndarray:
    """The centre square, resized to `size`; uint8 [3, size, size]."""
    return _pixels(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))
