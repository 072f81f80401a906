"""The tables of docs/objectives.md that can be computed: every key with its default, and what was measured of each objective. And
the table of docs/open_clip.md.

    python -m benchmarks.docs            # `make tables`: writes them; the words around them, and beside each key, stay

A section's table has each key of its objective once. A row whose keys are gone goes, and a key that has no row gets one, with
its description; the figures of a section's cost are those of docs/benchmarks/objectives.md.
"""

import json
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from pipelines.dataset.strong_views import StrongAugment
from training.importing.arguments import table
from training.objectives import ObjectiveUnion
from training.objectives.base import ObjectiveSettings
from training.towers.base import TowerSettings

PAGE = Path("docs/objectives.md")
MEASURED = Path("docs/benchmarks/objectives.md")
OPEN_CLIP = Path("docs/open_clip.md")
MEMBERS: dict[str, type[ObjectiveSettings]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(ObjectiveUnion)[0])
}
_ROW = re.compile(r"^\| (`.*?`) \| (.*?) \|(.*)$")
_COST = re.compile(r"step x [\d.]+, loss x [\d.]+, loss memory x \d+\.\d+")


def filled(page: str, measured: str) -> str:
    """The page with its tables computed anew. `measured`: the page with the table of costs. Raises `ValueError`."""
    head, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    named = {section.splitlines()[0].removeprefix("## "): section for section in sections}
    if missing := MEMBERS.keys() - named.keys():
        raise ValueError(
            f"{PAGE} has no section for {', '.join(sorted(missing))}; write one, headed '## NAME', with a table of keys"
        )
    costs = dict(re.findall(r"^\| ([\w-]+) \| .* \| (\S+ \| \S+ \| \S+ \| \S+) \|$", measured, flags=re.MULTILINE))
    for name, member in MEMBERS.items():
        section = _with_keys(named[name], member())
        if name in costs:
            step, _, loss, memory = costs[name].split(" | ")
            section = _COST.sub(f"step x {step}, loss x {loss}, loss memory x {memory}", section)
        named[name] = section
    return head + "".join(named.values())


def _with_keys(section: str, settings: ObjectiveSettings) -> str:
    """A section with the keys and defaults of its settings."""
    values, lines, last = keys_of(settings), [], 0
    left = dict(values)
    for line in section.splitlines():
        if row := _ROW.match(line):
            keys = [key for key in re.findall(r"`([\w.*]+)`", row[1]) if key in values]
            if not keys:
                continue
            wholes = [key for key in keys if key.endswith(".*")]  # what they stand for has no one default
            defaults = row[2] if wholes else ", ".join(_written(values[key]) for key in keys)
            line = f"| {', '.join(f'`{key}`' for key in keys)} | {defaults} |{row[3]}"
            left = {key: value for key, value in left.items() if key not in keys}
        lines.append(line)
        last = len(lines) if line.startswith("|") else last
    rows = [f"| `{key}` | {_written(value)} | {_description(settings, key)} |" for key, value in left.items()]
    if rows and not last:
        raise ValueError(f"{PAGE}, '{section.splitlines()[0]}': there is no table; write its head, '| key | default | |'")
    lines[last:last] = rows
    return "\n".join(lines) + "\n"


def keys_of(settings: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a settings object and their values; of parts that are settings themselves, their keys.

    Views and encoders have many, of which the command's --help tells: they stand as one. A name that there is only one of is
    nothing to choose, and left out.
    """
    found: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, StrongAugment | TowerSettings):
            found[f"{prefix}{name}.*"] = None
        elif isinstance(value, BaseModel):
            found |= keys_of(value, f"{prefix}{name}.")
            if len(get_args(field.annotation)) < 2:
                found.pop(f"{prefix}{name}.name", None)
        elif prefix + name != "name":
            found[prefix + name] = value
    return found


def _written(value: Any) -> str:
    """As YAML has it: null, true, ring, 0.07."""
    if isinstance(value, str):
        return value
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _description(settings: BaseModel, key: str) -> str:
    first, _, rest = key.partition(".")
    if rest and rest != "*":
        return _description(getattr(settings, first), rest)
    return type(settings).model_fields[first].description or ""


def with_arguments(page: str) -> str:
    """The page about open_clip, whose last part is the table of its arguments."""
    lines = table().splitlines()
    return page[: page.index(lines[0])] + "\n".join(lines) + "\n"


if __name__ == "__main__":
    OPEN_CLIP.write_text(with_arguments(OPEN_CLIP.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), MEASURED.read_text(encoding="utf-8")), encoding="utf-8")
