"""SVG to pixels with resvg, from the file's own content only: no other file, no URL, no external entity.

An SVG may refer to other files, and may need so much memory or recursion that the whole process would crash. So each is parsed
here first, and resvg gets only what was checked, serialised again.
"""

import base64
import functools
import io
import re
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.dataset.image_formats import PILLOW

_RATIO = 30  # an SVG so many times as long as wide would be a bomb
_PROBE = 8  # pixels of the shorter side of the strip into which it is fitted to find that out
# CSS: 96 pixels are one inch, which is 72 points or 25.4 millimetres (https://www.w3.org/TR/css-values-3/#absolute-lengths).
# resvg_py's default of 0 turns all such lengths into zero.
_DPI = 96
_DEEPEST = 64  # levels of nested elements; resvg recurses, and overflows the stack between 200 and 300
_LOCAL = re.compile(r"^#(.+)$|url\(\s*['\"]?#([^'\")]+)")
_LENGTHS = re.compile(r"[cdrf]?[xy]|[xy][12]|r|width|height|font-size|stroke-width")  # attributes
_LENGTH = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?)(px|pt|pc|in|cm|mm|q|em|ex|%)?", re.IGNORECASE)
_SIZE = re.compile(r"(?:^|;)\s*(width|height)\s*:\s*([^;!]+)")  # in a style


def render(data: bytes, size: int, most_pixels: int) -> bytes:
    """An SVG as PNG, its shorter side `size` pixels. Raises `ValueError` if it cannot be rendered safely.

    Args:
        most_pixels: total pixels of the raster images embedded in it.
    """
    root = _safe(data, most_pixels)
    frame = _frame(root)
    # Strips of few pixels: most of the time of an icon would be spent on compressing a larger probe.
    for strip in ((_PROBE, (_RATIO + 1) * _PROBE), ((_RATIO + 1) * _PROBE, _PROBE)):
        if max(_size(_drawn(frame, width=strip[0], height=strip[1]))) > _RATIO * _PROBE:
            raise ValueError(f"more than {_RATIO} times as long as wide")
    text = _text(root)
    drawn = _drawn(text, width=size)
    return _drawn(text, height=size) if _size(drawn)[1] < size else drawn


