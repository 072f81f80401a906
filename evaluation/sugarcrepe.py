"""SugarCrepe: does a caption score above one that says something else in nearly the same words? (arXiv 2306.14610)

Hsieh, Zhang, Ma, Kembhavi, Krishna: SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality, NeurIPS 2023.
Seven subsets of images of COCO 2017 val, each with its caption and a negative caption, by what was done to the caption: an
object, attribute or relation replaced, two of them swapped, or one added. An item is right where the caption scores strictly
higher, so that chance is 50 % and ties and NaN are wrong.

In 164 of the 245 items of swap_obj and 408 of the 666 of swap_att, and in no other subset, both captions are the same words
in another order: those measure nothing but what a model knows of order.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.program.errors import UserError

# Items of each subset as published. Groups are the name's first part.
SIZES = {
    "replace_obj": 1652,
    "replace_att": 788,
    "replace_rel": 1406,
    "swap_obj": 245,
    "swap_att": 666,
    "add_obj": 2062,
    "add_att": 692,
}
GROUPS = ("replace", "swap", "add")
CHANCE = 50.0
SOURCE = "https://github.com/RAIVNLab/sugar-crepe"


@dataclass(frozen=True)
class Item:
    """An image's file name, its caption, and a caption that is not true of it."""

    filename: str
    caption: str
    negative: str

    @property
    def order_only(self) -> bool:
        """Whether both captions are the same words, each as often, in another order: a bag of words cannot tell them apart."""
        return _words(self.caption) == _words(self.negative)


def read(folder: Path, sizes: Mapping[str, int] | None = None) -> dict[str, list[Item]]:
    """The subsets as published, from `replace_obj.json` and so on: each `{id: {filename, caption, negative_caption}}`.

    Ids are not contiguous; items come in the order of the file.

    Args:
        folder: where the seven files lie.
        sizes: subsets to read and their numbers of items; all of `SIZES` by default.
    Raises:
        UserError: where a file is missing, is not of this form, or has another number of items than `sizes` says.
    """
    return {name: _read(folder / f"{name}.json", size) for name, size in (SIZES if sizes is None else sizes).items()}


def correct(images: np.ndarray, captions: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Whether each item is right, bool [n]: its image's cosine with the caption is strictly above that with the negative.

    Both cosines are taken in double precision and by the same additions, so that equal captions tie.

    Args:
        images, captions, negatives: float [n, D] unit rows, a row an item.
    """
    if not images.shape == captions.shape == negatives.shape:
        shapes = ", ".join(str(list(rows.shape)) for rows in (images, captions, negatives))
        raise ValueError(f"images, captions and negatives differ in shape: {shapes}")
    wide = images.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (wide * captions).sum(axis=1) > (wide * negatives).sum(axis=1)


def scores(right: Mapping[str, np.ndarray], order_only: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, int]]:
    """Percentages by name, and of how many items each is.

    A subset under its name. A group (`replace`, `swap`, `add`) and `macro`, over all subsets: the unweighted mean of its
    subsets, as the groups of published tables are. `micro` and `replace_micro` and so on: the share of pooled items, as the
    official average is. `order_only`: pooled over the items whose captions are the same words in another order, and
    `swap_obj_order_only` and so on for each subset that has such items.

    Args:
        right: for each subset whether its items are right, bool [n]; groups are formed of the subsets that are there.
        order_only: for each subset which of its items have the same words in both captions, bool [n].
    """
    found: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def pooled(name: str, parts: list[np.ndarray]) -> None:
        items = np.concatenate(parts)
        if len(items):
            found[name], sizes[name] = 100.0 * float(items.mean()), len(items)

    for name in right:
        pooled(name, [right[name]])
        pooled(f"{name}_order_only", [right[name][order_only[name]]])
    for group, label in (*((group, f"{group}_micro") for group in GROUPS), ("macro", "micro")):
        members = [name for name in right if group == "macro" or name.startswith(f"{group}_")]
        if members:
            found[group] = float(np.mean([found[name] for name in members]))
            sizes[group] = sum(sizes[name] for name in members)
            pooled(label, [right[name] for name in members])
    pooled("order_only", [right[name][order_only[name]] for name in right])
    return found, sizes


def _read(path: Path, size: int) -> list[Item]:
    if not path.is_file():
        raise UserError(f"sugarcrepe: {path} does not exist; put the seven json files of {SOURCE} (folder data) there")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"sugarcrepe: {path} is not readable as json: {error}; copy it anew from {SOURCE}") from None
    if not isinstance(tree, dict):
        raise UserError(f"sugarcrepe: {path} holds a {type(tree).__name__}; expected ids and items, as in {SOURCE}")
    items = []
    for key, entry in tree.items():
        values = []
        for field in ("filename", "caption", "negative_caption"):
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, str):
                raise UserError(f"sugarcrepe: {path}: item {key}: {field} is {value!r}; expected a text, as in {SOURCE}")
            values.append(value)
        items.append(Item(*values))
    if len(items) != size:
        raise UserError(f"sugarcrepe: {path} has {len(items)} items; expected {size}: copy it anew from {SOURCE}")
    return items


def _words(text: str) -> list[str]:
    """Words in alphabetical order, whatever their case and the punctuation around them."""
    return sorted(re.findall(r"[\w']+", text.lower()))
