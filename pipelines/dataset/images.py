"""Images: decoding to RGB on a chosen background, resizing and encoding.

Pure functions. An image that cannot be decoded raises `BadImage` with a short reason, which becomes a row of
`rejected.parquet`.
"""

import io
import math
import re
import struct
import warnings
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image, ImageColor, ImageFile, PngImagePlugin, UnidentifiedImageError

from pipelines.dataset import svg_render
from pipelines.dataset.image_formats import FORMATS, PILLOW
from pipelines.io import child_process

ImageFormat = Literal["png", "jpeg", "webp"]
Box = tuple[float, float, float, float]  # left, top, right, bottom
REASONS = ("empty", "html", "undecodable", "truncated", "decompression_bomb", "svg")  # of `BadImage`, in a fixed order
MAX_PIXELS = 89_478_485  # the limit of Pillow's own warning; more is a decompression bomb

# Pillow's warnings about single files among millions (odd metadata, ...) are noise. Its bomb warning is suppressed with them, so
# `open_image` counts pixels itself.
warnings.filterwarnings("ignore", module=r"PIL\.")
# With `LOAD_TRUNCATED_IMAGES = True`, set elsewhere, Pillow would silently fill missing pixels with grey.
ImageFile.LOAD_TRUNCATED_IMAGES = False
# Some programs write their whole edit history into a PNG's text chunks, and a colour profile may exceed Pillow's 1 MiB. More than
# this, for one text and for all of them, is a bomb.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 16 << 20, 64 << 20

