"""Icons of the npm package @iconify/json: some 390,000 drawings of 240 sets, each with the name that its author typed.

A set is a file `json/PREFIX.json` of Iconify's format (https://iconify.design/docs/types/iconify-json.html): each icon's body of
an SVG, with a size that the set or the icon has. The caption is the name with its words apart; the whole name is in the key,
`PREFIX:NAME`. Icons that are the same thing in several styles of a set, or of sets by the same authors, form one group.

What the repository says about the icons, and keeps as it is, is in `pipelines/iconify`: the splits, and the concepts that are
classes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.io import storage
from pipelines.io.image_bytes import Location
from pipelines.io.storage import File, Missing
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.text_lines import decoded
from pipelines.sources.base import Pair, Rejected, Source, Unit
from pipelines.sources.icon_names import Naming

PERMISSIVE = (
    *("MIT", "Apache-2.0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "Unlicense"),
    *("CC-BY-3.0", "CC-BY-4.0", "OFL-1.1"),
)
FACTS = Path(__file__).parent.parent / "iconify"
_ROWS_PER_UNIT = 2048
_SIZE = 16  # of an icon without any (Iconify's format)
_ANIMATION = re.compile(r"<(animate|set)\b|<animate[A-Z]")


class IconifySource(Source):
    """Icons of the npm package @iconify/json, with their names as captions."""

    name: Literal["iconify"]
    path: Place = Field(description="folder of the package, such as node_modules/@iconify/json")
    licences: tuple[str, ...] = Field(
        PERMISSIVE, min_length=1, description="SPDX identifiers of licences; icons of sets under another are left out and counted"
    )
    sets: tuple[str, ...] | None = Field(None, description="read only the sets of these prefixes; null: all")

    def title(self) -> str:
        return self.dataset or "iconify"

    def licence(self) -> str:
        return ", ".join(sorted({licence_of(icon_set.info) for icon_set in self._credited()}))

    def attribution(self) -> str:
        """Name, author and licence of every set that is read."""
        credited = self._credited()
        sets = "; ".join(credit_of(icon_set.info, icon_set.prefix) for icon_set in credited)
        return f"Icons of {len(credited)} sets from Iconify (https://iconify.design): {sets}"

    def units(self) -> list[Unit]:
        units: list[Unit] = []
        for icon_set in self._listed():
            data = {"file": icon_set.file.path, "size": icon_set.file.size, "changed": icon_set.file.changed}
            if icon_set.damage:
                units.append(Unit(data | {"damage": icon_set.damage}, rows=1, splits=("",)))
            for first in range(0, len(icon_set.rows), _ROWS_PER_UNIT):
                rows = icon_set.rows[first : first + _ROWS_PER_UNIT]
                splits = tuple(split_of(icon_set.prefix, name) for name in rows)
                units.append(Unit(data | {"first": first, "rows": len(rows)}, rows=len(rows), splits=splits))
        return units

    def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
        file = unit["file"]
        if "damage" in unit:
            yield Rejected(storage.name_of(file), file, "unreadable_file", unit["damage"])
            return
        if not images:
            raise UserError("source.path", f"{file} holds many icons, so none can be read by itself", "prepare with mode=copy")
        try:
            icons = Icons(_parsed(file))
        except (Missing, ValueError) as error:
            yield Rejected(storage.name_of(file), file, "unreadable_file", str(error))
            return
        for name in icons.rows[unit["first"] : unit["first"] + unit["rows"]]:
            yield self._row(icons, name, file)

    def _row(self, icons: "Icons", name: str, file: str) -> Pair | Rejected:
        key, origin = f"{icons.prefix}:{name}", f"{file}: {name}"
        if licence_of(icons.info) not in self.licences:
            return Rejected(key, origin, "licence", licence_of(icons.info))
        try:
            icon = icons.icon(name)
            if icon.get("hidden"):
                return Rejected(key, origin, "hidden", "its set has withdrawn it")
            if name not in icons.own and not _changes(icon):
                return Rejected(key, origin, "alias", f"another name of {icons.aliases[name]['parent']}")
            body = svg_of(icon)
        except ValueError as error:
            return Rejected(key, origin, "bad_row", str(error))
        if _ANIMATION.search(icon["body"]):
            return Rejected(key, origin, "animated", "its first frame may show nothing")
        parts = icons.naming.read(name)
        labels = {
            "concept": _concepts().get(parts.drawing),
            "set": icons.prefix,
            "category": icons.info.get("category"),
            "palette": "colour" if icons.info.get("palette") else "one colour",
            "style": parts.style,
        }
        return Pair(
            key,
            origin,
            Location(file),
            [parts.words],
            group=f"{_families().get(icons.prefix, icons.prefix)}/{parts.drawing}",
            labels={name: str(value) for name, value in labels.items() if value},
            image=body,
        )

    def _credited(self) -> list["_Set"]:
        """The sets that are read, by their licence."""
        return [listed for listed in self._listed() if listed.rows and licence_of(listed.info) in self.licences]

    def _listed(self) -> tuple["_Set", ...]:
        """All sets, or those that `sets` names. Raises `UserError`."""
        folder = storage.join(self.path, "json")
        files = tuple(file for name, file in storage.data_below(folder).items() if "/" not in name and name.endswith(".json"))
        if not files:
            problem = f"there are no sets of icons (json/PREFIX.json) in {self.path}"
            remedy = "run make icons, or give the folder of the npm package @iconify/json, unpacked, as source.path"
            raise UserError("source.path", problem, remedy)
        by_name = {storage.name_of(file.path).removesuffix(".json"): file for file in files}
        for name in self.sets or ():
            if name not in by_name:
                raise UserError("source.sets", f"there is no set '{name}' in {folder}", f"choose from {', '.join(by_name)}")
        return _sets(files if self.sets is None else tuple(by_name[name] for name in self.sets))


@dataclass(frozen=True)
class _Set:
    """What listing needs of a set."""

    file: File
    prefix: str
    info: Mapping[str, Any]
    rows: tuple[str, ...]
    damage: str = ""


@lru_cache(maxsize=1)
def _sets(files: tuple[File, ...]) -> tuple[_Set, ...]:
    """The sets in these files. Some seconds for all."""
    sets = []
    for file in files:
        prefix = storage.name_of(file.path).removesuffix(".json")
        try:
            icons = Icons(_parsed(file.path))
            sets.append(_Set(file, icons.prefix, icons.info, icons.rows))
        except (Missing, ValueError) as error:
            sets.append(_Set(file, prefix, {}, (), str(error)))
    return tuple(sets)


def _parsed(file: str) -> Any:
    """Raises `ValueError`, `Missing`."""
    try:
        return json.loads(decoded(storage.read(file)))
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Icons:
    """A set in Iconify's format. Raises `ValueError` if it is none."""

    def __init__(self, document: Any):
        if not isinstance(document, dict) or not isinstance(document.get("icons"), dict):
            raise ValueError("not a set of icons: it has no 'icons'")
        self._document = document
        self.prefix = str(document.get("prefix") or "")
        self.own, self.aliases, self.info = (self._table(name) for name in ("icons", "aliases", "info"))
        if not self.prefix:
            raise ValueError("not a set of icons: it has no 'prefix'")

    def _table(self, name: str) -> dict[str, Any]:
        table = self._document.get(name)
        return table if isinstance(table, dict) else {}

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Names of all icons and aliases, in the set's order."""
        return (*self.own, *(name for name in self.aliases if name not in self.own))

    @cached_property
    def naming(self) -> Naming:
        return Naming(self.own, *({k: str(v) for k, v in self._table(name).items()} for name in ("prefixes", "suffixes")))

    def icon(self, name: str) -> dict[str, Any]:
        """An icon with all its properties; an alias changes those of its parent. Raises `ValueError` if there is no such icon.

        Properties replace the parent's, but turns add up, and a flip undoes a flip, as Iconify's format has it.
        """
        chain, seen = [], set[str]()
        while name not in self.own:
            alias = self.aliases.get(name)
            if name in seen or not isinstance(alias, dict) or not isinstance(alias.get("parent"), str):
                raise ValueError(f"'{name}' is an alias of itself" if name in seen else f"there is no icon '{name}'")
            seen.add(name)
            chain.append(alias)
            name = alias["parent"]
        if not isinstance(self.own[name], dict):
            raise ValueError(f"'{name}' is not an icon: {str(self.own[name])[:40]}")
        of_set = {key: self._document[key] for key in ("left", "top", "width", "height") if key in self._document}
        icon = of_set | self.own[name]
        for alias in reversed(chain):
            turns = {"rotate": _turns(icon) + _turns(alias)}
            flips = {flip: bool(icon.get(flip)) != bool(alias.get(flip)) for flip in ("hFlip", "vFlip")}
            icon = icon | alias | turns | flips
        return icon


