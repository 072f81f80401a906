"""SugarCrepe: does an image's caption score above a negative caption of similar wording? (arXiv 2306.14610)

Hsieh, Zhang, Ma, Kembhavi, Krishna: SugarCrepe: Fixing Hackable Benchmarks for Vision-Language Compositionality, NeurIPS 2023.
Seven subsets of images of COCO 2017 val, each with its caption and a negative caption. The subsets differ in how the caption was
changed: an object, attribute or relation was replaced, two were swapped, or one was added. An item is right where the caption
scores strictly higher, so that chance is 50 %, and ties and NaN are wrong.

In 164 of the 245 items of swap_obj and 408 of the 666 of swap_att, and in no other subset, both captions are the same words
in another order: those items measure only sensitivity to word order.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.program.errors import UserError

# Number of items of each published subset. The first part of the name is its group.
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
    """An image's file name, its caption, and a caption that does not describe it."""

    filename: str
    caption: str
    negative: str

    @property
    def order_only(self) -> bool:
        """Whether both captions are the same multiset of words: a bag-of-words model cannot tell them apart."""
        return _words(self.caption) == _words(self.negative)


def read(folder: Path, sizes: Mapping[str, int] | None = None) -> dict[str, list[Item]]:
    """The subsets as published, from `replace_obj.json` and so on: each `{id: {filename, caption, negative_caption}}`.

    Ids are not contiguous; items keep the order of the file.

    Args:
        folder: holds the seven files.
        sizes: subsets to read and their numbers of items; all of `SIZES` by default.
    Raises:
        UserError: about `path`, where a file is missing, is not of this form, or has not as many items as `sizes` says.
    """
    return {name: _read(folder / f"{name}.json", size) for name, size in (SIZES if sizes is None else sizes).items()}


def correct(images: np.ndarray, captions: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Whether each item is right, bool [n]: its image's cosine with the caption is strictly above that with the negative.

    Both cosines are computed in double precision by the same additions, so that equal captions tie.

    Args:
        images, captions, negatives: float [n, D] unit rows, one row per item.
    """
    if not images.shape == captions.shape == negatives.shape:
        shapes = ", ".join(str(list(rows.shape)) for rows in (images, captions, negatives))
        raise ValueError(f"images, captions and negatives differ in shape: {shapes}")
    wide = images.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (wide * captions).sum(axis=1) > (wide * negatives).sum(axis=1)


def scores(right: Mapping[str, np.ndarray], order_only: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, int]]:
    """Percentages by name, and the number of items of each.

    A subset has its own name. A group (`replace`, `swap`, `add`) and `macro`, over all subsets, are the unweighted mean of their
    subsets, as in published tables. `micro`, `replace_micro` and so on pool the items, as the official average does. `order_only`
    pools the items whose captions are the same words in another order; `swap_obj_order_only` and so on are those of one subset.

    Args:
        right: for each subset whether its items are right, bool [n]; groups consist of the subsets given here.
        order_only: for each subset which of its items have the same words in both captions, bool [n].
    """
    percentages: dict[str, float] = {}
    sizes: dict[str, int] = {}

    def pooled(name: str, parts: list[np.ndarray]) -> None:
        items = np.concatenate(parts)
        if len(items):
            percentages[name], sizes[name] = 100.0 * float(items.mean()), len(items)

    for name in right:
        pooled(name, [right[name]])
        pooled(f"{name}_order_only", [right[name][order_only[name]]])
    for group, label in (*((group, f"{group}_micro") for group in GROUPS), ("macro", "micro")):
        members = [name for name in right if group == "macro" or name.startswith(f"{group}_")]
        if members:
            percentages[group] = float(np.mean([percentages[name] for name in members]))
            sizes[group] = sum(sizes[name] for name in members)
            pooled(label, [right[name] for name in members])
    pooled("order_only", [right[name][order_only[name]] for name in right])
    return percentages, sizes


def _read(path: Path, size: int) -> list[Item]:
    again = f"copy it again from {SOURCE}"
    if not path.is_file():
        raise UserError("path", f"{path} does not exist", f"put the seven json files of {SOURCE} (folder data) there")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError("path", f"{path} is not readable as json: {error}", again) from None
    if not isinstance(tree, dict):
        raise UserError("path", f"{path} holds a {type(tree).__name__}, not items by id", again)
    items = []
    for item_id, entry in tree.items():
        values = []
        for field in ("filename", "caption", "negative_caption"):
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, str):
                raise UserError("path", f"{path}: {field} of item {item_id} is {value!r}, not a text", again)
            values.append(value)
        items.append(Item(*values))
    if len(items) != size:
        raise UserError("path", f"{path} has {len(items)} items, and {path.stem} should have {size}", again)
    return items


def _words(text: str) -> list[str]:
    """Words in alphabetical order, without case and punctuation."""
    return sorted(re.findall(r"[\w']+", text.lower()))
