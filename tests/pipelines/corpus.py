"""A corpus of odd and broken images and captions, built by code, each with what must become of it. No tests in here.

Most images show `QUARTERS`: red, green, blue and yellow fields, wider than high, so that a check of the four colours finds
whatever was turned, mirrored, cut or badly converted, at any size and after any re-encoding.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

Check = Callable[[Image.Image], None]
Colour = tuple[int, int, int]

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
QUARTERS = ((200, 40, 40), (40, 180, 40), (40, 40, 200), (220, 220, 40))  # top left, top right, bottom left, bottom right
GREYS = ((20,) * 3, (90,) * 3, (160,) * 3, (230,) * 3)


@dataclass(frozen=True)
class Case:
    """An encoded image with its caption, and what must become of the two."""

    name: str  # kebab-case, unique
    image: bytes
    caption: str
    reason: str | None  # None: kept; else the reason code in rejected.parquet
    check: Check | None  # asserts on the decoded RGB image


# --- checks ---


def shows(*colours: Colour, tolerance: int = 30) -> Check:
    """Wider than high, with these colours in the middles of its quarters; the tolerance is for lossy formats."""

    def check(image: Image.Image) -> None:
        width, height = image.size
        assert image.mode == "RGB" and width > height, f"{image.mode}, {width} x {height}"
        middles = [(width // 4 + x * width // 2, height // 4 + y * height // 2) for y in (0, 1) for x in (0, 1)]
        found = [image.getpixel(middle) for middle in middles]
        off = np.abs(np.array(found) - np.array(colours)).max()
        assert off <= tolerance, f"shows {found}, not {colours}"

    return check


def begins_with(colour: Colour) -> Check:
    """This colour in the top left corner, whatever the rest: of images that are damaged, or a pixel high."""

    def check(image: Image.Image) -> None:
        found = image.getpixel((0, 0))
        assert np.abs(np.array(found) - np.array(colour)).max() <= 30, f"begins with {found}, not {colour}"

    return check


def has_size(width: int, height: int, colour: Colour) -> Check:
    def check(image: Image.Image) -> None:
        assert image.size == (width, height)
        begins_with(colour)(image)

    return check


# --- images ---


def fields(colours: tuple[Colour, ...] = QUARTERS, width: int = 64, height: int = 48) -> np.ndarray:
    """uint8 [height, width, 3]: a colour a quarter."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for index, colour in enumerate(colours):
        y, x = index // 2 * height // 2, index % 2 * width // 2
        pixels[y : y + height // 2, x : x + width // 2] = colour
    return pixels


def grainy() -> Image.Image:
    """The quarters with a grain, so that there is something to cut in the middle of the encoded bytes."""
    grain = np.random.default_rng(0).integers(-12, 13, (48, 64, 3))
    return Image.fromarray((fields() + grain).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims this size, up to where its pixels would begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


def with_alpha(mode: str = "RGBA") -> Image.Image:
    """The quarters, of which the top right one is transparent."""
    image = CLEAN.convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (32, 0, 64, 24))
    image.putalpha(alpha)
    return image


def palette() -> Image.Image:
    """The quarters as indices 0 to 3."""
    image = Image.fromarray(np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 24, 0), 32, 1), "P")
    image.putpalette([value for colour in QUARTERS for value in colour])
    return image


