"""Class names, templates and main metric of the papers' classification sets, from `classes/NAME.json`.

Each file names the source and licence of its facts, and in `order` what the class numbers follow: names in another order
score at chance. A set that is `like` ImageNet has its templates and, unless it lists classes of its own, its names; `imagenet`
then says which of ImageNet's classes (0 to 999) each class is, which effective robustness needs.

CLIP's names give 'missile' and 'sunglasses' to two ImageNet classes each. Their vectors are equal, and ties count against the
model: up to 0.2 points of top-1 below papers that let argmax choose one of the two.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.program.errors import UserError

FOLDER = Path(__file__).parent / "classes"

# MCD's table 1 and its average; the other shipped sets are ImageNet's shifts.
ELEVEN = ("pets", "cifar10", "cifar100", "sun397", "food101", "flowers", "cars", "caltech101", "aircraft", "dtd", "imagenet")


@dataclass(frozen=True)
class ClassSet:
    """What is known of a classification set without its images."""

    name: str
    title: str
    metric: str  # "top1" or "mean_per_class": what the papers report of this set
    source: str
    licence: str
    order: str
    classes: tuple[tuple[str, ...], ...]  # names of each class
    templates: tuple[str, ...]
    imagenet: tuple[tuple[int, ...], ...] | None  # for each class the ImageNet classes that it is
    folders: tuple[str, ...] | None  # where folders of other classes lie beside those that are scored


def known_sets() -> list[str]:
    """Names of the sets that ship, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def class_set(name: str) -> ClassSet:
    """The shipped set of this name. Raises `UserError` for any other name."""
    names = known_sets()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"class set: '{name}' is unknown; {meant}there are {', '.join(names)}; or give classes and templates")
    facts = _read(name)
    base = _read(facts["like"]) if "like" in facts else facts
    everywhere = list(range(len(base["classes"]))) if "like" in facts else None
    positions: list[int | list[int]] | None = facts.get("imagenet", everywhere)
    classes = facts["classes"] if "classes" in facts else [base["classes"][position] for position in positions or []]
    return ClassSet(
        name=name,
        title=facts["title"],
        metric=facts["metric"],
        source=facts["source"],
        licence=facts["licence"],
        order=facts["order"],
        classes=tuple((entry,) if isinstance(entry, str) else tuple(entry) for entry in classes),
        templates=tuple(base["templates"]),
        imagenet=None if positions is None else tuple((p,) if isinstance(p, int) else tuple(p) for p in positions),
        folders=tuple(facts["folders"]) if "folders" in facts else None,
    )


def average_of_eleven(values: Mapping[str, float]) -> float | None:
    """Unweighted mean of the eleven sets' main metrics, as MCD, UniCLIP and DeCLIP average; None where one is missing.

    Args:
        values: main metric in percent by name of the set; other sets may be among them.
    """
    if any(name not in values for name in ELEVEN):
        return None
    return sum(values[name] for name in ELEVEN) / len(ELEVEN)


def _read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
