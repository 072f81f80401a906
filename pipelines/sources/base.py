"""The one interface of all sources.

A source lists units of work on the driver, cheaply, and reads one unit at a time in the cluster. A unit is what is best
read in one go: a bunch of files, a tar, a row group. Reading a unit yields a `Pair` or a `Rejected` for every row: a bad
row never stops the others.
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

UNKNOWN_FILE = f"neither an image by its name ({', '.join(EXTENSIONS)}) nor beside one of this name"


NOT_UTF8 = "its name is not UTF-8; rename it"


@dataclass(frozen=True)
class Pair:
    """One image with at least one caption, as found."""

    key: str  # unique within the source
    origin: str  # where it came from, for people: a path, a URL, a member of a tar
    location: Location  # where the image's encoded bytes are
    captions: list[str]
    group: str  # what must not be torn apart by a split: a concept, a product, a photographer
    labels: dict[str, str] = field(default_factory=dict)
    image: bytes | None = None  # encoded, where the source had them at hand; else they are read from `location`
    split: str = ""  # the source's own, from `Unit.splits`, where the config keeps it


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why: `reason` is a short code, counted in the manifest."""

    key: str
    origin: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Unit:
    """One piece of reading. `data` is what `read` needs, as JSON values; what makes its content change is part of it."""

    data: Any
    rows: int | None  # how many rows it will give; None: not known before it is read
    absent: int = 0  # rows that whoever fetched the data listed, and could not fetch
    weight: float = 1.0  # how often an epoch shows its pairs
    splits: tuple[str, ...] | None = None  # the source's own, of each row; "" where a row names none; None: it has no splits


class Source(Named):
    """Base of the source settings: what to read, and how."""

    dataset: str = Field(
        "", description="the dataset's name in metrics; by default what a JSON file calls it, or taken from the path"
    )
    data_licence: str = Field("unknown", description="licence of the data")
    data_attribution: str = Field("", description="what must stand beside the data where it is shown")

    @abstractmethod
    def title(self) -> str:
        """The dataset's name in metrics, such as `openmoji`."""

    def licence(self) -> str:
        """Licence of the data."""
        return self.data_licence

    def attribution(self) -> str:
        """What must stand beside the data wherever it is shown."""
        return self.data_attribution

    @abstractmethod
    def units(self) -> list[Unit]:
        """All work, listed without reading it, in a fixed order. Raises `UserError` where nothing can be read."""

    @abstractmethod
    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        """The rows of one unit's `data`, in a fixed order. Runs in the cluster.

        `images`: the encoded images are wanted too; a source that passes them anyway fills `Pair.image`.
        """


def with_names(found: Iterator[Pair | Rejected]) -> Iterator[Pair | Rejected]:
    """The rows; a pair that is named by bytes that are no UTF-8, as file names may be, is rejected: no table could hold it."""
    for row in found:
        if isinstance(row, Pair) and not is_text("".join((row.key, row.origin, row.location.file, *row.labels.values()))):
            yield Rejected(row.key, row.origin, "bad_row", NOT_UTF8)
        else:
            yield row


def file_of(unit: Any) -> str:
    """What people call a unit's `data`: its file, or the first of its files."""
    if isinstance(unit, dict):
        return str(unit.get("file", ""))
    if isinstance(unit, list):
        return next((name for item in unit if (name := file_of(item))), "")
    return unit if isinstance(unit, str) else ""


def unknown_files(names: Iterable[str], taken: Iterable[str], extensions: tuple[str, ...]) -> list[str]:
    """Files of a folder that nobody takes and that do not go with one that is taken: `a.json` goes with `a.jpg`.

    None where the endings of images are the user's own: then the others are left out because somebody asked for it.
    """
    if extensions != EXTENSIONS:
        return []
    stems = {str(PurePosixPath(name).with_suffix("")) for name in taken}
    return [name for name in names if str(PurePosixPath(name).with_suffix("")) not in stems]
