"""Names of a data set's classes, and how its class numbers map to those of a shipped class set.

Shipped sets (`evaluation/classes`) have CLIP's names in a fixed order; a copy of the images may have its classes in another.
Class numbers used without a comparison of names would then score at chance, for no visible reason.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, Field

from evaluation.class_sets import ClassSet, class_set
from evaluation.data.base import Classification, LabelledImages
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings

PLAIN_TEMPLATES = ("a photo of a {}.", "{}")  # for classes without templates of their own


def _have_place(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for template in value or ():
        if "{}" not in template and "{c}" not in template:
            raise ValueError(f"'{template}' has no place for the name of the class; write {{}} or {{c}} there")
    return value


Templates = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_have_place)]
"""Prompts of a class; `{}` or `{c}` stands for its name."""


class ClassNameSettings(Settings):
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

    def class_set(self, key: str) -> ClassSet | None:
        """The shipped set that `classes` names. Raises `UserError` where there is none of that name."""
        try:
            return None if self.classes is None else class_set(self.classes)
        except UserError as error:
            raise error.under(key) from None

    def classification(
        self,
        shipped: ClassSet | None,
        names: Sequence[str],
        test: LabelledImages,
        train: LabelledImages | None = None,
        validation: LabelledImages | None = None,
        templates: Sequence[str] = PLAIN_TEMPLATES,
    ) -> Classification:
        """With the names, templates and metric of the shipped set, or else of the data; settings override both.

        Args:
            names: the data's class names; templates: the data's.
        """
        if shipped is None:
            classes = tuple((name,) for name in names)
            return Classification(classes, self.templates or tuple(templates), self.metric or "top1", test, train, validation)
        prompts, metric = self.templates or shipped.templates, self.metric or shipped.metric
        return Classification(shipped.classes, prompts, metric, test, train, validation, shipped.imagenet)


def readable(name: str) -> str:
    """A class name for prompts, from the name of a folder or a label."""
    return name.replace("-", " ").replace("_", " ")


def match_classes(names: Sequence[str], shipped: ClassSet, key: str, source: str) -> np.ndarray:
    """The shipped set's class of each of the data's classes, int64 [C].

    By name, without case and punctuation, where every name matches one class; else in the same order. Raises `UserError` where
    there are more or fewer classes, or where a matching name contradicts that order.

    Args:
        names: of all classes, in the order of the data's class numbers or folders.
        source: what the names come from, for errors.
    """
    order = f"order them as the class set does: {shipped.order}"
    if len(names) != len(shipped.classes):
        problem = f"{source} has {len(names)} classes, and the class set {shipped.name} has {len(shipped.classes)}"
        raise UserError(key, problem, f"give exactly its classes, and {order}")
    by_name: dict[str, list[int]] = {}
    for position, synonyms in enumerate(shipped.classes):
        for name in {_plain(name) for name in synonyms}:
            by_name.setdefault(name, []).append(position)
    matches = [by_name.get(_plain(name), []) for name in names]
    if all(len(match) == 1 for match in matches) and len({match[0] for match in matches}) == len(names):
        return np.asarray([match[0] for match in matches], dtype=np.int64)
    for position, (name, match) in enumerate(zip(names, matches, strict=True)):
        if match and position not in match:
            raise UserError(
                key,
                f"'{name}' is class {position} of {source} and class {match[0]} of the class set {shipped.name}, and other names "
                "match no class, so that neither names nor order identify the classes",
                order,
            )
    return np.arange(len(names), dtype=np.int64)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
