"""Images: every way to be broken has a reason, and pixels come out as they should."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.dataset.images import BadImage, decode, encode, open_image, resize_shorter
from pipelines.dataset.views import Augment, train_view
from pipelines.program.randomness import generator
from tests.pipelines.corpus import encoded, png_header
from tests.pipelines.pixels import STORED, UPRIGHT, exif, gradient, noise, oriented_jpeg

# --- decoding ---


@pytest.mark.parametrize(
    ("background", "alpha", "expected"),
    [
        ("white", 0, (255, 255, 255)),
        ("white", 128, (255, 127, 127)),
        ("#0000ff", 128, (128, 0, 127)),
        ("#0000ff", 0, (0, 0, 255)),
        ("rgb(10, 20, 30)", 255, (255, 0, 0)),
    ],
)
def test_transparency_is_composited_on_the_background(background: str, alpha: int, expected: tuple) -> None:
    """Half-transparent red: alpha * 255 + (1 - alpha) * background, channel by channel."""
    image = decode(encoded(Image.new("RGBA", (3, 2), (255, 0, 0, alpha))), background)
    assert image.mode == "RGB" and image.size == (3, 2)
    assert image.getpixel((1, 1)) == expected


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(Image.merge("LA", [Image.new("L", (2, 1), 100), Image.new("L", (2, 1), 0)])), (0, 128, 0), (0, 128, 0)),
        (encoded(palette_with_transparency(), transparency=1), (200, 0, 0), (0, 128, 0)),
        (encoded(palette_with_transparency(), "GIF", transparency=0), (0, 128, 0), (0, 0, 200)),
        (encoded(palette_with_transparency()), (200, 0, 0), (0, 0, 200)),
        (encoded(Image.new("RGB", (2, 1), (9, 8, 7)), transparency=(9, 8, 7)), (0, 128, 0), (0, 128, 0)),
        (encoded(Image.new("L", (2, 1), 77)), (77, 77, 77), (77, 77, 77)),
        (encoded(Image.new("1", (2, 1), 1)), (255, 255, 255), (255, 255, 255)),
        (encoded(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "TIFF"), (255, 0, 0), (255, 0, 0)),
    ],
    ids=["LA", "palette", "GIF", "palette-opaque", "colour-key", "L", "1", "CMYK"],
)
def test_every_mode_becomes_rgb(data: bytes, left: tuple, right: tuple) -> None:
    image = decode(data, "green")
    assert image.mode == "RGB"
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == (left, right)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    pixels = np.array([[0, 257, 51500, 65535]], dtype=np.uint16)
    image = decode(encoded(Image.fromarray(pixels)))
    assert [image.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 200, 255)]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    image = decode(encoded(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG", quality=95))
    red, green, blue = image.getpixel((8, 8))
    assert red > 245 and green < 70 and blue < 70


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})],
    ids=["png", "webp", "tiff", "tiff-lzw"],
)
def test_the_orientation_is_applied(file_format: str, options: dict, orientation: int) -> None:
    """To the pixels, and to the size that is known before them."""
    pixels = noise(4, 6)
    opened = open_image(encoded(Image.fromarray(pixels), file_format, exif=exif(orientation), **options))
    expected = UPRIGHT[orientation](pixels)
    assert opened.size == (expected.shape[1], expected.shape[0]) and opened.format == file_format
    assert np.array_equal(np.asarray(opened.rgb()), expected)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("written", ["exif", "xmp", "pair"])
def test_the_orientation_of_a_jpeg_is_applied(written: str, orientation: int) -> None:
    """Three ways in which cameras and programs write it; a pair is a phone's image with its depth or brightness behind it."""
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(gradient(160, 96)))))
    options: dict[str, object] = {"exif": exif(orientation)}
    if written == "xmp":
        options = {"xmp": f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()}
    elif written == "pair":
        options |= {"save_all": True, "append_images": [Image.new("RGB", stored.size)]}
    opened = open_image(encoded(stored, "MPO" if written == "pair" else "JPEG", quality=95, **options))
    assert opened.size == (160, 96)
    assert np.abs(np.asarray(opened.rgb()).astype(int) - np.asarray(gradient(160, 96))).mean() < 3


@pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that `pipelines.dataset.images` sets; see test_corpus.py
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("block", [b"garbage", b"II*\0" + b"\xff" * 40], ids=["no-header", "cut"])
def test_a_damaged_exif_block_harms_no_pixel(block: bytes, file_format: str) -> None:
    data = encoded(gradient(64, 48), file_format, exif=b"Exif\0\0" + block)
    assert open_image(data).size == decode(data).size == (64, 48)


def damaged_avif() -> bytes:
    """An AVIF whose primary item is named by no known box: its decoder raises an error of an unusual class."""
    return encoded(Image.fromarray(noise()), "AVIF").replace(b"pitm", b"xxxx")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "html"),
        (b"\xef\xbb\xbf \r\n\t<HTML lang='en'><svg></svg></HTML>", "html"),
        (b"<htmlike>", "undecodable"),
        (b"GIF89a", "undecodable"),
        (encoded(Image.fromarray(noise()), "JPEG")[:300], "truncated"),
        (encoded(Image.fromarray(noise()))[:1000], "truncated"),
        (damaged_avif(), "undecodable"),
        (png_header(10_000, 10_000), "decompression_bomb"),
        (png_header(60_000, 60_000), "decompression_bomb"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="4"><rect', "svg"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"></svg>', "svg"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4">\xff</svg>', "svg"),
    ],
    ids=[
        "empty",
        "html",
        "html-after-blanks",
        "no-html",
        "header-only",
        "jpeg-cut",
        "png-cut",
        "avif",
        "large",
        "bomb",
        "svg-cut",
        "svg-no-size",
        "svg-not-utf8",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason and caught.value.detail


def test_what_is_cut_off_is_missed_even_where_pillow_was_told_to_make_it_up() -> None:
    """`LOAD_TRUNCATED_IMAGES` fills up with grey; other libraries set it for the whole process."""
    program = """
import sys
from PIL import ImageFile
ImageFile.LOAD_TRUNCATED_IMAGES = True
from pipelines.dataset.images import BadImage, decode
try:
    decode(sys.stdin.buffer.read())
except BadImage as bad:
    print(bad.reason)
"""
    cut = encoded(Image.fromarray(noise()), "JPEG")[:-200]
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], input=cut, capture_output=True, check=True, cwd=root)
    assert done.stdout.decode().strip() == "truncated"


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (encoded(Image.fromarray(noise()), "JPEG"), True),
        (encoded(Image.fromarray(noise()), "WEBP"), True),
        (encoded(Image.fromarray(noise()), "JPEG", exif=exif(3)), False),
        (encoded(Image.fromarray(noise()).convert("L"), "JPEG"), False),
        (encoded(Image.fromarray(noise(channels=4)), "WEBP"), False),
        (encoded(Image.new("RGB", (2, 1), (9, 8, 7)), transparency=(9, 8, 7)), False),
        (encoded(Image.fromarray(noise()), "WEBP", save_all=True, append_images=[Image.new("RGB", (32, 24))]), False),
    ],
    ids=["jpeg", "webp", "turned", "grey", "alpha", "colour-key", "animated"],
)
def test_a_image_is_plain_if_decoding_changes_nothing(data: bytes, plain: bool) -> None:
    assert open_image(data).plain is plain


# --- decoding smaller ---


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("least", "expected"),
    [
        ((101, 57), (102, 58)),
        ((101, 30), (102, 58)),
        ((30, 57), (102, 58)),
        ((100.5, 56.5), (102, 58)),
        ((103, 30), (203, 115)),
        ((30, 59), (203, 115)),
        ((40, 20), (51, 29)),
        ((1, 1), (51, 29)),
        ((300, 10), (405, 229)),
        ((4000, 4000), (405, 229)),
        (None, (405, 229)),
    ],
)
def test_a_jpeg_comes_out_smaller_but_never_below_the_least(least: tuple | None, expected: tuple, orientation: int) -> None:
    """405 x 229 pixels as displayed, however they are stored."""
    data = oriented_jpeg(np.asarray(gradient(405, 229)), orientation)
    opened = open_image(data)
    assert opened.size == (405, 229)
    assert opened.rgb(least).size == decode(data, least=least).size == expected


