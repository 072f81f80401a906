"""Pictures: every way to be broken has a reason, pixels come out as they should, and a view is a function of its key."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.images import Augment, BadImage, decode, encode, eval_view, resize_shorter, train_view
from pipelines.randomness import generator


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def gradient(width: int, height: int) -> Image.Image:
    """Red is x, green is y: a view of it tells which part it shows."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))


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
    picture = decode(encoded(Image.new("RGBA", (3, 2), (255, 0, 0, alpha))), background)
    assert picture.mode == "RGB" and picture.size == (3, 2)
    assert picture.getpixel((1, 1)) == expected


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
    picture = decode(data, "green")
    assert picture.mode == "RGB"
    assert (picture.getpixel((0, 0)), picture.getpixel((1, 0))) == (left, right)


def test_sixteen_bits_are_scaled_to_eight() -> None:
    pixels = np.array([[0, 257, 51500, 65535]], dtype=np.uint16)
    picture = decode(encoded(Image.fromarray(pixels)))
    assert [picture.getpixel((x, 0)) for x in range(4)] == [(v, v, v) for v in (0, 1, 200, 255)]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    picture = decode(encoded(Image.new("CMYK", (16, 16), (0, 200, 200, 0)), "JPEG", quality=95))
    red, green, blue = picture.getpixel((8, 8))
    assert red > 245 and green < 70 and blue < 70


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),  # stored on its side: a quarter turn clockwise puts it right
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_the_exif_orientation_is_applied(orientation: int, upright) -> None:
    pixels = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(pixels), exif=exif))), upright(pixels))


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims this size, up to where its pixels would begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


def damaged_avif() -> bytes:
    """An AVIF whose primary item is named by no known box: its decoder raises an error of an unusual class."""
    return encoded(Image.fromarray(noise()), "AVIF").replace(b"pitm", b"xxxx")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404 not found</body></html>", "undecodable"),
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
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason and caught.value.detail


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
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    original=st.sampled_from(ORIGINALS),
    damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
    length=st.none() | st.integers(1, 400),
)
def test_damaged_bytes_give_a_picture_or_a_reason(original: bytes, damage: list[tuple[int, int]], length: int | None) -> None:
    """No other exception may escape: one bad file would stop the preparation of millions."""
    data = bytearray(original)
    for position, value in damage:
        data[position % len(data)] = value
    try:
        assert decode(bytes(data[:length])).mode == "RGB"
    except BadImage as bad:
        assert bad.reason


def test_a_vector_picture_is_rendered_large_with_its_own_proportions() -> None:
    inside = '<rect width="40" height="20" fill="#ff0000"/><rect width="20" height="20" fill="#0000ff"/>'
    for size in ('width="40" height="20"', 'viewBox="0 0 40 20"'):
        picture = decode(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inside}</svg>'.encode())
        assert picture.size == (1024, 512)
        assert picture.getpixel((200, 256)) == (0, 0, 255) and picture.getpixel((800, 256)) == (255, 0, 0)
    tall = decode(
        b'<?xml version="1.0"?>\n<!-- c --><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 40"></svg>', "#00ff00"
    )
    assert tall.size == (512, 1024) and tall.getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize(("width", "height"), [(1, 400), (400, 1), (1, 100_000)])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_thin_vector_picture_is_no_bomb(width: int, height: int) -> None:
    """A file of a hundred bytes must not become a picture of a hundred million pixels, not even to learn its proportions."""
    with pytest.raises(BadImage) as caught:
        decode(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"></svg>'.encode())
    assert caught.value.reason == "svg"


@pytest.mark.parametrize(("width", "height", "size"), [(40, 20, (48, 24)), (20, 30, (24, 36)), (7, 7, (24, 24))])
def test_a_vector_picture_is_rendered_at_the_size_that_is_kept(width: int, height: int, size: tuple) -> None:
    data = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"></svg>'.encode()
    assert decode(data, svg_size=24).size == size


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
    picture = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(decode(encode(picture, "png", 92))), pixels)
    for file_format in ("jpeg", "webp"):
        data = encode(picture, file_format, 92)
        assert Image.open(io.BytesIO(data)).format == file_format.upper()
        assert np.abs(np.asarray(decode(data)).astype(int) - pixels).mean() < 5
        assert len(encode(picture, file_format, 30)) < len(data)