def svg_of(icon: Mapping[str, Any]) -> bytes:
    """An icon as SVG: flipped, then turned clockwise by quarters. Raises `ValueError` for one without body or size."""
    body = icon.get("body")
    if not isinstance(body, str):
        raise ValueError("it has no body")
    left, top = (_number(icon, name, 0) for name in ("left", "top"))
    width, height = (_number(icon, name, _SIZE) for name in ("width", "height"))
    if width <= 0 or height <= 0:
        raise ValueError(f"its size is {width} x {height}")
    steps = [f"translate({-left} {-top})"] if left or top else []
    if icon.get("hFlip"):
        steps.append(f"matrix(-1 0 0 1 {width} 0)")
    if icon.get("vFlip"):
        steps.append(f"matrix(1 0 0 -1 0 {height})")
    for _ in range(_turns(icon) % 4):
        steps.append(f"matrix(0 1 -1 0 {height} 0)")
        width, height = height, width
    if steps:
        body = f'<g transform="{" ".join(reversed(steps))}">{body}</g>'
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} width="{width}" height="{height}" viewBox="0 0 {width} {height}">{body}</svg>'.encode()


def _number(icon: Mapping[str, Any], name: str, default: float) -> float:
    value = icon.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e6:
        raise ValueError(f"its {name} is {str(value)[:40]!r}")
    return value


