"""Which image formats are read, and which files are no part of any data: one table for every source, evaluation and decoding.

Pillow knows forty formats. Some of their readers start other programs (EPS starts Ghostscript), some are hardly ever looked
after: only the decoders of this table see a byte. A file's name says that it is meant as an image, its bytes which format it is.
"""

import re

FORMATS = {  # Pillow's name, or SVG, which resvg renders; and the endings of files, of which the first are most usual
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "SVG": (".svg",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "ICO": (".ico",),
}
PILLOW = tuple(name for name in FORMATS if name != "SVG")
EXTENSIONS = tuple(extension for extensions in FORMATS.values() for extension in extensions)

# What systems and programs leave beside people's files: names with a leading dot (macOS's ._x, .Trashes, .DS_Store, Jupyter's
# .ipynb_checkpoints), and some without. As a regular expression of a name's beginning, after a slash.
HIDDEN = r"(?:\.(?!\.?(?:/|$))|__MACOSX(?:/|$)|\$RECYCLE\.BIN(?:/|$)|Thumbs\.db$|desktop\.ini$)"
_HIDDEN = re.compile(rf"(?:^|/){HIDDEN}")


def is_hidden(name: str) -> bool:
    """Whether a file, named from the folder or tar of the data on, is hidden or in a hidden folder: no part of the data."""
    return _HIDDEN.search(name) is not None


def is_image(name: str, extensions: tuple[str, ...] = EXTENSIONS) -> bool:
    """Whether a file is meant as an image, by its name's ending in any case."""
    return name.lower().endswith(extensions)