# --- views ---


@pytest.mark.parametrize(("width", "height"), [(256, 256), (256, 128)])
def test_a_training_view_is_a_crop_of_the_chosen_area_and_ratio(width: int, height: int) -> None:
    """On a picture whose colours are coordinates the crop's corners can be read back from the view."""
    picture, size, augment = gradient(width, height), 32, Augment(crop_scale=(0.2, 0.6), crop_ratio=(0.8, 1.25))
    shares, ratios, mirrored = [], [], []
    for sample in range(200):
        view = train_view(picture, size, augment, generator("view", 0, 0, sample)).astype(float)
        assert view.shape == (3, size, size)
        # Edges are blurred against the border, so slopes are read from the inside.
        slope_x = (view[0, size // 2, -5] - view[0, size // 2, 4]) / (size - 9)
        slope_y = (view[1, -5, size // 2] - view[1, 4, size // 2]) / (size - 9)
        mirrored.append(slope_x < 0)
        w, h = abs(slope_x) * size, slope_y * size
        shares.append(w * h / (width * height))
        ratios.append(w / h)
    assert 0.18 < min(shares) < 0.26 and 0.54 < max(shares) < 0.63
    assert 0.76 < min(ratios) < 0.88 and 1.13 < max(ratios) < 1.31
    assert 70 < sum(mirrored) < 130


def test_views_are_a_function_of_the_key_alone() -> None:
    picture, augment = Image.fromarray(noise(40, 40)), Augment()
    first = train_view(picture, 24, augment, generator("view", 3, 1, 7))
    np.random.seed(1)
    assert np.array_equal(first, train_view(picture, 24, augment, generator("view", 3, 1, 7)))
    for key in [(4, 1, 7), (3, 2, 7), (3, 1, 8)]:
        assert not np.array_equal(first, train_view(picture, 24, augment, generator("view", *key)))


def test_without_flip_nothing_is_mirrored_and_the_whole_may_be_shown() -> None:
    picture, augment = gradient(64, 64), Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    for sample in range(8):
        assert np.array_equal(train_view(picture, 64, augment, generator("view", sample)), np.asarray(picture).transpose(2, 0, 1))


def test_a_crop_that_never_fits_falls_back_to_the_whole_picture() -> None:
    """A very wide picture holds no square of its whole area."""
    picture, augment = gradient(200, 10), Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    view = train_view(picture, 20, augment, generator("view", 0))
    assert view[0, 10, 0] < 12 and view[0, 10, -1] > 188


def test_the_evaluation_view_is_the_centre_square() -> None:
    pixels = noise(20, 40)
    assert np.array_equal(eval_view(Image.fromarray(pixels), 20), pixels[:, 10:30].transpose(2, 0, 1))
    assert np.array_equal(eval_view(Image.fromarray(pixels.transpose(1, 0, 2)), 20), pixels[:, 10:30].transpose(2, 1, 0))
    small = eval_view(gradient(256, 128), 32)
    assert small.shape == (3, 32, 32) and small.dtype == np.uint8
    # Columns 64 to 192 and all rows: four pixels each, whose middles are at 64 + 4 i + 1.5.
    assert np.abs(small[0, 16, 2:-2].astype(float) - (65.5 + 4 * np.arange(2, 30))).max() <= 1
    assert np.abs(small[1, 2:-2, 16].astype(float) - (1.5 + 4 * np.arange(2, 30))).max() <= 1


@pytest.mark.parametrize("changed", [{"crop_scale": (0.5,)}, {"crop_scale": "half"}, {"flip": "perhaps"}])
def test_augmentation_settings_of_a_wrong_kind_are_refused(changed: dict) -> None:
    with pytest.raises(ValueError, match=r"crop_scale|flip"):
        Augment.model_validate(changed)
