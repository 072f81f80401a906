"""What a set's classes are called, and which of a shipped set's classes each of somebody's classes is.

Shipped sets (`evaluation/classes`) have CLIP's names in a fixed order; who packed the images may have sorted them otherwise.
Numbers that are taken over without a look at the names would score at chance, and nobody would know why.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from evaluation.class_sets import ClassSet, class_set
from evaluation.data.base import Classification, LabelledImages
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings

PLAIN_TEMPLATES = ("a photo of a {}.", "{}")  # for classes of which nothing is known


def _have_a_place(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for template in value or ():
        if "{}" not in template and "{c}" not in template:
            raise ValueError(f"'{template}' has no {{}} for the name of the class")
    return value


Templates = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_have_a_place)]
"""Prompts of a class; `{}` or `{c}` stands for its name."""


class NamedSettings(Settings):
    """Keys of readers whose classes may be those of a shipped set."""

    classes: str | None = Field(
        None, description="shipped class set whose names, templates and metric count, such as imagenet; null: those of the data"
    )
    templates: Templates | None = Field(
        None,
        description="prompts of a class; {} or {c} is its name; null: those of the class set, or of the data, or two plain ones",
    )
    metric: Literal["top1", "mean_per_class"] | None = Field(
        None, description="the main score; null: what papers report of the class set, or top1"
    )

    def known(self, key: str) -> ClassSet | None:
        """The shipped set. Raises `UserError` where there is none of that name."""
        if self.classes is None:
            return None
        try:
            return class_set(self.classes)
        except UserError as error:
            raise UserError(f"{key}.classes: {str(error).removeprefix('class set: ')}") from None

    def classification(
        self,
        known: ClassSet | None,
        given: Sequence[str],
        test: LabelledImages,
        train: LabelledImages | None = None,
        validation: LabelledImages | None = None,
        templates: Sequence[str] = PLAIN_TEMPLATES,
    ) -> Classification:
        """With the words of the shipped set, or, without one, those of the data; settings go before both.

        Args:
            given: the data's names of all classes; templates: the data's.
        """
        if known is None:
            classes = tuple((name,) for name in given)
            return Classification(classes, self.templates or tuple(templates), self.metric or "top1", test, train, validation)
        prompts, metric = self.templates or known.templates, self.metric or known.metric
        return Classification(known.classes, prompts, metric, test, train, validation, known.imagenet)


def readable(name: str) -> str:
    """A folder's name as people would say it; prompts of prepared datasets have always been made so."""
    return name.replace("-", " ").replace("_", " ")


def positions(given: Sequence[str], known: ClassSet, key: str, where: str) -> np.ndarray:
    """Which class of the shipped set each of these is, int64 [C].

    By name, whatever its case and punctuation, where every name is found; else in the same order. Raises `UserError` where
    there are more or fewer classes, or where a name that is found belongs to another place.

    Args:
        given: names of all classes, in the order of the numbers or folders of the data.
        where: what the names are of, for errors.
    """
    if len(given) != len(known.classes):
        raise UserError(
            f"{key}: {where} has {len(given)} classes, and the class set {known.name} has {len(known.classes)}; its order is: "
            f"{known.order}"
        )
    places: dict[str, list[int]] = {}
    for position, names in enumerate(known.classes):
        for name in {_plain(name) for name in names}:
            places.setdefault(name, []).append(position)
    found = [places.get(_plain(name), []) for name in given]
    if all(len(place) == 1 for place in found) and len({place[0] for place in found}) == len(given):
        return np.asarray([place[0] for place in found], dtype=np.int64)
    for position, (name, place) in enumerate(zip(given, found, strict=True)):
        if place and position not in place:
            raise UserError(
                f"{key}: '{name}' is class {position} of {where} and class {place[0]} of the class set {known.name}, and other "
                f"names are not alike, so that neither they nor the order tell what is what; the set's order is: {known.order}"
            )
    return np.arange(len(given), dtype=np.int64)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
