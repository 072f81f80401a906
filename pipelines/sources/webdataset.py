"""WebDataset's tars: `a/001.jpg` and `a/001.txt` or `a/001.json` are one sample, wherever in the tar they are.

If a sample has several images, the first by `image_extensions` is used and the others are ignored. A sample with neither image
nor caption is rejected as unknown_member.

Of a plain tar on disk only headers and texts are read. A remote tar is copied to a temporary file while it is read, and a
compressed one is decompressed. The complete members of a truncated tar are kept.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import AfterValidator, Field

from pipelines.dataset.image_formats import EXTENSIONS
from pipelines.io import storage
from pipelines.io.http import is_web
from pipelines.io.image_bytes import Location
from pipelines.io.retry import shown_place
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.text_lines import decoded, lines_of
from pipelines.sources import rows
from pipelines.sources.base import Pair, Rejected, Source, Unit
from pipelines.sources.rows import Paths, Unreadable
from pipelines.sources.shard_counts import counts_beside
from pipelines.sources.tar_samples import GZIP, Member, Sample, decompressed, index

_ENDINGS = (".tar", ".tar.gz", ".tgz")


def _without_dots(value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(extension.lower().removeprefix(".") for extension in value)


class WebDatasetSource(Source):
    """Samples of WebDataset's tars: an image, and its captions in a text or JSON member."""

    name: Literal["webdataset"]
    paths: Paths = Field(
        description="tars, also .tar.gz and .tgz, as paths, globs, {00..99} or {a,b}; a folder stands for the tars below it"
    )
    image_extensions: Annotated[tuple[str, ...], AfterValidator(_without_dots), Field(min_length=1)] = Field(
        tuple(extension.removeprefix(".") for extension in EXTENSIONS), description="of members that are images"
    )
    caption: str = Field("txt", min_length=1, description="extension of the member that holds the caption")
    captions: Literal["first_line", "all_lines"] = Field("first_line", description="which lines of that member are captions")
    caption_field: str | None = Field(
        None, description="field of the json member that holds the caption, or a list; null: the member named by `caption` does"
    )
    label: str | None = Field(None, description="field of the json member that is a label; cls: the member of that extension")
    columns: tuple[str, ...] = Field(
        (), description="further fields of it, kept as labels too: hard negatives, weights, or more classes"
    )
    group: str | None = Field(
        None, description="field of the json member that holds groups, which stay in one split; null: the first caption"
    )

    def title(self) -> str:
        return self.dataset or rows.title_of(self.paths[0])

    def units(self) -> list[Unit]:
        units = rows.list_units(self.paths, _ENDINGS, _units_of)
        counts = counts_beside([unit.data["file"] for unit in units])
        return [unit if "damage" in unit.data else replace(unit, **counts[unit.data["file"]]) for unit in units]

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        file, prefix = unit["file"], unit["prefix"]
        if "damage" in unit:
            yield Rejected(prefix, file, "unreadable_file", unit["damage"])
            return
        if not images and is_web(file):
            raise _not_one_by_one(file, "is behind http(s)")
        try:
            with storage.local_copy(file) as copy, _opened(copy) as raw:
                compressed = raw.read(len(GZIP)) == GZIP
                raw.seek(0)
                if not compressed:
                    yield from self._samples(_Tar(file, prefix, raw, False), "", images)
                    return
                if not images:
                    raise _not_one_by_one(file, "is compressed")
                with decompressed(raw) as (content, damage):
                    yield from self._samples(_Tar(file, prefix, content, True), damage, images)
        except Missing as missing:
            yield rows.rejected_file(prefix, file, missing)
        except tarfile.TarError as error:
            yield Rejected(prefix, file, "unreadable_file", str(error))

    def _samples(self, tar: "_Tar", damage: str, images: bool) -> Iterator[Pair | Rejected]:
        contents = index(tar.content)
        damage = contents.damage or damage
        for key, sample in contents.samples.items():
            row = self._row(tar, key, sample, images)
            # Whether the last sample of a truncated tar was complete is unknown, so it is not reported as bad.
            if isinstance(row, Pair) or not (damage and key == contents.last):
                yield row
            for _ in range(max(sample.repeated.values(), default=0)):
                yield tar.rejected(key, "duplicate_key", f"another {_listed(sample.repeated)} of this name in the tar")
        if damage:
            yield Rejected(tar.prefix, tar.file, "truncated_archive", f"{damage}; the samples before it are kept")

    def _row(self, tar: "_Tar", key: str, sample: Sample, images: bool) -> Pair | Rejected:
        members = sample.members
        image = next((members[extension] for extension in self.image_extensions if extension in members), None)
        if image is None:
            captioned = self.caption in members or "json" in members
            return tar.rejected(key, "missing_image" if captioned else "unknown_member", f"holds {_listed(members)} only")
        try:
            fields = self._fields(tar, sample)
            captions = fields.get(self.caption_field) if self.caption_field else self._lines(tar, sample)
            label = self._label(tar, sample, fields)
        except ValueError as error:
            return tar.rejected(key, "bad_row", str(error))
        if captions is None:
            where = f"'{self.caption_field}' in .json" if self.caption_field else f".{self.caption}"
            return tar.rejected(key, "missing_caption", f"no {where}; holds {_listed(members)}")
        row = rows.pair_of(
            tar.key(key),
            tar.origin(key),
            rows.folder_of(tar.file),
            image=tar.file,
            captions=captions,
            group=fields.get(self.group) if self.group else None,
            labels=({self.label: label} if self.label else {}) | {name: fields.get(name) for name in self.columns},
            outside=True,  # it is in the tar
        )
        return tar.placed(row, image, images) if isinstance(row, Pair) else row

    def _fields(self, tar: "_Tar", sample: Sample) -> dict[str, Any]:
        """The fields of the json member, if a setting needs them. Raises `ValueError`."""
        needed = self.caption_field or self.group or self.columns or (self.label and self.label != "cls")
        if not needed or "json" not in sample.members:
            return {}
        try:
            fields = json.loads(decoded(tar.text_bytes(sample.members["json"])))
        except RecursionError:
            raise ValueError(".json: nested too deeply") from None
        except ValueError as error:
            raise ValueError(f".json: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(".json: not an object")
        return fields

    def _lines(self, tar: "_Tar", sample: Sample) -> list[str] | None:
        """The captions of the text member. Raises `ValueError`."""
        if self.caption not in sample.members:
            return None
        lines = lines_of(_lenient(tar.text_bytes(sample.members[self.caption])))
        captions = [line for line in lines if line.strip()] or [""]
        return captions[:1] if self.captions == "first_line" else captions

    def _label(self, tar: "_Tar", sample: Sample, fields: dict[str, Any]) -> Any:
        """Raises `ValueError`."""
        if self.label != "cls":
            return fields.get(self.label or "")
        return _lenient(tar.text_bytes(sample.members["cls"])).strip() if "cls" in sample.members else None


@dataclass(frozen=True)
class _Tar:
    """An open tar."""

    file: str
    prefix: str  # of keys
    content: BinaryIO
    compressed: bool

    def key(self, sample: str) -> str:
        return f"{self.prefix}/{sample}"

    def origin(self, name: str) -> str:
        return f"{self.file}/{name}"

    def rejected(self, sample: str, reason: str, detail: str) -> Rejected:
        return Rejected(self.key(sample), self.origin(sample), reason, detail)

    def placed(self, pair: Pair, image: Member, images: bool) -> Pair:
        """The pair with its image's location, and with the image itself if reading it from there would cost more."""
        passes = storage.is_remote(self.file) or (images and self.compressed)
        location = Location(self.file) if self.compressed else Location(self.file, image.start, image.length)
        return replace(pair, origin=self.origin(image.name), location=location, image=self.read(image) if passes else None)

    def read(self, member: Member) -> bytes:
        self.content.seek(member.start)
        return self.content.read(member.length)

    def text_bytes(self, member: Member) -> bytes:
        """A text member. Raises `ValueError` if it is too long."""
        if member.length > rows.LONGEST:
            raise ValueError(f"{member.name}: longer than {rows.LONGEST} bytes")
        return self.read(member)


def _lenient(data: bytes) -> str:
    """Text without its byte order mark; bytes that are not UTF-8 become surrogates, which valid text does not contain."""
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def _not_one_by_one(file: str, why: str) -> UserError:
    problem = f"{shown_place(file)} {why}, so its images cannot be read one by one"
    return UserError("source.paths", problem, "prepare with mode=copy")


def _listed(extensions: Any) -> str:
    return ", ".join(f".{extension}" for extension in extensions)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise Missing(f"{error.strerror or error}") from None


def _units_of(file: File, prefix: str) -> list[Unit]:
    if not storage.name_of(file.path).endswith(_ENDINGS):
        raise Unreadable("is not named like a tar", remedy=f"name files that end in {', '.join(_ENDINGS)}")
    return [Unit({"file": file.path, "prefix": prefix, "size": file.size, "changed": file.changed}, rows=None)]