def _turns(icon: Mapping[str, Any]) -> int:
    """Quarters of a turn, clockwise."""
    return int(_number(icon, "rotate", 0))


def _changes(icon: Mapping[str, Any]) -> bool:
    """Whether an alias is another drawing than its parent."""
    return bool(_turns(icon) % 4 or icon.get("hFlip") or icon.get("vFlip"))


def licence_of(info: Mapping[str, Any]) -> str:
    """A set's licence as SPDX identifier, or its title."""
    licence = info.get("license")
    return str((licence.get("spdx") or licence.get("title") if isinstance(licence, dict) else licence) or "unknown")


def credit_of(info: Mapping[str, Any], prefix: str) -> str:
    """Name, author and licence of a set: "Feather Icons by Cole Bemis (MIT)"."""
    author = info.get("author")
    by = author.get("name") if isinstance(author, dict) else author
    return f"{info.get('name') or prefix}{f' by {by}' if by else ''} ({licence_of(info)})"


def split_of(prefix: str, name: str) -> str:
    """The published split of an icon: shift for the held-out sets, test or validation if it is listed there, else train."""
    if prefix in _shift():
        return "shift"
    return _listed_icons().get(f"{prefix}:{name}", "train")


def _lines(file: str) -> list[str]:
    return (FACTS / file).read_text(encoding="utf-8").splitlines()


@lru_cache
def _shift() -> frozenset[str]:
    return frozenset(name for line in _lines("shift.txt") for name in line.partition(":")[2].split())


@lru_cache
def _listed_icons() -> dict[str, str]:
    return {name: split for split in ("test", "validation") for name in _lines(f"{split}.txt")}


@lru_cache
def _families() -> dict[str, str]:
    """The family of each set that has others."""
    lines = (line.partition(":") for line in _lines("families.txt"))
    return {name: family for family, _, names in lines for name in names.split()}


@lru_cache
def _concepts() -> dict[str, str]:
    """The class of a drawing: each line has the names of one, the class's own first."""
    return {name: line.split()[0] for line in _lines("concepts.txt") for name in line.split()}
