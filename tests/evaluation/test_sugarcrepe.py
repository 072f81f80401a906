"""SugarCrepe: items by a rule in plain loops, groups by hand, and the files as published with each way to be wrong."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from evaluation.sugarcrepe import CHANCE, SIZES, Item, correct, read, scores
from tests.refusals import refused

ITEMS = {
    "swap_obj": {
        "3": {"filename": "000000000139.jpg", "caption": "A cat on a dog.", "negative_caption": "A dog on a cat."},
        "0": {"filename": "000000000285.jpg", "caption": "A man near a bus", "negative_caption": "A bus near the man"},
        "17": {"filename": "000000000139.jpg", "caption": "A red car, a blue bus", "negative_caption": "A blue car; a red bus"},
    },
    "add_att": {"1": {"filename": "000000000632.jpg", "caption": "A bed", "negative_caption": "A wooden bed"}},
}


def write(folder: Path, tree: dict) -> Path:
    for name, content in tree.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_published_layout_is_read(tmp_path: Path) -> None:
    found = read(write(tmp_path, ITEMS), {"swap_obj": 3, "add_att": 1})
    assert {name: [vars(item) for item in items] for name, items in found.items()} == {
        name: [{"filename": e["filename"], "caption": e["caption"], "negative": e["negative_caption"]} for e in entries.values()]
        for name, entries in ITEMS.items()
    }


def test_sizes_are_those_of_the_paper() -> None:
    assert SIZES == {
        "replace_obj": 1652,
        "replace_att": 788,
        "replace_rel": 1406,
        "swap_obj": 245,
        "swap_att": 666,
        "add_obj": 2062,
        "add_att": 692,
    }
    assert sum(SIZES.values()) == 7511 and CHANCE == 50


@pytest.mark.parametrize(
    ("content", "named", "remedy"),
    [
        (None, [], "https://github.com/RAIVNLab/sugar-crepe"),
        ("{", ["json"], "https"),
        ("[]", ["list"], "https"),
        ('{"5": {"filename": "a.jpg", "caption": "b"}}', ["item 5", "negative_caption", None], "https"),
        ('{"5": {"filename": "a.jpg", "caption": 7, "negative_caption": "c"}}', ["item 5", "caption", 7], "https"),
        ('{"5": "a.jpg"}', ["item 5", "filename", None], "https"),
        (json.dumps(ITEMS["swap_obj"]), [3, 245], "https"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: str | None, named: list, remedy: str) -> None:
    if content is not None:
        (tmp_path / "swap_obj.json").write_text(content, encoding="utf-8")
    with refused("path", "swap_obj.json", *named, remedy=remedy):
        read(tmp_path, {"swap_obj": 245})


def test_by_default_all_seven_are_inputs(tmp_path: Path) -> None:
    with refused("path", "replace_obj.json", remedy="https"):
        read(write(tmp_path, ITEMS))


@pytest.mark.parametrize(
    ("caption", "negative", "same"),
    [
        ("A cat on a dog.", "A dog on a cat.", True),
        ("A dog, on a cat", "on a Cat a dog!", True),
        ("A man near a bus", "A bus near the man", False),
        ("a dog and a cat", "a dog and cat", False),  # a word less is not another order
        ("two cats and one dog", "two dogs and one cat", False),
    ],
)
def test_order_only_means_the_same_words_each_as_often(caption: str, negative: str, same: bool) -> None:
    assert Item("x.jpg", caption, negative).order_only == same


def test_an_item_is_right_by_a_strictly_higher_cosine_only() -> None:
    """Against a rule in plain loops, on rows with ties and NaN among them."""
    random = np.random.default_rng(0)
    images, captions, negatives = (unit(random.normal(size=(200, 16))).astype(np.float32) for _ in range(3))
    negatives[::10] = captions[::10]
    captions[3], negatives[4], images[5] = np.nan, np.nan, np.nan

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    expected = [cosine(i, c) > cosine(i, n) for i, c, n in zip(images, captions, negatives, strict=True)]
    found = correct(images, captions, negatives)
    assert found.tolist() == expected and 60 < sum(expected) < 120
    assert not found[::10].any() and not found[3:6].any()


def test_a_collapsed_model_is_right_about_nothing() -> None:
    same = np.full((9, 300), 1 / math.sqrt(300), dtype=np.float32)
    assert not correct(same, same, same).any()


def test_rows_of_another_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"differ in shape: \[3, 2\], \[3, 2\], \[2, 2\]"):
        correct(np.ones((3, 2)), np.ones((3, 2)), np.ones((2, 2)))


def test_groups_are_means_of_subsets_and_micro_pools_items() -> None:
    random = np.random.default_rng(1)
    counts = {name: size // 20 for name, size in SIZES.items()}
    right = {name: random.random(count) < 0.2 + 0.1 * i for i, (name, count) in enumerate(counts.items())}
    order = {name: random.random(count) < (0.6 if name.startswith("swap") else 0) for name, count in counts.items()}
    found, sizes = scores(right, order)

    def share(names: list[str], among: dict[str, np.ndarray] | None = None) -> float:
        counted: Counter[bool] = Counter()
        for name in names:
            chosen = among[name] if among else [True] * counts[name]
            counted.update(bool(r) for r, taken in zip(right[name], chosen, strict=True) if taken)
        return 100 * counted[True] / counted.total()

    groups = {
        "replace": ["replace_obj", "replace_att", "replace_rel"],
        "swap": ["swap_obj", "swap_att"],
        "add": ["add_obj", "add_att"],
    }
    expected = {name: share([name]) for name in SIZES}
    expected |= {group: sum(share([name]) for name in names) / len(names) for group, names in groups.items()}
    expected |= {f"{group}_micro": share(names) for group, names in groups.items()}
    expected |= {"macro": sum(share([name]) for name in SIZES) / 7, "micro": share(list(SIZES))}
    expected |= {f"{name}_order_only": share([name], order) for name in groups["swap"]}
    expected["order_only"] = share(list(SIZES), order)
    assert found == pytest.approx(expected, abs=1e-9)
    assert abs(found["micro"] - found["macro"]) > 1 and abs(found["replace"] - found["replace_micro"]) > 1
    assert sizes["swap"] == sizes["swap_micro"] == counts["swap_obj"] + counts["swap_att"]
    assert sizes["macro"] == sizes["micro"] == sum(counts.values()) and sizes["add_obj"] == counts["add_obj"]
    assert sizes["order_only"] == sum(int(chosen.sum()) for chosen in order.values()) and set(sizes) == set(found)
