"""Which formats are read: those of the table, by their bytes, and no other, however many Pillow knows or starts programs for."""

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from pipelines.dataset.image_formats import FORMATS
from pipelines.dataset.images import BadImage, decode, open_image
from tests.pipelines.corpus import encoded, png_chunk, png_file

Image.init()
RED = Image.new("RGB", (40, 30), (200, 0, 0))


def others() -> Iterator[tuple[str, bytes]]:
    """An image in each format that is not in the table and that Pillow can write."""
    for name in sorted((Image.OPEN.keys() & Image.SAVE.keys()) - FORMATS.keys()):
        for image in (RED, RED.convert("1")):  # some hold no colours
            with suppress(ValueError, OSError):
                yield name, encoded(image, name)
                break


OTHERS = dict(others())


def refused(data: bytes) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return caught.value


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"SVG"}))
def test_every_format_of_the_table_is_read(name: str) -> None:
    opened = open_image(encoded(RED, name))
    red, green, blue = opened.rgb().getpixel((20, 15))
    assert opened.format == name and red > 190 and max(green, blue) < 12


@pytest.mark.parametrize("name", OTHERS)
def test_no_other_format_is_read_and_the_reason_names_it(name: str) -> None:
    bad = refused(OTHERS[name])
    assert bad.reason == "undecodable"
    if name not in ("IM", "SPIDER", "TGA"):  # whose beginning says nothing
        assert bad.detail.startswith(f"{name} is not among the formats that are read: JPEG, PNG")


