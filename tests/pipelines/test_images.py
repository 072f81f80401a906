"""Images: every way to be broken has a reason, and pixels come out as they should."""

import base64
import gzip
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.dataset.images import BadImage, decode, encode, open_image, resize_shorter
from pipelines.dataset.views import Augment, train_view
from pipelines.program.randomness import generator
from tests.pipelines.corpus import encoded


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
@pytest.mark.parametrize("way", ["exif", "xmp", "pair"])
def test_the_orientation_of_a_jpeg_is_applied(way: str, orientation: int) -> None:
    """Three ways in which cameras and programs write it; a pair is a phone's image with its depth or brightness behind it."""
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(gradient(160, 96)))))
    options: dict[str, object] = {"exif": exif(orientation)}
    if way == "xmp":
        options = {"xmp": f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()}
    elif way == "pair":
        options |= {"save_all": True, "append_images": [Image.new("RGB", stored.size)]}
    opened = open_image(encoded(stored, "MPO" if way == "pair" else "JPEG", quality=95, **options))
    assert opened.size == (160, 96)
    assert np.abs(np.asarray(opened.rgb()).astype(int) - np.asarray(gradient(160, 96))).mean() < 3


@pytest.mark.filterwarnings("ignore")  # pytest undoes the filter that `pipelines.dataset.images` sets; see test_corpus.py
@pytest.mark.parametrize("file_format", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("block", [b"garbage", b"II*\0" + b"\xff" * 40], ids=["no-header", "cut"])
def test_a_damaged_exif_block_harms_no_pixel(block: bytes, file_format: str) -> None:
    data = encoded(gradient(64, 48), file_format, exif=b"Exif\0\0" + block)
    assert open_image(data).size == decode(data).size == (64, 48)


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


def test_a_vector_image_is_rendered_large_with_its_own_proportions() -> None:
    inside = '<rect width="40" height="20" fill="#ff0000"/><rect width="20" height="20" fill="#0000ff"/>'
    for size in ('width="40" height="20"', 'viewBox="0 0 40 20"'):
        image = decode(f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{inside}</svg>'.encode())
        assert image.size == (1024, 512)
        assert image.getpixel((200, 256)) == (0, 0, 255) and image.getpixel((800, 256)) == (255, 0, 0)
    tall = decode(
        b'<?xml version="1.0"?>\n<!-- c --><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 40"></svg>', "#00ff00"
    )
    assert tall.size == (512, 1024) and tall.getpixel((0, 0)) == (0, 255, 0)


@pytest.mark.parametrize(("width", "height"), [(1, 400), (400, 1), (1, 100_000)])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_thin_vector_image_is_no_bomb(width: int, height: int) -> None:
    """A file of a hundred bytes must not become an image of a hundred million pixels, not even to learn its proportions."""
    with pytest.raises(BadImage) as caught:
        decode(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"></svg>'.encode())
    assert caught.value.reason == "svg"


@pytest.mark.parametrize(("width", "height", "size"), [(40, 20, (48, 24)), (20, 30, (24, 36)), (7, 7, (24, 24))])
def test_a_vector_image_is_rendered_at_the_size_that_is_kept(width: int, height: int, size: tuple) -> None:
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
    image = Image.fromarray(pixels)
    assert np.array_equal(np.asarray(decode(encode(image, "png", 92))), pixels)
    for file_format in ("jpeg", "webp"):
        data = encode(image, file_format, 92)
        assert Image.open(io.BytesIO(data)).format == file_format.upper()
        assert np.abs(np.asarray(decode(data)).astype(int) - pixels).mean() < 5
        assert len(encode(image, file_format, 30)) < len(data)


# --- SVG: units, and what it may not ask for ---

HEAD = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
SQUARE = '<rect x="5mm" y="5mm" width="10mm" height="10mm" fill="red"/>'


def svg_of(inside: str, size: str = 'width="40" height="40"', before: str = "") -> bytes:
    return f"{before}<svg {HEAD} {size}>{inside}</svg>".encode()


def svg_refused(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, svg_size=40)
    assert caught.value.reason == "svg"
    return caught.value.detail


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ('width="400pt" height="300pt"', 4 / 3),
        ('width="80mm" height="60mm"', 4 / 3),
        ('width="8cm" height="60mm"', 4 / 3),
        ('width="2in" height="1in"', 2),
        ('width="1in" height="72pt"', 1),
        ('width="1in" height="25.4mm"', 1),
        ('width="96" height="96px"', 1),
        ('width="6pc" height="1in"', 1),
        ('width="20em" height="10em"', 2),
        ('width="100%" height="100%" viewBox="0 0 30 20"', 3 / 2),
        ('viewBox="0 0 30 20"', 3 / 2),
        ('width="60" viewBox="0 0 30 20"', 3 / 2),
        ('width="30" height="2in"', 30 / 192),
        ('width=" 80mm " height="6CM"', 4 / 3),
        ('width="320Q" height="60mm"', 4 / 3),
        ('width="1e2pt" height="1e2PT"', 1),
        ('style="width:80mm; height : 60mm"', 4 / 3),
        ('width="9" height="9" style="max-width:9in;width:80mm;height:60mm"', 4 / 3),
        ('width="80" height="60" style="width:100%"', 4 / 3),
        ('width="50vw" height="auto" viewBox="0 0 30 20"', 3 / 2),
    ],
)
def test_lengths_of_an_svg_are_those_of_css(size: str, ratio: float) -> None:
    """An inch has 96 pixels, 72 points, 6 picas, 25.4 millimetres; without a size the view box is it."""
    width, height = decode(svg_of(SQUARE, size), svg_size=240).size
    assert min(width, height) == 240 and width / height == pytest.approx(ratio, rel=0.01)


def test_shapes_in_physical_units_are_drawn_where_they_are() -> None:
    """A square of 10 mm in the middle of one of 20 mm: a quarter of it is red."""
    red = np.asarray(decode(svg_of(SQUARE, 'width="20mm" height="20mm"'), svg_size=200))[..., 1] < 128
    assert red[51:149, 51:149].all() and red.sum() == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("length", ["10MM", " 10mm", "40Q", "1Cm"])
def test_shapes_are_drawn_however_their_lengths_are_written(length: str) -> None:
    """resvg takes what it cannot read for 0: the shape would be left out, and the image kept without it."""
    shape = f'<rect width="{length}" height="{length}" fill="red"/>'
    red = np.asarray(decode(svg_of(shape, 'width="20mm" height="20mm"'), svg_size=200))[..., 1] < 128
    assert red.sum() == pytest.approx(10_000, rel=0.05)


@pytest.mark.parametrize("width", ["20vw", "20,5mm", "calc(1in + 1px)"])
def test_an_svg_whose_size_nobody_knows_is_none(width: str) -> None:
    """resvg would take it for 100 %, and the drawing would be as wide as that makes it."""
    assert f"its width is '{width}'" in svg_refused(svg_of(SQUARE, f'width="{width}" height="10mm"'))


def test_an_svg_is_read_in_the_encoding_that_it_names() -> None:
    for encoding in ("ISO-8859-1", "windows-1252"):
        data = f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + svg_of("<desc>Caf\u00e9</desc>").replace(
            "\u00e9".encode(), b"\xe9"
        )
        assert decode(data, svg_size=40).size == (40, 40)
    assert svg_refused(b'<?xml version="1.0" encoding="klingon"?>' + svg_of("").replace(b"</svg>", b"<!--\xe9--></svg>"))
    assert svg_refused(svg_of("").replace(b"</svg>", b"<!--\xe9--></svg>"))


@pytest.mark.parametrize("namespace", ['xmlns="http://www.w3.org/2000/svg"', ""])  # resvg draws an SVG without one, as in HTML
@pytest.mark.parametrize("element", ["image", "feImage"])
@pytest.mark.parametrize("attribute", ["href", "xlink:href"])
@pytest.mark.parametrize("written", ["{file}", "{name}", "file://{file}", "FILE:{file}", "&secret;", "http://localhost:1/{name}"])
def test_an_svg_shows_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: str, element: str, attribute: str, written: str
) -> None:
    """A secret beside it, as a relative path and as others: what it would show is not there, so it is no whole image."""
    for name in ("secret.png", "secret.svg"):
        secret = tmp_path / name
        secret.write_bytes(encoded(Image.new("RGB", (40, 40), "lime")) if name.endswith("png") else svg_of(SQUARE))
        monkeypatch.chdir(tmp_path)
        inside = f'<{element} {attribute}="{written.format(file=secret, name=name)}" width="40" height="40"/>'
        if element == "feImage":
            inside = f'<filter id="f">{inside}</filter><rect width="40" height="40" filter="url(#f)"/>'
        entity = f'<!DOCTYPE svg [<!ENTITY secret "{secret}">]>' if "&" in written else ""
        data = svg_of(inside, before=entity).replace(b'xmlns="http://www.w3.org/2000/svg"', namespace.encode())
        assert "never followed" in svg_refused(data)


