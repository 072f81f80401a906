"""Pictures: bytes to RGB on a chosen background, resizing and encoding.

Pure functions. What cannot be decoded raises `BadImage` with a short reason, which becomes a row of `rejected.parquet`.
"""

import io
import math
import re
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, ImageFile, UnidentifiedImageError

ImageFormat = Literal["png", "jpeg", "webp"]
Box = tuple[float, float, float, float]  # left, top, right, bottom
REASONS = ("empty", "html", "undecodable", "truncated", "decompression_bomb", "svg")  # of `BadImage`, in a fixed order
MAX_PIXELS = 89_478_485  # Pillow's own limit for its warning; more is a decompression bomb

# What Pillow remarks about one of millions of files (odd metadata, ...) is no news to anybody; that it might be a bomb is one of
# these remarks, which is why `open_picture` counts pixels itself.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Somebody's `LOAD_TRUNCATED_IMAGES = True` would fill what is missing with grey, in silence.
ImageFile.LOAD_TRUNCATED_IMAGES = False

_TEXT_BEGINS = (b"<", b" ", b"\n", b"\r", b"\t", b"\xef")  # what HTML and SVG may begin with, and no picture format does
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG with another behind it, as phones write them; the first is read
# Their headers are certain. A PNG's orientation may stand behind its pixels, a TIFF turns upright as it is decoded, an icon may
# have another size than it says: pictures of other formats are decoded as they are opened.
_CERTAIN = (*_JPEG, "WEBP")
_UPRIGHT = {  # EXIF's orientation, and what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SVG_PROBE = 256  # pixels of the square that an SVG is fitted into to learn its proportions
_SVG_RATIO = 30  # longer than this it would be a bomb


class BadImage(Exception):  # noqa: N818 - it is a finding about data, not a programming error
    """A picture that cannot be used: `reason` is a short code, `detail` what the decoder said."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Opened:
    """An encoded picture whose header has been read, and whose pixels have not."""

    def __init__(self, image: Image.Image, file_format: str, background: str):
        self._image, self._background = image, background
        self._orientation = _orientation(image)
        self._reduction = 1
        self.format = file_format  # Pillow's name, or "SVG"
        width, height = image.size
        self.size = (height, width) if self._orientation >= 5 else (width, height)  # as displayed

    @property
    def plain(self) -> bool:
        """Whether decoding changes nothing: an upright, single RGB picture without transparency."""
        image = self._image
        still = getattr(image, "n_frames", 1) == 1
        return image.mode == "RGB" and self._orientation == 1 and still and not image.has_transparency_data

    def rgb(self, least: tuple[float, float] | None = None) -> Image.Image:
        """Decode to RGB; to be called once. Raises `BadImage`: truncated, undecodable.

        `least`: a JPEG may come out 1/2, 1/4 or 1/8 as large, decoded so in a fraction of the time (Pillow's draft mode), but
        not narrower or lower than this, as displayed.
        """
        image = self._image
        try:
            if least is not None and self.format in _JPEG:
                width, height = (math.ceil(side) for side in least)
                stored_width = image.width
                drafted = image.draft("RGB", (height, width) if self._orientation >= 5 else (width, height))
                self._reduction = 1 if drafted is None else round(stored_width / drafted[1][2])
            image.load()
        except Exception as error:  # decoders raise what they like on damaged data: OSError, SyntaxError, struct.error, ...
            raise _damaged(error) from None
        if self._orientation != 1:
            image = image.transpose(_UPRIGHT[self._orientation])
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        return _to_rgb(image, self._background)

    def reduced(self, box: Box, image: Image.Image) -> Box:
        """Where a box of the displayed picture lies in `image`, which `rgb` gave.

        A decoder that reduces rounds sides up: its last column and row stand for less than the others. They are where the stored
        picture ends, which on display is left or top if it was mirrored or turned.
        """
        if self._reduction == 1:
            return box
        x = image.width - self.size[0] / self._reduction if self._orientation in (2, 3, 6, 7) else 0.0
        y = image.height - self.size[1] / self._reduction if self._orientation in (3, 4, 7, 8) else 0.0
        left, top, right, bottom = (side / self._reduction for side in box)
        return x + left, y + top, x + right, y + bottom


def open_picture(data: bytes, background: str = "white", svg_size: int = 512) -> Opened:
    """Read the header of encoded bytes (any format Pillow reads, or SVG). Raises `BadImage`.

    Decoded, the EXIF orientation is applied, transparency is composited on `background` (a CSS colour), 16-bit grey is scaled to
    8 bits, an animation gives its first frame, an SVG is rendered with `svg_size` pixels on its shorter side.
    """
    if not data:
        raise BadImage("empty", "0 bytes")
    file_format = ""
    if data[:1] in _TEXT_BEGINS:
        if _HTML.match(data):
            raise BadImage("html", f"a web page; begins with {data[:40]!r}")
        if _is_svg(data):
            data, file_format = _render_svg(data, svg_size), "SVG"
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if image.format not in _CERTAIN:
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("decompression_bomb", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("undecodable", f"not an image in a known format; begins with {data[:16]!r}") from None
    except Exception as error:
        raise _damaged(error) from None
    return Opened(image, file_format or image.format or "", background)


def decode(data: bytes, background: str = "white", svg_size: int = 512, least: tuple[float, float] | None = None) -> Image.Image:
    """Encoded bytes to RGB: `open_picture` and `rgb` in one. Raises `BadImage`, with one of `REASONS`."""
    return open_picture(data, background, svg_size).rgb(least)


def _damaged(error: Exception) -> BadImage:
    return BadImage("truncated" if "truncated" in str(error).lower() else "undecodable", str(error))


def _orientation(image: Image.Image) -> int:
    """EXIF's tag 0x0112 (or XMP's word for it), from 1 to 8; 5 to 8 lie on their side."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block says nothing, and harms no pixel
        return 1
    return found if found in _UPRIGHT else 1


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
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
    """RGB to encoded bytes; `quality` is for jpeg and webp. Raises `BadImage` for more pixels a side than the format can hold."""
    buffer = io.BytesIO()
    options = {"compress_level": 4} if file_format == "png" else {"quality": quality}
    try:
        image.save(buffer, format=file_format, **options)
    except (OSError, ValueError) as error:
        width, height = image.size
        raise BadImage("too_large", f"{width} x {height} pixels as {file_format}: {error}") from None
    return buffer.getvalue()