@pytest.mark.parametrize("drawing", ["1 0 0 setrgbcolor 0 0 40 30 rectfill showpage", "{ } loop"], ids=["drawable", "endless"])
def test_no_program_is_started_for_postscript(drawing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ghostscript is installed Pillow would run it, the second of these for ever."""
    monkeypatch.setattr("subprocess.Popen", lambda *args, **keys: pytest.fail(f"{args} was started"))
    bad = refused(f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 30\n%%EndComments\n{drawing}\n%%EOF\n".encode())
    assert bad.reason == "undecodable" and bad.detail.startswith("EPS is not among")


def test_a_format_that_pillow_does_not_know_is_named_too() -> None:
    assert refused(b"\0\0\0\x18ftypheic" + bytes(60)).detail.startswith("HEIC is not among")


# --- grey of more than 8 bits ---


def tiff(pixels: np.ndarray, **tags: int) -> bytes:
    """A TIFF by hand: one strip of grey, little-endian; `photometric` 0: 0 is white, `sample_format` 3: floating point."""
    height, width = pixels.shape
    entries = [(256, width), (257, height), (258, pixels.itemsize * 8), (259, 1), (262, tags.get("photometric", 1))]
    entries += [(273, 8), (277, 1), (278, height), (279, pixels.nbytes), (339, tags.get("sample_format", 1))]
    short = {258, 259, 262, 277, 339}
    directory = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHIHH", tag, 3, 1, value, 0) if tag in short else struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in entries
    )
    return b"II*\0" + struct.pack("<I", 8 + pixels.nbytes) + pixels.tobytes() + directory + bytes(4)


STEPS = np.array([[0, 255, 257, 32896, 65535]], dtype=np.uint16)
AS_8_BITS = [0, 1, 1, 128, 255]  # by 257: what is dark stays dark, whatever else is in the image


def big_endian_tiff(pixels: np.ndarray) -> bytes:
    return encoded(Image.frombytes("I;16B", pixels.shape[::-1], pixels.astype(">u2").tobytes()), "TIFF")


def pgm(pixels: np.ndarray) -> bytes:
    return b"P5 %d %d 65535\n" % pixels.shape[::-1] + pixels.astype(">u2").tobytes()


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda pixels: encoded(Image.fromarray(pixels)), AS_8_BITS),
        (tiff, AS_8_BITS),
        (big_endian_tiff, AS_8_BITS),
        (pgm, AS_8_BITS),
        (lambda pixels: tiff(pixels, photometric=0), [255 - value for value in AS_8_BITS]),
        (lambda pixels: tiff((pixels / 65535).astype(np.float32), sample_format=3), AS_8_BITS),
        (lambda pixels: tiff((pixels / 65535).astype(np.float32), sample_format=3, photometric=0), [255, 254, 254, 127, 0]),
    ],
    ids=["png", "tiff", "tiff-big-endian", "pgm", "tiff-0-is-white", "tiff-float", "tiff-float-0-is-white"],
)
def test_white_is_what_the_format_says(write: Callable[[np.ndarray], bytes], expected: list[int]) -> None:
    assert np.asarray(decode(write(STEPS)))[0, :, 0].tolist() == expected


def test_a_dark_image_of_16_bits_stays_dark() -> None:
    dark = np.random.default_rng(0).integers(0, 256, (20, 20)).astype(np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(dark)))).max() <= 1


def test_the_colour_key_of_16_bits_is_transparent() -> None:
    """By its whole value: of two greys that are equal in 8 bits one is the key."""
    pixels = np.array([[1000, 1001]], dtype=">u2")
    rows = zlib.compress(b"\0" + pixels.tobytes())
    data = png_file(2, 1, 16, 0, rows)
    data = data[:33] + png_chunk(b"tRNS", struct.pack(">H", 1000)) + data[33:]
    assert np.asarray(decode(data, "lime"))[0].tolist() == [[0, 255, 0], [4, 4, 4]]


@pytest.mark.parametrize(
    ("data", "about"),
    [
        (tiff(np.array([[0.0, 255.0]], dtype=np.float32), sample_format=3), "floating point from 0 to 255"),
        (tiff(np.array([[-0.5, 0.5]], dtype=np.float32), sample_format=3), "floating point from -0.5 to 0.5"),
        (tiff(np.array([[np.nan, 0.5]], dtype=np.float32), sample_format=3), "floating point from nan"),
        (encoded(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF"), "32 bits"),
        (tiff(np.array([[-5, 9000]], dtype=np.int16), sample_format=2), "sign"),
    ],
    ids=["float-255", "float-negative", "float-nan", "32-bit", "signed"],
)
def test_where_nobody_knows_what_is_white_there_is_a_reason(data: bytes, about: str) -> None:
    bad = refused(data)
    assert bad.reason == "undecodable" and about in bad.detail


# --- headers that ask for too much ---


@pytest.mark.parametrize("zipped", [True, False])
def test_a_png_with_a_long_text_is_kept(zipped: bool) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", "all that was ever done to it " * 110_000, zip=zipped)  # 3 MB
    assert decode(encoded(RED, pnginfo=info)).getpixel((5, 5)) == (200, 0, 0)


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")])
def test_a_png_whose_text_or_profile_is_a_bomb_is_one(kind: bytes, head: bytes) -> None:
    squeezed = zlib.compress(bytes(17 << 20), 9)
    png = encoded(RED)
    assert len(squeezed) < 1 << 15
    bad = refused(png[:33] + png_chunk(kind, head + squeezed) + png[33:])
    assert bad.reason == "decompression_bomb" and bad.detail


def test_many_texts_together_are_a_bomb() -> None:
    chunk = png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(15 << 20), 9))
    assert refused(encoded(RED)[:33] + chunk * 5 + encoded(RED)[33:]).reason == "decompression_bomb"


def test_an_image_that_needs_more_memory_than_there_is_is_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    assert refused(encoded(RED)).reason == "decompression_bomb"


def exif(orientation: int) -> bytes:
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, orientation, 0) + bytes(4)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def test_of_many_exif_blocks_the_first_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would join all of them, again and again, and copy out of the whole for each tag: hundreds of blocks take minutes."""
    seen: list[int] = []
    load = Image.Exif.load
    monkeypatch.setattr(Image.Exif, "load", lambda self, data: seen.append(len(data)) or load(self, data))
    jpeg = encoded(RED, "JPEG")
    blocks = segment(0xE1, exif(6)) + segment(0xFE, b"a comment") + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 500
    opened = open_image(jpeg[:2] + blocks + jpeg[2:])
    assert opened.size == opened.rgb().size == (30, 40)
    assert sum(seen) < 1 << 16 and len(opened._image.info["exif"]) < 1 << 16


def test_a_jpeg_of_segments_alone_is_a_bomb() -> None:
    jpeg = encoded(RED, "JPEG")
    assert refused(jpeg[:2] + segment(0xE5, b"") * 5000 + jpeg[2:]).reason == "decompression_bomb"


def test_a_jpeg_of_endless_scans_is_a_bomb() -> None:
    """Each scan of a progressive JPEG goes over all pixels again, however few bytes it has."""
    jpeg = encoded(RED, "JPEG", progressive=True)
    assert open_image(jpeg).rgb().size == (40, 30) and 2 < jpeg.count(b"\xff\xda") < 20
    last = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    assert refused(jpeg[:-2] + last * 200 + b"\xff\xd9").reason == "decompression_bomb"


def test_no_tag_but_the_orientation_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A WebP's block may be as large as its file."""
    monkeypatch.setattr(Image.Exif, "load", lambda *_: pytest.fail("the whole block was read"))
    options = {"exif": exif(6)}
    assert open_image(encoded(RED, "WEBP", **options)).size == open_image(encoded(RED, "PNG", **options)).size == (30, 40)


def test_the_orientation_that_imagemagick_writes_into_a_png() -> None:
    block = exif(8)
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8d}\n{block.hex()}\n")
    assert open_image(encoded(RED, pnginfo=info)).size == (30, 40)


def test_frames_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only whether there are several: to count a GIF's all of them are read."""
    data = encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), (0, g, 0)) for g in range(0, 250, 50)])
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.n_frames", property(lambda _: pytest.fail("counted")))
    opened = open_image(data)
    assert not opened.plain and opened.rgb().getpixel((0, 0)) == (200, 0, 0)