def turned(orientation: int, back: Image.Transpose, file_format: str = "JPEG", **options: object) -> bytes:
    """The quarters as a camera stores them that was held so; `back` is the inverse of what a viewer must do."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(grainy().transpose(back), file_format, exif=exif, **options)


def ycck_jpeg() -> bytes:
    """A JPEG as print shops make them: CMYK, inverted, as YCbCr and K; Adobe's marker says so with transform 2.

    Pillow cannot write one: as CMYK it gets what must be stored as YCbCr and K (it inverts what it is given), and then the mark.
    """
    ink = np.asarray(CLEAN.convert("RGB")) ^ 255  # cyan, magenta, yellow; no black
    ycc = np.asarray(Image.fromarray(ink).convert("YCbCr"))
    stored = np.dstack([ycc, np.full(ycc.shape[:2], 255, dtype=np.uint8)])
    data = bytearray(encoded(Image.fromarray(stored ^ 255, "CMYK"), "JPEG", quality=95))
    adobe = data.index(b"Adobe")
    assert data[adobe + 11] == 0
    data[adobe + 11] = 2
    return bytes(data)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, depth: int, colour_type: int, stream: bytes, interlaced: bool = False) -> bytes:
    """A PNG by hand; `stream` is the compressed rows, each after a byte for its filter."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    parts = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", stream) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def png_rows(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def interlaced_png() -> bytes:
    """Adam7: seven ever finer images, one after the other (column, row, and their steps)."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b"".join(png_rows(fields()[y::down, x::across]) for x, y, across, down in passes)
    return png_file(64, 48, 8, 2, zlib.compress(rows), interlaced=True)


def bomb(side: int) -> bytes:
    """Some fifty kilobytes of PNG that are `side` x `side` pixels, all black."""
    compressor, row = zlib.compressobj(), b"\0" * (1 + side // 8)
    stream = b"".join(compressor.compress(row * 1000) for _ in range(side // 1000)) + compressor.flush()
    return png_file(side, side, 1, 0, stream)


def icon(png: bytes) -> bytes:
    """An icon that says it is 32 x 24 pixels, whatever the PNG inside says."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 24, 0, 0, 1, 32, len(png), 22) + png


def overwritten(data: bytes, place: int, by: bytes) -> bytes:
    return data[:place] + by + data[place + len(by) :]


def svg(inside: str) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 48">{inside}</svg>'.encode()


CLEAN = Image.fromarray(fields())
GREY = Image.fromarray(fields(GREYS)).convert("L")
JPEG = encoded(grainy(), "JPEG", quality=90)
PROGRESSIVE = encoded(grainy(), "JPEG", quality=90, progressive=True)
PNG = encoded(grainy(), "PNG")
SCAN = JPEG.index(b"\xff\xda")  # where the header ends and the pixels begin
VECTOR = "".join(
    f'<rect x="{index % 2 * 32}" y="{index // 2 * 24}" width="32" height="24" fill="rgb{colour}"/>'
    for index, colour in enumerate(QUARTERS)
)
GREY_16 = (np.asarray(GREY).astype(np.uint16)) * 257
FLOAT = Image.fromarray(np.asarray(GREY).astype(np.float32) / 255)
AS_QUARTERS, AS_GREYS = shows(*QUARTERS), shows(*GREYS)
ON_WHITE = shows(QUARTERS[0], WHITE, *QUARTERS[2:])

KEPT: list[tuple[str, bytes, Check]] = [
    ("jpeg", JPEG, AS_QUARTERS),
    ("jpeg-progressive", PROGRESSIVE, AS_QUARTERS),
    ("jpeg-grey", encoded(GREY, "JPEG"), AS_GREYS),
    ("jpeg-cmyk", encoded(CLEAN.convert("CMYK"), "JPEG", quality=95), AS_QUARTERS),
    ("jpeg-ycck", ycck_jpeg(), AS_QUARTERS),
    ("jpeg-upside-down", turned(3, Image.Transpose.ROTATE_180), AS_QUARTERS),
    ("jpeg-turned-right", turned(6, Image.Transpose.ROTATE_90), AS_QUARTERS),
    ("jpeg-turned-left", turned(8, Image.Transpose.ROTATE_270), AS_QUARTERS),
    ("jpeg-mirrored-on-its-side", turned(5, Image.Transpose.TRANSPOSE), AS_QUARTERS),
    ("jpeg-pair-of-a-phone", encoded(grainy(), "MPO", save_all=True, append_images=[GREY.convert("RGB")]), AS_QUARTERS),
    ("jpeg-exif-corrupt", encoded(grainy(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03"), AS_QUARTERS),
    ("jpeg-trailing-garbage", JPEG + b"\x00garbage\xff" * 100, AS_QUARTERS),
    # The decoder finds its way back and says nothing: what stands before the damage is right.
    ("jpeg-garbage-in-the-scan", overwritten(JPEG, len(JPEG) * 2 // 3, bytes(30)), begins_with(QUARTERS[0])),
    # An end marker in the middle is an end: the rest of the image is grey, and nothing tells.
    ("jpeg-early-end", overwritten(JPEG, len(JPEG) * 2 // 3, b"\xff\xd9"), begins_with(QUARTERS[0])),
    ("png-rgb", PNG, AS_QUARTERS),
    ("png-rgba", encoded(with_alpha(), "PNG"), ON_WHITE),
    ("png-grey", encoded(GREY, "PNG"), AS_GREYS),
    ("png-grey-alpha", encoded(with_alpha("L"), "PNG"), shows((83,) * 3, WHITE, (58,) * 3, (200,) * 3)),
    ("png-1-bit", encoded(GREY.point(lambda value: 255 * (value > 128)).convert("1"), "PNG"), shows(BLACK, BLACK, WHITE, WHITE)),
    ("png-palette", encoded(palette(), "PNG"), AS_QUARTERS),
    ("png-palette-transparent", encoded(palette(), "PNG", transparency=1), ON_WHITE),
    ("png-palette-alphas", encoded(palette(), "PNG", transparency=b"\xff\x00\xff\xff"), ON_WHITE),
    ("png-colour-key", encoded(CLEAN, "PNG", transparency=QUARTERS[1]), ON_WHITE),
    ("png-16-bit-grey", encoded(Image.fromarray(GREY_16), "PNG"), AS_GREYS),
    (
        "png-16-bit-rgb",
        png_file(64, 48, 16, 2, zlib.compress(png_rows((fields().astype(np.uint16) * 257).astype(">u2")))),
        AS_QUARTERS,
    ),
    ("png-interlaced", interlaced_png(), AS_QUARTERS),
    # It claims to be animated, with no frames.
    ("png-animation-invalid", PNG[:33] + png_chunk(b"acTL", bytes(8)) + PNG[33:], AS_QUARTERS),
    ("png-turned-right", turned(6, Image.Transpose.ROTATE_90, "PNG"), AS_QUARTERS),
    # The checksum of the pixels is wrong, the pixels are not: Pillow does not look at it.
    ("png-bad-checksum", overwritten(PNG, len(PNG) - 16, b"\0\0\0\0"), AS_QUARTERS),
    ("gif", encoded(palette(), "GIF"), AS_QUARTERS),
    ("gif-animated", encoded(CLEAN, "GIF", save_all=True, append_images=[GREY.convert("RGB")]), AS_QUARTERS),
    ("webp", encoded(grainy(), "WEBP", quality=90), AS_QUARTERS),
    ("webp-lossless", encoded(grainy(), "WEBP", lossless=True), AS_QUARTERS),
    ("webp-alpha", encoded(with_alpha(), "WEBP", lossless=True), ON_WHITE),
    ("webp-animated", encoded(CLEAN, "WEBP", save_all=True, append_images=[GREY.convert("RGB")], lossless=True), AS_QUARTERS),
    ("tiff", encoded(grainy(), "TIFF"), AS_QUARTERS),
    ("tiff-turned-right", turned(6, Image.Transpose.ROTATE_90, "TIFF", compression="tiff_lzw"), AS_QUARTERS),
    ("tiff-16-bit", encoded(Image.fromarray(GREY_16), "TIFF"), AS_GREYS),
    ("tiff-float", encoded(FLOAT, "TIFF"), AS_GREYS),
    ("tiff-cmyk", encoded(CLEAN.convert("CMYK"), "TIFF"), AS_QUARTERS),
    ("bmp", encoded(grainy(), "BMP"), AS_QUARTERS),
    ("ico", encoded(CLEAN, "ICO", sizes=[(64, 48)]), AS_QUARTERS),
    ("ico-of-another-size", icon(encoded(CLEAN, "PNG")), has_size(64, 48, QUARTERS[0])),
    ("avif", encoded(grainy(), "AVIF", quality=90), AS_QUARTERS),
    ("svg", svg(VECTOR), AS_QUARTERS),
    ("svg-with-bom", b"\xef\xbb\xbf" + svg(VECTOR), AS_QUARTERS),
    ("one-pixel", encoded(Image.new("RGB", (1, 1), (10, 200, 30)), "PNG"), has_size(1, 1, (10, 200, 30))),
    ("very-wide", encoded(Image.new("RGB", (2000, 1), (200, 100, 0)), "PNG"), has_size(2000, 1, (200, 100, 0))),
    # A PNG may be longer than a JPEG (65,500 pixels) or a WebP (16,383) can be.
    ("wider-than-a-jpeg-can-be", encoded(Image.new("L", (70_000, 2), 120), "PNG"), has_size(70_000, 2, (120,) * 3)),
]

REJECTED: list[tuple[str, bytes, str]] = [
    ("jpeg-truncated", JPEG[: len(JPEG) // 2], "truncated"),
    ("jpeg-progressive-truncated", PROGRESSIVE[: len(PROGRESSIVE) // 2], "truncated"),
    ("jpeg-header-cut", JPEG[:200], "truncated"),
    ("jpeg-header-only", JPEG[:SCAN], "undecodable"),
    ("jpeg-first-bytes-only", JPEG[:4], "undecodable"),
    ("png-truncated", PNG[: len(PNG) // 2], "truncated"),
    ("png-bad-header-checksum", overwritten(PNG, 29, b"\0\0\0\0"), "undecodable"),
    ("png-bad-pixels", overwritten(PNG, len(PNG) // 2, bytes(50)), "undecodable"),
    ("png-bomb", bomb(20_000), "decompression_bomb"),
    ("png-bomb-small", bomb(10_000), "decompression_bomb"),  # Pillow itself would only warn
    ("ico-bomb", icon(bomb(10_000)), "decompression_bomb"),
    ("tiff-truncated", encoded(grainy(), "TIFF")[:3000], "truncated"),
    ("bmp-truncated", encoded(grainy(), "BMP")[:3000], "truncated"),
    ("webp-truncated", encoded(grainy(), "WEBP")[:300], "undecodable"),
    ("avif-truncated", encoded(grainy(), "AVIF")[:500], "undecodable"),
    ("svg-broken", svg("<rect"), "svg"),
    ("svg-empty", b'<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>', "svg"),
    ("web-page", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "html"),
    ("web-page-after-blanks", b"\xef\xbb\xbf\r\n  <HTML lang='en'><svg></svg></HTML>", "html"),
    ("error-as-json", b'{"error": {"code": 403, "message": "Access denied"}}', "undecodable"),
    ("error-as-xml", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>', "undecodable"),
    ("text-file", b"This is no image.\n" * 20, "undecodable"),
    ("no-bytes", b"", "empty"),
    ("one-byte", b"\xff", "undecodable"),
]

CAPTIONS: list[tuple[str, str, str | None]] = [
    ("hebrew", "\u05db\u05dc\u05d1 \u05e8\u05e5 \u05d1\u05e4\u05d0\u05e8\u05e7", None),
    ("arabic", "\u0642\u0637\u0629 \u0639\u0644\u0649 \u0627\u0644\u0633\u0631\u064a\u0631", None),
    ("chinese-and-japanese", "\u4e00\u53ea\u732b \u72ac\u304c\u8d70\u308b", None),
    ("emoji-joined", "a family \U0001f468\u200d\U0001f469\u200d\U0001f467 and a flag \U0001f3f3\ufe0f\u200d\U0001f308", None),
    ("combining-accents", "cafe\u0301 cre\u0300me bru\u0302le\u0301e", None),
    ("many-words", "word " * 9_999 + "word", "caption_too_long"),
    ("words-one-too-many", " ".join(["word"] * 1001), "caption_too_long"),
    ("words-just-enough", " ".join(["word"] * 1000), None),
    ("one-long-word", "a" * 2000, None),
    ("empty", "", "empty_caption"),
    ("blanks", " \t\n ", "empty_caption"),
    ("no-break-blanks", "\u00a0\u2003\u3000", "empty_caption"),
    # Not white space to Unicode, nor to Python: kept, as any text that only looks empty.
    ("zero-width-only", "\u200b\u200b", None),
    ("na", "NA", None),
    ("null", "null", None),
    ("none", "None", None),
    ("nan", "nan", None),
    ("number", "1e5", None),
    ("true", "true", None),
    ("padded", "  padded  ", None),
    ("newline", "first line\nsecond line", None),
    ("nul-character", "before\x00after", "bad_row"),
    ("markup", "<b>bold</b> &amp; a <person>", None),
    ("quotes-and-commas", 'she said "one, two", then\ttab', None),
]

CASES: list[Case] = [
    *(Case(name, image, f"an image, {name}", None, check) for name, image, check in KEPT),
    *(Case(name, image, f"an image, {name}", reason, None) for name, image, reason in REJECTED),
    *(Case(f"caption-{name}", JPEG, caption, reason, None if reason else AS_QUARTERS) for name, caption, reason in CAPTIONS),
    # The bytes decide what an image is, never its name.
    Case("jpeg-named-png.png", JPEG, "a JPEG whose name says PNG", None, AS_QUARTERS),
]