_TEXT_BEGINS = (b"<", b" ", b"\n", b"\r", b"\t", b"\xef")  # what HTML and SVG may begin with, but no other image format
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
_JPEG = ("JPEG", "MPO")  # MPO: a JPEG followed by another, as phones write; the first is read
# Formats whose headers are reliable. A PNG's orientation may come after its pixels, a TIFF is turned upright while it is decoded,
# an icon may differ from its stated size: images of other formats are decoded when they are opened.
_CERTAIN = (*_JPEG, "WEBP")
_UPRIGHT = {  # EXIF's orientation, and the transform that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_SEGMENTS = 4096  # of a JPEG, before its pixels
_MOST_SCANS = 100  # of a progressive JPEG, as libtiff has it (LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER); encoders write some ten
_ORIENTATION, _PHOTOMETRIC, _BITS = 0x0112, 262, 258  # tags of EXIF and TIFF
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


class BadImage(Exception):  # noqa: N818 - a finding about data, not a programming error
    """An image that cannot be used: `reason` is a short code, `detail` the decoder's message."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Opened:
    """An encoded image whose header has been read, and whose pixels have not."""

    def __init__(self, image: Image.Image, file_format: str, background: str):
        self._image, self._background = image, background
        self._orientation = _orientation(image)
        self._reduction = 1
        self.format = file_format  # Pillow's name, or "SVG"
        width, height = image.size
        self.size = (height, width) if self._orientation >= 5 else (width, height)  # as displayed

    @property
    def plain(self) -> bool:
        """Whether decoding changes nothing: an upright, single RGB image without transparency."""
        image = self._image
        # Counting a GIF's frames would read them all.
        moving = getattr(image, "is_animated", False)
        return image.mode == "RGB" and self._orientation == 1 and not moving and not image.has_transparency_data

    def rgb(self, least: tuple[float, float] | None = None) -> Image.Image:
        """Decode to RGB; to be called once. Raises `BadImage`: truncated, undecodable.

        `least`: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size in a fraction of the time (Pillow's draft mode), but not
        narrower or lower than this, as displayed.
        """
        image = self._image
        try:
            if least is not None and self.format in _JPEG:
                width, height = (math.ceil(side) for side in least)
                stored_width = image.width
                drafted = image.draft("RGB", (height, width) if self._orientation >= 5 else (width, height))
                self._reduction = 1 if drafted is None else round(stored_width / drafted[1][2])
            image.load()
        except Exception as error:  # decoders raise many kinds of errors on damaged data: OSError, SyntaxError, struct.error, ...
            raise _damaged(error) from None
        if self._orientation != 1:
            image = image.transpose(_UPRIGHT[self._orientation])
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        return _to_rgb(image, self._background)

    def reduced(self, box: Box, image: Image.Image) -> Box:
        """Where a box of the displayed image lies in `image`, which `rgb` returned.

        A decoder that reduces the size rounds sides up, so its last column and row cover less than the others. They are at the
        end of the stored image, which is displayed at the left or top if the image is mirrored or rotated.
        """
        if self._reduction == 1:
            return box
        x = image.width - self.size[0] / self._reduction if self._orientation in (2, 3, 6, 7) else 0.0
        y = image.height - self.size[1] / self._reduction if self._orientation in (3, 4, 7, 8) else 0.0
        left, top, right, bottom = (side / self._reduction for side in box)
        return x + left, y + top, x + right, y + bottom


def open_image(data: bytes, background: str = "white", svg_size: int = 512) -> Opened:
    """Read the header of encoded bytes, of a format in `FORMATS`. Raises `BadImage`.

    Decoded, the EXIF orientation is applied, transparency is composited on `background` (a CSS colour), grey of more bits is
    scaled to 8, an animation yields its first frame, an SVG is rendered with `svg_size` pixels on its shorter side.
    """
    if not data:
        raise BadImage("empty", "0 bytes")
    file_format = ""
    if data[:1] in _TEXT_BEGINS:
        if _HTML.match(data):
            raise BadImage("html", f"a web page; begins with {data[:40]!r}")
        if is_svg(data):
            try:
                rendered = child_process.one(partial(svg_render.render, data, svg_size, MAX_PIXELS))
            except ValueError as error:
                raise BadImage("svg", str(error)) from None
            if isinstance(rendered, child_process.Fatal):
                raise BadImage(rendered.reason, rendered.why)
            data, file_format = rendered, "SVG"
    if data[:2] == b"\xff\xd8":
        data = _bounded_jpeg(data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=PILLOW)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
        if image.format not in _CERTAIN:
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("decompression_bomb", str(error)) from None
    except UnidentifiedImageError:
        raise BadImage("undecodable", _not_read(data)) from None
    except Exception as error:
        raise _damaged(error) from None
    return Opened(image, file_format or image.format or "", background)


def decode(data: bytes, background: str = "white", svg_size: int = 512, least: tuple[float, float] | None = None) -> Image.Image:
    """Encoded bytes to RGB: `open_image` and `rgb` in one. Raises `BadImage`, with one of `REASONS`."""
    return open_image(data, background, svg_size).rgb(least)


def _damaged(error: Exception) -> BadImage:
    text = str(error)
    if isinstance(error, MemoryError):
        return BadImage("decompression_bomb", f"more memory than there is: {text}".removesuffix(": "))
    if "MAX_TEXT" in text or "text chunks" in text:
        return BadImage("decompression_bomb", text)
    return BadImage("truncated" if "truncated" in text.lower() else "undecodable", text)


def _not_read(data: bytes) -> str:
    """Why no decoder took these bytes: which other format they are, judging by their first bytes. No decoder is run for this."""
    name = data[8:12].decode("ascii", "replace").strip().upper() if data[4:8] == b"ftyp" else ""
    Image.init()
    for other, (_, accepts) in Image.OPEN.items():
        try:
            if not name and other not in FORMATS and accepts is not None and accepts(data[:16]) is True:
                name = other
        except (IndexError, struct.error):  # they expect 16 bytes
            continue
    if name:
        return f"{name} is not among the formats that are read: {', '.join(FORMATS)}"
    return f"not an image in a known format; begins with {data[:16]!r}"


def _bounded_jpeg(data: bytes) -> bytes:
    """A JPEG with only its first EXIF block, which holds the orientation: Pillow joins and parses any number of them.

    Raises `BadImage`, also for so many scans that decoding would take minutes: each scan, even of a few bytes, visits all pixels.
    """
    kept, place, start, blocks, progressive = [], 2, 0, 0, False
    for _ in range(_MOST_SEGMENTS):
        marker = data[place : place + 2]
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            break
        progressive = progressive or marker[1] in (0xC2, 0xCA)
        length = 1 if marker[1] == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker[1] == 0xE1 and data.startswith(b"Exif\0\0", place + 4):
            blocks += 1
            if blocks > 1:
                kept.append(data[start:place])
                start = place + length
        place += length
    else:
        raise BadImage("decompression_bomb", f"more than {_MOST_SEGMENTS:,} segments before its pixels")
    if progressive and (scans := data.count(b"\xff\xda")) > _MOST_SCANS:
        raise BadImage("decompression_bomb", f"{scans:,} scans, more than {_MOST_SCANS}")
    return b"".join([*kept, data[start:]]) if kept else data


def _orientation(image: Image.Image) -> int:
    """EXIF's tag 0x0112 (or XMP's equivalent), from 1 to 8; 5 to 8 are rotated by 90 degrees. No other tag is read."""
    if image.format == "TIFF":  # decoding turned it upright
        return 1
    info, orientation = image.info, 1
    try:
        exif = info.get("exif") or bytes.fromhex("".join(info.get("Raw profile type exif", "").split("\n")[3:]))
        orientation = _orientation_in(exif)
    except (ValueError, AttributeError, struct.error):  # a damaged EXIF block is ignored; the pixels are unaffected
        pass
    if orientation == 1:
        xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        orientation = int(match[1]) if match else 1
    return orientation if orientation in _UPRIGHT else 1


def _orientation_in(exif: bytes) -> int:
    """The orientation in the first directory of an EXIF block, 1 without. Raises `struct.error`."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = ">" if exif[:2] == b"MM" else "<"
    if not exif:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (count,) = struct.unpack_from(f"{order}H", exif, directory)
    for place in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, place)
        if tag == _ORIENTATION:
            return int(struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "B"), exif, place + 8)[0])
    return 1


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, ImageColor.getrgb(background))
            ground.alpha_composite(image)
            image = ground
        return image.convert("RGB")
    except (ValueError, MemoryError) as error:  # Pillow cannot convert these colours, or the image is too large
        raise _damaged(error) from None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits scaled to 8, by the format's white level and not by the brightest pixel of the image.

    Raises `BadImage` if the white level is unknown: floating point outside 0 to 1, 32 bits, signed integers.
    """
    tags, pixels = getattr(image, "tag_v2", {}), np.asarray(image).astype(np.float64)
    white = 4095.0 if tags.get(_BITS) == (12,) else 65535.0
    if image.mode == "F":
        white = 1.0
        if not (pixels.min(initial=0) >= 0 and pixels.max(initial=0) <= 1):  # NaN is neither
            raise BadImage("undecodable", f"floating point from {pixels.min():g} to {pixels.max():g}; only 0 to 1 is known")
    elif image.mode == "I" and image.format != "PPM":
        raise BadImage("undecodable", "integers of 32 bits or with a sign, of which the white level is unknown")
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white
        pixels = white - pixels
    grey = Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)))
    return grey


def is_svg(data: bytes) -> bool:
    """Whether encoded bytes are an SVG, by their first bytes."""
    head = data[:1024].lstrip()
    return head.startswith((b"<?xml", b"<svg", b"<!DOCTYPE svg", b"<!--", b"\xef\xbb\xbf<")) and b"<svg" in data[:65536]


def resize_shorter(image: Image.Image, size: int) -> Image.Image:
    """Shrink until the shorter side has `size` pixels; smaller images stay as they are."""
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
