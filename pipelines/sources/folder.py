"""A folder of pictures, each with a caption file of the same stem beside it: `cats/tom.png` and `cats/tom.txt`.

The first line of a caption file is the caption, or every line is one. Pictures that share a caption form one group. The
first folder below the root can serve as a label.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.settings import UserError
from pipelines.sources.base import Pair, Rejected, Source, Unit

_ROWS_PER_UNIT = 64


class FolderSource(Source):
    """Pictures in a folder, each with a caption file beside it."""

    name: Literal["folder"]
    path: Path = Field(description="the folder, searched with all its subfolders")
    dataset: str = Field("", description="the dataset's name in metrics; the folder's name by default")
    extensions: tuple[str, ...] = Field((".jpg", ".jpeg", ".png", ".webp", ".gif", ".svg"), description="of pictures")
    caption_extension: str = Field(".txt", description="of caption files")
    captions: Literal["first_line", "all_lines"] = Field("first_line", description="what of a caption file is a caption")
    exclude: tuple[str, ...] = Field((), description="patterns of paths to leave out, such as symbols/*")
    label: str | None = Field(None, description="name of a label that the first folder below `path` gives")
    unpaired: Literal["error", "reject"] = Field(
        "error",
        description="a picture without caption file or a caption file without picture: stop, or list as rejected",
    )
    data_licence: str = Field("unknown", description="licence of the data")
    data_attribution: str = Field("", description="what must stand beside the data where it is shown")

    def title(self) -> str:
        return self.dataset or self.path.name.lower()

    def licence(self) -> str:
        return self.data_licence

    def attribution(self) -> str:
        return self.data_attribution

    def units(self) -> list[Unit]:
        if not self.path.is_dir():
            raise UserError(f"source.path: {self.path} is not a folder; pass source.path=FOLDER")
        captions: dict[str, str] = {}  # path without extension -> caption file
        images: list[str] = []
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            relative = path.relative_to(self.path).as_posix()
            if any(fnmatch(relative, pattern) for pattern in self.exclude):
                continue
            if path.suffix.lower() == self.caption_extension:
                captions[str(Path(relative).with_suffix(""))] = relative
            elif path.suffix.lower() in self.extensions:
                images.append(relative)
        if not images:
            kinds = ", ".join(self.extensions)
            raise UserError(f"source.path: no pictures ({kinds}) in {self.path}; check source.path and source.exclude")
        stems = {image: str(Path(image).with_suffix("")) for image in images}
        rows = [[image, captions.get(stem)] for image, stem in stems.items()]
        alone: list[list[str | None]] = [[None, captions[stem]] for stem in sorted(captions.keys() - set(stems.values()))]
        self._check_paired([r[0] for r in rows if r[1] is None and r[0]], [r[1] for r in alone if r[1]])
        # Size and time of every file are part of the listing, so that a changed file is a changed source.
        listing = [[image, caption, *self._stamp(image), *self._stamp(caption)] for image, caption in rows + alone]
        chunks = [listing[start : start + _ROWS_PER_UNIT] for start in range(0, len(listing), _ROWS_PER_UNIT)]
        return [Unit(data=chunk, rows=len(chunk)) for chunk in chunks]

    def _check_paired(self, images: list[str], captions: list[str]) -> None:
        if self.unpaired == "reject":
            return
        out = "or pass source.unpaired=reject to list them in rejected.parquet and go on"
        if captions:
            raise UserError(
                f"{self.path / captions[0]}: a caption file without a picture beside it ({len(captions)} such files); "
                f"add the picture, delete the file, {out}"
            )
        if images:
            raise UserError(
                f"{self.path / images[0]}: a picture without a {self.caption_extension} file beside it "
                f"({len(images)} such files); add the caption, delete the picture, {out}"
            )

    def _stamp(self, relative: str | None) -> list[int]:
        if relative is None:
            return []
        status = (self.path / relative).stat()
        return [status.st_size, status.st_mtime_ns]

    def read(self, unit: Any) -> Iterator[Pair | Rejected]:
        for image, caption, *_ in unit:
            origin = str(self.path / (image or caption))
            if image is None:
                yield Rejected(caption, origin, "missing_image", "a caption file without a picture beside it")
                continue
            if caption is None:
                yield Rejected(image, origin, "missing_caption", f"no {self.caption_extension} file beside it")
                continue
            try:
                text = (self.path / caption).read_text(encoding="utf-8-sig")
                data = (self.path / image).read_bytes()
            except (OSError, UnicodeDecodeError) as error:
                yield Rejected(image, origin, "unreadable_file", str(error))
                continue
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            lines = lines[:1] if self.captions == "first_line" else lines
            if not lines:
                yield Rejected(image, origin, "empty_caption", f"{caption} holds no text")
                continue
            folder = image.split("/")[0] if "/" in image else ""
            labels = {self.label: folder or "(top)"} if self.label else {}
            yield Pair(image, origin, image=data, captions=lines, group=lines[0].lower(), labels=labels)
