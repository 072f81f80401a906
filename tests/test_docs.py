"""The page about objectives knows every member of the union and every key, with its default."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from benchmarks.objectives import members as one_view_members
from pipelines.dataset.views import StrongAugment
from training.objectives import ObjectiveUnion
from training.objectives.base import ObjectiveSettings
from training.towers.base import TowerSettings

PAGE = (Path(__file__).parent.parent / "docs" / "objectives.md").read_text(encoding="utf-8")
BENCHMARK = (Path(__file__).parent.parent / "docs" / "benchmarks" / "objectives.md").read_text(encoding="utf-8")
MEMBERS: dict[str, type[ObjectiveSettings]] = {
    member.model_fields["name"].default: member for member in get_args(get_args(ObjectiveUnion)[0])
}
SECTIONS = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def keys_with_defaults(section: str) -> dict[str, str]:
    """From the rows `| \\`a\\`, \\`b\\` | 1, 2 | ... |` of a section's table."""
    found: dict[str, str] = {}
    for keys, defaults in re.findall(r"^\| (`.*?`) \| (.*?) \|", section, flags=re.MULTILINE):
        names, values = re.findall(r"`([\w.*]+)`", keys), defaults.split(", ")
        assert len(names) == len(values), f"{keys}: {defaults}"
        found |= dict(zip(names, values, strict=True))
    return found


def settings_with_defaults(settings: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a settings object and their values; of parts that are settings themselves, their keys.

    Views and encoders have many, of which the command's --help tells: they stand as one.
    """
    found: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, StrongAugment | TowerSettings):
            found[f"{prefix}{name}.*"] = None
        elif isinstance(value, BaseModel):
            found |= settings_with_defaults(value, f"{prefix}{name}.")
        elif prefix + name != "name":
            found[prefix + name] = value
    return found


@pytest.mark.parametrize("name", MEMBERS)
def test_every_objective_has_a_section_with_its_keys_and_defaults(name: str) -> None:
    section = SECTIONS[name]
    found, real = keys_with_defaults(section), settings_with_defaults(MEMBERS[name]())
    if MEMBERS[name].model_fields.get("teacher") and len(get_args(MEMBERS[name].model_fields["teacher"].annotation)) < 2:
        real.pop("teacher.name")  # nothing to choose
    assert found.keys() == real.keys()
    for key, value in real.items():
        written = found[key]
        if key.endswith(".*"):
            continue
        assert written == value or json.loads(written if written[0] in "-0123456789tfn" else f'"{written}"') == value, key


@pytest.mark.parametrize("name", MEMBERS)
def test_a_section_says_what_it_is_for_what_it_keeps_and_what_it_costs(name: str) -> None:
    for mark in ("*Use it*", "*State:*", "*Cost:*", "*Ours:*", "*Source:*", "    "):
        assert mark in SECTIONS[name], mark


@pytest.mark.parametrize("name", [name for name in one_view_members() if name != "clip"])
def test_costs_are_those_that_were_measured(name: str) -> None:
    """The last four columns of the benchmark's table: step time and memory, loss time and memory."""
    (row,) = re.findall(rf"^\| {name} \| .* \| (\S+) \| \S+ \| (\S+) \| (\S+) \|$", BENCHMARK, flags=re.MULTILINE)
    assert "*Cost:* step x {}, loss x {}, loss memory x {}".format(*row) in " ".join(SECTIONS[name].split())


def test_the_page_knows_no_objective_that_does_not_exist() -> None:
    assert {name for name in SECTIONS if name.islower()} == set(MEMBERS)
