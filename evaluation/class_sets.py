"""Class names, templates and main metric of the papers' classification sets, from `classes/NAME.json`.

Each file names the source and licence of its facts, and in `order` the order of the class numbers: names in another order score
at chance. A set that is `like` ImageNet uses its templates and, unless it lists classes of its own, its names; `imagenet` then
maps each class to ImageNet's classes (0 to 999), which effective robustness needs.

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
    """A classification set without its images."""

    name: str
    title: str
    metric: str  # "top1" or "mean_per_class", as papers report the set
    source: str
    licence: str
    order: str
    classes: tuple[tuple[str, ...], ...]  # names of each class
    templates: tuple[str, ...]
    imagenet: tuple[tuple[int, ...], ...] | None  # ImageNet's classes of each class
    folders: tuple[str, ...] | None  # of the scored classes, where the set has folders of other classes too


def known_sets() -> list[str]:
    """Names of the shipped sets, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def class_set(name: str) -> ClassSet:
    """The shipped set of this name. Raises `UserError` about `classes` for any other name."""
    names = known_sets()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise UserError("classes", f"there is no class set '{name}'", f"{meant}Choose one of {', '.join(names)}")
    facts = _read(name)
    base = _read(facts["like"]) if "like" in facts else facts
    all_positions = list(range(len(base["classes"]))) if "like" in facts else None
    positions: list[int | list[int]] | None = facts.get("imagenet", all_positions)
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
        values: main metric in percent by name of the set; those of other sets are ignored.
    """
    if any(name not in values for name in ELEVEN):
        return None
    return sum(values[name] for name in ELEVEN) / len(ELEVEN)


def _read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