def test_the_first_of_a_pair_comes_out_smaller_too() -> None:
    """Phones write these; most of their images would otherwise be decoded whole."""
    pair = encoded(gradient(160, 96), "MPO", save_all=True, append_images=[Image.new("RGB", (160, 96), "white")])
    image = decode(pair, least=(40, 20))
    assert image.size == (40, 24)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(gradient(160, 96))[1::4, 1::4]).mean() < 4


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
def test_other_formats_come_out_whole(file_format: str) -> None:
    assert decode(encoded(gradient(200, 100), file_format), least=(10, 10)).size == (200, 100)


def test_the_colours_of_a_smaller_cmyk_jpeg_stay() -> None:
    image = decode(encoded(Image.new("CMYK", (160, 160), (0, 200, 200, 0)), "JPEG", quality=95), least=(20, 20))
    red, green, blue = image.getpixel((8, 8))
    assert image.size == (20, 20) and red > 245 and green < 70 and blue < 70


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_truncated_however_small_it_is_wanted(progressive: bool) -> None:
    data = encoded(Image.fromarray(noise(320, 320)), "JPEG", progressive=progressive)
    cut = open_image(data[: len(data) // 2])
    with pytest.raises(BadImage) as caught:
        cut.rgb((20, 20))
    assert caught.value.reason == "truncated"
    with pytest.raises(BadImage):
        train_view(open_image(data[: len(data) // 2]), 20, Augment(), generator("view", 0))


ORIGINALS = [
    encoded(Image.fromarray(noise(channels=4)), "PNG"),
    encoded(Image.fromarray(noise()), "JPEG", exif=Image.Exif()),
    encoded(Image.fromarray(noise()).convert("P"), "GIF"),
    encoded(Image.fromarray(noise(channels=4)), "WEBP"),
    encoded(Image.fromarray(noise()), "TIFF"),
    encoded(Image.fromarray(noise()), "BMP"),
    encoded(Image.fromarray(noise()), "AVIF"),
    b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20" fill="red"/></svg>',
]


@pytest.mark.filterwarnings("ignore")  # decoders warn about what they find
@settings(max_examples=300, derandomize=True)
@given(
    original=st.sampled_from(ORIGINALS),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    length=st.none() | st.integers(1, 400),
)
def test_damaged_bytes_give_an_image_or_a_reason(original: bytes, damage: list[tuple[int, int]], length: int | None) -> None:
    """No other exception may escape: one bad file would stop the preparation of millions."""
    data = bytearray(original)
    for position, value in damage:
        data[position % len(data)] = value
    try:
        assert decode(bytes(data[:length])).mode == "RGB"
    except BadImage as bad:
        assert bad.reason


# --- resizing and encoding ---


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((64, 32), 16, (32, 16)),
        ((30, 90), 15, (15, 45)),
        ((100, 33), 32, (97, 32)),
        ((8, 8), 16, (8, 8)),
        ((900, 16), 16, (900, 16)),
    ],
)
def test_resizing_sets_the_shorter_side_and_never_enlarges(size: tuple, target: int, expected: tuple) -> None:
    assert resize_shorter(Image.new("RGB", size), target).size == expected


def test_encoding_png_is_lossless_and_the_others_are_close() -> None:
    pixels = np.asarray(gradient(64, 48))
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(decode(encode(image, "png", 92))), pixels)
    for file_format in ("jpeg", "webp"):
        data = encode(image, file_format, 92)
        assert Image.open(io.BytesIO(data)).format == file_format.upper()
        assert np.abs(np.asarray(decode(data)).astype(int) - pixels).mean() < 5
        assert len(encode(image, file_format, 30)) < len(data)
