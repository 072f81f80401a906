"""SVG: its lengths and text, the size at which it is rendered, and what it may not ask for."""

import base64
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset.images import BadImage, decode, open_image
from tests.pipelines.corpus import encoded, png_header

HEAD = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
SQUARE = '<rect x="5mm" y="5mm" width="10mm" height="10mm" fill="red"/>'


def svg_of(inside: str, size: str = 'width="40" height="40"', before: str = "") -> bytes:
    return f"{before}<svg {HEAD} {size}>{inside}</svg>".encode()


def svg_refused(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, svg_size=40)
    assert caught.value.reason == "svg"
    return caught.value.detail


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
