"""A folder of images, each with a caption file of the same stem beside it: `cats/tom.png` and `cats/tom.txt`.

The first line of a caption file is the caption, or every line is one. Images that share a caption form one group. The first
folder below the root can serve as a label. Any other file is rejected as unknown_file, unless an image beside it has its stem.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.dataset.image_formats import EXTENSIONS, is_image
from pipelines.io import storage
from pipelines.io.image_bytes import Location
from pipelines.io.storage import Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded, lines_of
from pipelines.sources import rows
from pipelines.sources.base import UNKNOWN_FILE, Pair, Rejected, Source, Unit, unknown_files
from pipelines.sources.inside import REASON, Outside, link_out

_ROWS_PER_UNIT = 16


class FolderSource(Source):
    """Images in a folder, each with a caption file beside it."""

    name: Literal["folder"]
    path: Place = Field(description="the folder, searched with all its subfolders")
    extensions: tuple[str, ...] = Field(
        EXTENSIONS, description="of images; with your own list, other files are ignored, not counted"
    )
    caption_extension: str = Field(".txt", description="of caption files")
    captions: Literal["first_line", "all_lines"] = Field("first_line", description="which lines of a caption file are captions")
    exclude: tuple[str, ...] = Field((), description="patterns of paths to leave out, such as symbols/*")
    outside: Outside = False
    label: str | None = Field(None, description="name of a label whose value is the first folder below `path`")
    unpaired: Literal["error", "reject"] = Field(
        "error",
        description="an image without caption file or a caption file without image: stop, or reject the row",
    )

    def title(self) -> str:
        return self.dataset or storage.name_of(self.path).lower()

    def units(self) -> list[Unit]:
        files = storage.data_below(self.path)
        if not files and not (isinstance(self.path, Path) and self.path.is_dir()):
            raise UserError("source.path", f"{self.path} is not a folder", "pass source.path=FOLDER")
        captions: dict[str, str] = {}  # path without extension -> caption file
        images: list[str] = []
        others: list[str] = []
        # Folder by folder: a plain sort would put a.b/x before a/x.
        for relative in sorted(files, key=lambda name: name.split("/")):
            if any(fnmatch(relative, pattern) for pattern in self.exclude):
                continue
            if Path(relative).suffix.lower() == self.caption_extension:
                captions[str(Path(relative).with_suffix(""))] = relative
            else:
                (images if is_image(relative, self.extensions) else others).append(relative)
        if not images:
            problem = f"there are no images ({', '.join(self.extensions)}) in {self.path}"
            raise UserError("source.path", problem, "check source.path, source.extensions and source.exclude")
        stems = {image: str(Path(image).with_suffix("")) for image in images}
        paired = [[image, captions.get(stem)] for image, stem in stems.items()]
        lonely: list[list[str | None]] = [[None, captions[stem]] for stem in sorted(captions.keys() - set(stems.values()))]
        self._check_paired([r[0] for r in paired if r[1] is None and r[0]], [r[1] for r in lonely if r[1]])
        # Size and time of every file are part of the listing, so that a changed file is a changed source.
        listing = [row + [n for name in row if name for n in (files[name].size, files[name].changed)] for row in paired + lonely]
        listing += [[None, name] for name in unknown_files(others, [*images, *captions.values()], self.extensions)]
        chunks = [listing[start : start + _ROWS_PER_UNIT] for start in range(0, len(listing), _ROWS_PER_UNIT)]
        return [Unit(data=chunk, rows=len(chunk)) for chunk in chunks]

    def _check_paired(self, images: list[str], captions: list[str]) -> None:
        if self.unpaired == "reject":
            return
        alternative = "or pass source.unpaired=reject to reject such rows and continue"
        if captions:
            problem = f"no image is beside the caption file {storage.join(self.path, captions[0])} ({len(captions)} such files)"
            raise UserError("source.path", problem, f"add the image, delete the file, {alternative}")
        if images:
            file = storage.join(self.path, images[0])
            problem = f"no {self.caption_extension} file is beside the image {file} ({len(images)} such files)"
            raise UserError("source.path", problem, f"add the caption, delete the image, {alternative}")

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        for image, caption, *_ in unit:
            origin = str(storage.join(self.path, image or caption))
            if image is None and Path(caption).suffix.lower() != self.caption_extension:
                yield Rejected(caption, origin, "unknown_file", UNKNOWN_FILE)
                continue
            if image is None:
                yield Rejected(caption, origin, "missing_image", "a caption file without an image beside it")
                continue
            if caption is None:
                yield Rejected(image, origin, "missing_caption", f"no {self.caption_extension} file beside it")
                continue
            if (link := link_out((image, caption), self.path)) and not self.outside:
                yield Rejected(image, origin, REASON, link)
                continue
            try:
                data = storage.read(storage.join(self.path, caption), 0, rows.LONGEST + 1)
                if len(data) > rows.LONGEST:
                    raise ValueError(f"{caption}: longer than {rows.LONGEST} bytes")
                text = decoded(data)
            except (Missing, ValueError) as error:
                yield Rejected(image, origin, "unreadable_file", str(error))
                continue
            lines = [line.strip() for line in lines_of(text) if line.strip()]
            lines = lines[:1] if self.captions == "first_line" else lines
            if not lines:
                yield Rejected(image, origin, "empty_caption", f"{caption} holds no text")
                continue
            folder = image.split("/")[0] if "/" in image else ""
            labels = {self.label: folder or "(top)"} if self.label else {}
            yield Pair(image, origin, Location(origin), captions=lines, group=lines[0].lower(), labels=labels)
