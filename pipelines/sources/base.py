"""The interface of all sources.

A source lists its units of work on the driver, cheaply, and reads one unit at a time in the cluster. A unit is what is best
read at once: some files, a tar, a row group. Reading a unit yields a `Pair` or a `Rejected` for every row, so a bad row never
stops the others.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from pipelines.dataset.image_formats import EXTENSIONS
from pipelines.io.image_bytes import Location
from pipelines.io.retry import is_text
from pipelines.program.settings_base import Named

UNKNOWN_FILE = f"not named like an image ({', '.join(EXTENSIONS)}), and no image beside it has the same stem"


@dataclass(frozen=True)
class Pair:
    """One image with at least one caption, as the source has them."""

    key: str  # unique within the source
    origin: str  # where it came from, for error messages: a path, a URL, a member of a tar
    location: Location  # where the image's encoded bytes are
    captions: list[str]
    group: str  # pairs of one group stay in one split: a concept, a product, a photographer
    labels: dict[str, str] = field(default_factory=dict)
    image: bytes | None = None  # encoded; None: to be read from `location`
    split: str = ""  # the source's own, from `Unit.splits`, if the config keeps it


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used; `reason` is a short code, counted in the manifest."""

    key: str
    origin: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Unit:
    """A unit of work. `data`: what `read` needs, as JSON values, with what changes when the content does (size, time)."""

    data: Any
    rows: int | None  # number of rows; None: unknown before reading
    absent: int = 0  # rows that the downloader listed and failed to download
    weight: float = 1.0  # how often an epoch shows its pairs
    splits: tuple[str, ...] | None = None  # each row's split in the source, "" if it has none; None: the source has no splits


class Source(Named):
    """Base of the source settings: what to read, and how."""

    dataset: str = Field(
        "", description="the dataset's name in metrics; by default what a JSON file calls it, or taken from the path"
    )
    data_licence: str = Field("unknown", description="licence of the data")
    data_attribution: str = Field("", description="attribution to print wherever the data is shown")

    @abstractmethod
    def title(self) -> str:
        """The dataset's name in metrics, such as `openmoji`."""

    def licence(self) -> str:
        """Licence of the data."""
        return self.data_licence

    def attribution(self) -> str:
        """Attribution to print wherever the data is shown."""
        return self.data_attribution

    @abstractmethod
    def units(self) -> list[Unit]:
        """All units of work, listed without reading them, in a fixed order. Raises `UserError` if nothing can be read."""

    @abstractmethod
    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        """The rows of one unit, given its `data`, in a fixed order. Runs in the cluster.

        `images`: whether the encoded images are needed; a source that reads them anyway may fill `Pair.image`.
        """


def with_utf8_names(rows: Iterator[Pair | Rejected]) -> Iterator[Pair | Rejected]:
    """The rows, with pairs rejected whose names are not UTF-8, as file names may be: no table can store them."""
    for row in rows:
        if isinstance(row, Pair) and not is_text("".join((row.key, row.origin, row.location.file, *row.labels.values()))):
            yield Rejected(row.key, row.origin, "bad_row", "its name is not UTF-8; rename it")
        else:
            yield row


def file_of(unit: Any) -> str:
    """The file that a unit's `data` names, or the first of its files."""
    if isinstance(unit, dict):
        return str(unit.get("file", ""))
    if isinstance(unit, list):
        return next((name for item in unit if (name := file_of(item))), "")
    return unit if isinstance(unit, str) else ""


def unknown_files(names: Iterable[str], taken: Iterable[str], extensions: tuple[str, ...]) -> list[str]:
    """The files that are neither in `taken` nor share the stem of one that is, as `a.json` shares that of `a.jpg`.

    Empty if the user chose the extensions of images, and with them what to leave out.
    """
    if extensions != EXTENSIONS:
        return []
    stems = {str(PurePosixPath(name).with_suffix("")) for name in taken}
    return [name for name in names if str(PurePosixPath(name).with_suffix("")) not in stems]
