"""Which image formats are read, and which files are ignored: one table for every source, evaluation and decoding.

Pillow reads forty formats. Some of its readers start other programs (EPS starts Ghostscript) and some are hardly maintained, so
only the decoders in this table are used. A file's name decides whether it counts as an image, its bytes decide the format.
"""

import re

FORMATS = {  # Pillow's name, or SVG, which resvg renders; and the file extensions, the most common first
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

# Files that systems and programs leave behind: names with a leading dot (macOS's ._x, .Trashes, .DS_Store, Jupyter's
# .ipynb_checkpoints), and some without. A regular expression for the beginning of a name, after a slash.
HIDDEN = r"(?:\.(?!\.?(?:/|$))|__MACOSX(?:/|$)|\$RECYCLE\.BIN(?:/|$)|Thumbs\.db$|desktop\.ini$)"
_HIDDEN = re.compile(rf"(?:^|/){HIDDEN}")


def is_hidden(name: str) -> bool:
    """Whether a file (its path inside the data's folder or tar) is hidden or in a hidden folder, and so ignored."""
    return _HIDDEN.search(name) is not None


def is_image(name: str, extensions: tuple[str, ...] = EXTENSIONS) -> bool:
    """Whether a file counts as an image, by its extension in any case."""
    return name.lower().endswith(extensions)