def test_a_template_on_a_hidden_layer_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors leave what was traced on a layer that is not shown; the drawing is whole without it, and the file is not read."""
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (40, 40), "lime")))
    monkeypatch.chdir(tmp_path)
    image = f'<image xlink:href="{tmp_path}/secret.png" width="40" height="40"/>'
    for layer in ('<g display="none">', '<g style="opacity:1; display: none">'):
        shown = f'{layer}{image}</g><use href="#x"/><rect id="x" width="40" height="40" fill="red"/>'
        assert decode(svg_of(shown), svg_size=40).getpixel((20, 20)) == (255, 0, 0)


def test_an_external_entity_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text('<rect width="40" height="40" fill="lime"/>')
    for kind in ("ENTITY secret SYSTEM", "ENTITY % secret SYSTEM"):
        use = "%secret;" if "%" in kind else ""
        before = f'<?xml version="1.0"?><!DOCTYPE svg [<!{kind} "file://{tmp_path}/secret.txt">{use}]>'
        try:
            image = decode(svg_of("" if use else "&secret;", before=before), "white", svg_size=40)
        except BadImage as bad:
            assert bad.reason == "svg"
        else:
            assert image.getpixel((20, 20)) == (255, 255, 255)


def test_entities_of_an_editor_stand_for_what_they_say() -> None:
    before = '<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY colour "blue"><!ENTITY ns "http://www.w3.org/2000/svg">]>'
    data = f'{before}<svg xmlns="&ns;" width="40" height="40"><rect width="40" height="40" fill="&colour;"/></svg>'
    assert decode(data.encode(), svg_size=40).getpixel((20, 20)) == (0, 0, 255)


def test_entities_of_entities_are_no_bomb() -> None:
    entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    before = f'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a0 "lol">{entities}]>'
    assert svg_refused(svg_of("<desc>&a11;</desc>", before=before))


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_an_embedded_image_is_shown() -> None:
    for file_format in ("PNG", "JPEG", "GIF", "WEBP"):
        inner = encoded(Image.new("RGB", (8, 8), (250, 0, 0)), file_format)
        red, green, _ = decode(svg_of(f'<image href="{data_url(inner)}" width="40" height="40"/>'), svg_size=40).getpixel(
            (20, 20)
        )
        assert red > 240 and green < 10


@pytest.mark.parametrize(
    ("inner", "about"),
    [
        (png_header(10_000, 10_000), "100,000,000 pixels"),
        (svg_of('<image href="/etc/secret.png" width="40" height="40"/>'), "cannot be read"),
        (gzip.compress(svg_of(SQUARE)), "cannot be read"),
        (b"no image", "cannot be read"),
    ],
    ids=["bomb", "svg", "svgz", "broken"],
)
@pytest.mark.filterwarnings("ignore")
def test_an_embedded_image_is_bounded(inner: bytes, about: str) -> None:
    assert about in svg_refused(svg_of(f'<image href="{data_url(inner, "image/svg+xml")}" width="40" height="40"/>'))


@pytest.mark.filterwarnings("ignore")
def test_embedded_images_are_bounded_together() -> None:
    """Each may have 49 million pixels; two have more than one image may."""
    one = f'<image href="{data_url(png_header(7000, 7000))}" width="20" height="20"/>'
    assert "98,000,000 pixels" in svg_refused(svg_of(one * 2))


@pytest.mark.parametrize(
    "inside",
    [
        "<g>" * 1000 + "</g>" * 1000,
        "".join(f'<g id="a{i}"><use href="#a{i - 1}"/></g>' for i in range(300)) + '<use href="#a299"/>',
        "".join(
            f'<pattern id="a{i}" width="4" height="4"><rect width="9" height="9" style="fill:url(#a{i - 1})"/></pattern>'
            for i in range(3000)
        )
        + '<rect width="9" height="9" fill="url(#a2999)"/>',
        "".join(f'<g id="a{i}"><use href="#a{i - 1}"/></g>' for i in reversed(range(3000))),
    ],
    ids=["nested", "used", "pattern", "used-before-defined"],
)
def test_levels_of_an_svg_are_bounded(inside: str) -> None:
    """resvg recurses: some hundred levels overflow its stack, which ends the whole process."""
    assert "more than 64 levels" in svg_refused(svg_of(inside))


def test_an_svg_that_refers_to_itself_ends() -> None:
    assert svg_refused(svg_of('<g id="a"><use href="#b"/></g><g id="b"><use href="#a"/></g>'))


@pytest.mark.parametrize(
    "family", ["", 'font-family="sans-serif"', 'font-family="No Such Font"', 'style="font-family: Nope, monospace"']
)
def test_text_of_an_svg_is_drawn_whatever_fonts_the_machine_has(family: str) -> None:
    """resvg leaves out all text whose font is not installed: the image would be blank."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="40"><text y="30" font-size="30" {family}>Hi</text></svg>'
    pixels = np.asarray(open_image(svg.encode()).rgb())
    assert 0.05 < (pixels < 128).all(axis=2).mean() < 0.6