def _size(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return image.size


def _drawn(text: str, **size: int) -> bytes:
    """Render to PNG. All text is in DejaVu, whatever fonts the file names and the machine has: by default resvg leaves out text
    whose font it does not find, so the same file would give different images on different machines."""
    import resvg_py

    settings: dict[str, Any] = {"svg_string": text, "dpi": _DPI, **_fonts(), **size}
    return bytes(resvg_py.svg_to_bytes(**settings))


@functools.cache
def _fonts() -> dict[str, Any]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    names = ("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "Serif", "Serif-Bold", "SansMono", "SansMono-Bold")
    families = dict.fromkeys(("font_family", "sans_serif_family", "cursive_family", "fantasy_family"), "DejaVu Sans")
    families |= {"serif_family": "DejaVu Serif", "monospace_family": "DejaVu Sans Mono"}
    return {"skip_system_fonts": True, "font_files": [str(folder / f"DejaVu{name}.ttf") for name in names], **families}


def _text(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def _frame(root: ET.Element) -> str:
    """An SVG of the same proportions. Most say what they are, so that nothing must be drawn to find out."""
    says = "viewBox" in root.attrib or {"width", "height"} <= root.attrib.keys()
    return _text(ET.Element(root.tag, root.attrib) if says else root)


def _safe(data: bytes, most_pixels: int) -> ET.Element:
    """The SVG without entities and references to other files. Raises `ValueError`."""
    try:
        # Entities are expanded, within expat's limits, and external ones are errors.
        root = _parsed(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(str(error)) from None
    _check_depth(root)
    _settle_lengths(root)
    pixels = 0
    for image, shown in _images(root, True):
        hrefs = [name for name in image.attrib if _local_name(name) == "href"]
        for name in hrefs:
            href = image.attrib[name].strip()
            if href.lower().startswith("data:"):
                embedded, kind, area = _embedded(href)
                image.attrib[name] = f"data:image/{kind};base64,{base64.b64encode(embedded).decode()}"
                pixels += area
            elif not href.startswith("#"):
                if shown:
                    raise ValueError(f"it shows another file, '{href[:80]}', which is never followed")
                del image.attrib[name]
    if pixels > most_pixels:
        raise ValueError(f"its embedded images have {pixels:,} pixels, more than {most_pixels:,}")
    return root


def _parsed(data: bytes) -> ET.Element:
    """Decoded as UTF-8 whatever encoding it declares; if it is not UTF-8, by the declared encoding."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return ET.fromstring(data)
    return ET.fromstring(text, ET.XMLParser(encoding="utf-8"))


def _settle_lengths(root: ET.Element) -> None:
    """Rewrite lengths so that resvg reads them: it does not accept spaces, capitals and quarter millimetres, and takes what it
    cannot read as 100 % or zero. Raises `ValueError` if the size is unknown.
    """
    for name, value in _SIZE.findall(root.get("style", "")):
        if (length := _length(value)) and not length.endswith("%"):  # relative to a page that does not exist
            root.attrib[name] = length
    for element in root.iter():
        for name, value in element.attrib.items():
            if _LENGTHS.fullmatch(name) and (length := _length(value)):
                element.attrib[name] = length
    for name in ("width", "height"):
        size = root.get(name)
        if size is None or _length(size):
            continue
        if size.strip().lower() not in ("", "auto") and "viewBox" not in root.attrib:
            raise ValueError(f"its {name} is '{size[:40]}', which is not a supported length, and it has no viewBox")
        del root.attrib[name]


def _length(value: str) -> str:
    """A CSS length as resvg reads it; empty if it is not one, or its unit depends on a window or a page."""
    match = _LENGTH.fullmatch(value.strip())
    if match is None:
        return ""
    number, unit = match[1], (match[2] or "").lower()
    return f"{float(number) / 4!r}mm" if unit == "q" else number + unit


def _images(element: ET.Element, shown: bool) -> Iterator[tuple[ET.Element, bool]]:
    """All elements that can embed another image, and whether they are visible: editors leave a template on a hidden layer."""
    style = element.get("style", "").replace(" ", "")
    shown = shown and element.get("display") != "none" and "display:none" not in style
    if _local_name(element.tag) in ("image", "feImage"):
        yield element, shown
    for child in element:
        yield from _images(child, shown)


def _local_name(name: str) -> str:
    """A name without its namespace, since resvg also draws elements that have none, as in HTML."""
    return name.rpartition("}")[2]


def _embedded(href: str) -> tuple[bytes, str, int]:
    """Bytes, kind (png, jpeg, ...) and number of pixels of an image in a data: URL."""
    try:
        with urllib.request.DataHandler().data_open(urllib.request.Request(href)) as answer:
            data = answer.read()
        with Image.open(io.BytesIO(data), formats=list(PILLOW)) as image:
            return data, (image.format or "").lower().replace("mpo", "jpeg"), image.width * image.height
    except Exception as error:  # decoders raise many kinds of errors on damaged data
        raise ValueError(f"an embedded image cannot be read: {error}") from None


def _check_depth(root: ET.Element) -> None:
    """Raises `ValueError` if elements are nested too deeply, counting referenced elements where they are used."""
    depth = 0
    by_id: dict[str, ET.Element] = {}
    level = [root]
    while level:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels of elements")
        by_id |= {element.attrib["id"]: element for element in level if "id" in element.attrib}
        level = [child for element in level for child in element]
    heights: dict[ET.Element, int] = {}

    def height(element: ET.Element, above: int) -> int:
        if above > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels of elements, by what they refer to")
        if element not in heights:
            heights[element] = 0  # of one that refers to itself, which resvg detects
            names = (name for value in element.attrib.values() for pair in _LOCAL.findall(value) for name in pair if name)
            inside = [*element, *(by_id[name] for name in names if name in by_id)]
            heights[element] = 1 + max((height(other, above + 1) for other in inside), default=0)
        if above + heights[element] > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} levels of elements, by what they refer to")
        return heights[element]

    height(root, 0)
