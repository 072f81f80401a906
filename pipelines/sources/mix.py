"""Several sources as one, each with a weight: how often an epoch shows its pairs.

The pairs of one source follow those of the one before. A key begins with its source's title; captions, groups and labels are
unchanged, so equal captions of two sources stay in one split.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.program.errors import UserError
from pipelines.program.own_class import OrOwn
from pipelines.program.settings_base import Settings
from pipelines.sources.base import Pair, Rejected, Source, Unit
from pipelines.sources.classes import ClassesSource
from pipelines.sources.folder import FolderSource
from pipelines.sources.huggingface import HuggingFaceSource
from pipelines.sources.iconify import IconifySource
from pipelines.sources.json_lists import JsonSource
from pipelines.sources.openmoji import OpenMojiSource
from pipelines.sources.parquet import ParquetSource
from pipelines.sources.table import TableSource
from pipelines.sources.webdataset import WebDatasetSource

PlainSource = (
    OpenMojiSource
    | IconifySource
    | FolderSource
    | WebDatasetSource
    | ParquetSource
    | TableSource
    | JsonSource
    | HuggingFaceSource
    | ClassesSource
)


class Weighted(Settings):
    """A source of a mix, and its weight."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False, description="how often an epoch shows each of its pairs")
    source: Annotated[
        PlainSource,
        Field(discriminator="name", description="where its pairs come from; any source but a mix"),
        OrOwn(Source),
    ]


class MixSource(Source):
    """Several sources as one, each with a weight."""

    name: Literal["mix"]
    sources: tuple[Weighted, ...] = Field(min_length=1, description="the sources, in order, each with its weight")

    def title(self) -> str:
        return self.dataset or "+".join(self._titles())

    def licence(self) -> str:
        """The mix's own licence if it is set, else those of all sources."""
        return (
            self.data_licence if "data_licence" in self.model_fields_set else self._joined([s.licence() for s in self._inner()])
        )

    def attribution(self) -> str:
        return self.data_attribution or self._joined([source.attribution() for source in self._inner()])

    def units(self) -> list[Unit]:
        titles = self._titles()
        for index, title in enumerate(titles):
            if title in titles[:index]:
                problem = f"source.sources[{titles.index(title)}] is also named '{title}'"
                raise UserError(f"{_key(index)}.dataset", problem, "give one of them another name, as dataset: NAME")
        units: list[Unit] = []
        for index, part in enumerate(self.sources):
            try:
                of_source = part.source.units()
            except UserError as error:
                raise error.under(_key(index), instead_of="source") from None
            units += [replace(unit, data=[index, unit.data], weight=part.weight) for unit in of_source]
        return units

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        index, data = unit
        source = self.sources[index].source
        title = source.title()
        try:
            for row in source.read(data, images):
                yield replace(row, key=f"{title}/{row.key}")
        except UserError as error:
            raise error.under(_key(index), instead_of="source") from None

    def _inner(self) -> list[Source]:
        return [part.source for part in self.sources]

    def _titles(self) -> list[str]:
        return [source.title() for source in self._inner()]

    def _joined(self, texts: list[str]) -> str:
        return "; ".join(f"{title}: {text}" for title, text in zip(self._titles(), texts, strict=True) if text)


def _key(index: int) -> str:
    """The key of one of the sources."""
    return f"source.sources[{index}].source"
