"""Assigning ids: duplicates, dense ids, exchanged captions and the fingerprint, each set against a plain re-derivation."""

import functools
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.dataset.prepared import split_of
from pipelines.io.image_bytes import Location
from pipelines.prepare.assign_ids import REJECTED, Totals, assign_ids, first_seen
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.curate import ROW_SCHEMA, curate
from pipelines.prepare.shards import Part, rows_file
from pipelines.sources.base import Pair, Rejected

SPLITS = {"test": 0.3}


# --- arrays ---


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=60))
def test_ids_are_numbered_as_they_appear(values: list[int]) -> None:
    seen: dict[int, int] = {}
    expected = [seen.setdefault(value, len(seen)) for value in values]
    found = first_seen(np.asarray(values, dtype=np.uint64))
    assert found.tolist() == expected and found.dtype == np.int64


# --- parts to shards ---


@dataclass(frozen=True)
class Given:
    """A pair as a source has it; images are called by names."""

    key: str
    image: str = "p"
    captions: tuple[str, ...] = ("a caption",)
    group: str = "g"
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""

    def row(self, settings: PrepareSettings) -> dict[str, Any]:
        """What a part notes of it."""
        pair = Pair(
            self.key,
            f"from {self.key}",
            Location("x"),
            list(self.captions),
            self.group,
            self.labels,
            drawn(self.image),
            self.split,
        )
        (row,) = curate([pair], settings)
        return row.columns


@functools.cache
def drawn(name: str) -> bytes:
    """Some image, another for every name."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def settings_of(**keys: Any) -> PrepareSettings:
    source = {"name": "folder", "path": "/nowhere"}
    tree = {"source": source, "output": "/unused", "splits": SPLITS, "image": {"size": 8, "format": "png"}}
    return PrepareSettings.model_validate(tree | keys)


def assigned(
    folder: Path, parts: Sequence[Sequence[Given | Rejected]], weights: Sequence[float] = (), **keys: Any
) -> tuple[Totals, list[dict[str, Any]], list[dict[str, Any]]]:
    """What `assign_ids` returns, the kept rows, and the rejected ones."""
    content = folder / "content-x"
    content.mkdir(parents=True, exist_ok=True)
    settings = settings_of(**keys)
    made = []
    for index, rows in enumerate(parts):
        part = Part(index, (), len(rows), 0, weights[index] if weights else 1.0)
        found = [vars(row) if isinstance(row, Rejected) else row.row(settings) for row in rows]
        pq.write_table(pa.Table.from_pylist(found, schema=ROW_SCHEMA), rows_file(content, part))
        made.append(part)
    result = assign_ids(made, content, settings, folder / "rejected.parquet")
    kept = [row for shard in result.shards for row in pq.read_table(folder / shard["file"]).to_pylist()]
    return result, kept, pq.read_table(folder / "rejected.parquet").to_pylist()


BROKEN = Rejected("bad", "from bad", "undecodable", "why")


def test_ids_are_dense_and_in_the_order_of_the_parts(tmp_path: Path) -> None:
    parts = [
        [Given("a", "one", ("x", "y")), BROKEN, Given("b", "two", ("y",))],
        [replace(BROKEN, key="bad2")],
        [Given("c", "one", ("z", "x", "z"))],
    ]
    result, kept, rejected = assigned(tmp_path, parts)
    assert [(r["sample_id"], r["key"], r["image_id"], r["text_id"]) for r in kept] == [
        (0, "a", 0, [0, 1]),
        (1, "b", 1, [1]),
        (2, "c", 0, [2, 0, 2]),
    ]
    assert (result.kept, result.images, result.texts) == (3, 2, 3)
    # A part without a row that is kept is no shard.
    assert [(s["file"], s["rows"]) for s in result.shards] == [("content-x/00000.parquet", 2), ("content-x/00002.parquet", 1)]
    assert rejected == [vars(BROKEN), vars(replace(BROKEN, key="bad2"))] and result.reasons == {"undecodable": 2}
    assert pq.read_schema(tmp_path / "rejected.parquet") == REJECTED


def test_labels_that_some_rows_lack_are_columns_all_the_same(tmp_path: Path) -> None:
    parts = [[Given("a", labels={"kind": "cat"})], [Given("b", labels={"size": "big", "kind": "dog"}), Given("c")]]
    result, kept, _ = assigned(tmp_path, parts)
    assert [(r["label_kind"], r["label_size"]) for r in kept] == [("cat", None), ("dog", "big"), (None, None)]
    assert result.labels == {"kind": {"cat": 1, "dog": 1}, "size": {"big": 1}}


GIVEN = [
    Given("a", "one", ("x",)),
    Given("b", "one", ("x",)),
    Given("a", "two", ("y",)),
    Given("c", "one", ("y",)),
    Given("d", "two", ("x",)),
    Given("e", "one", ("x", "y")),
]


@pytest.mark.parametrize(
    ("deduplicate", "reasons"),
    [
        ({}, {2: "duplicate_key"}),
        ({"exact": "pair"}, {1: "duplicate_pair", 2: "duplicate_key"}),
        ({"exact": "image"}, {1: "duplicate_image", 2: "duplicate_key", 3: "duplicate_image", 5: "duplicate_image"}),
        ({"near": 0}, {1: "near_duplicate", 2: "duplicate_key", 3: "near_duplicate", 5: "near_duplicate"}),
        ({"exact": "pair", "near": 0}, {1: "duplicate_pair", 2: "duplicate_key", 3: "near_duplicate", 5: "near_duplicate"}),
    ],
    ids=str,
)
def test_the_first_of_several_equals_is_kept(tmp_path: Path, deduplicate: dict, reasons: dict[int, str]) -> None:
    """Across parts too; a row that is refused makes none after it a duplicate: `d` has the image of the second `a`."""
    result, kept, rejected = assigned(tmp_path, [GIVEN[:1], GIVEN[1:4], GIVEN[4:]], deduplicate=deduplicate)
    assert [row["key"] for row in kept] == [one.key for i, one in enumerate(GIVEN) if i not in reasons]
    assert [(row["key"], row["reason"]) for row in rejected] == [(GIVEN[i].key, reason) for i, reason in sorted(reasons.items())]
    assert all(row["detail"] and row["origin"] == f"from {row['key']}" for row in rejected)
    assert result.reasons == Counter(reasons.values()) and result.kept + result.reasons.total() == len(GIVEN)
    assert [row["sample_id"] for row in kept] == list(range(len(kept)))


@pytest.mark.parametrize(
    ("deduplicate", "reason"),
    [
        ({}, None),
        ({"exact": "pair"}, "duplicate_pair"),
        ({"exact": "image"}, "duplicate_image"),
        ({"near": 0}, "near_duplicate"),
    ],
    ids=str,
)
def test_of_equals_in_published_splits_the_held_out_one_is_kept(tmp_path: Path, deduplicate: dict, reason: str | None) -> None:
    """A published test split loses nothing to the training rows before it; ids stay in the order of the source."""
    splits = ("train", "train", "test", "val", "test")
    rows = [Given(key, "same" if key != "b" else "b", split=split) for key, split in zip("abcde", splits, strict=True)]
    _, kept, rejected = assigned(tmp_path, [rows[:2], rows[2:]], deduplicate=deduplicate, splits="source")
    assert [(row["key"], row["split"]) for row in kept] == (
        [("b", "train"), ("c", "test")] if reason else list(zip("abcde", splits, strict=True))
    )
    assert [row["sample_id"] for row in kept] == list(range(len(kept)))
    told = "an earlier or held-out row is the same"
    assert [(row["key"], row["reason"], row["detail"]) for row in rejected] == (
        [(k, reason, told) for k in "ade"] if reason else []
    )


@pytest.mark.parametrize("splits", ["source", SPLITS], ids=str)
def test_near_the_held_out_rows_only_training_rows_are_left_out(tmp_path: Path, splits: Any) -> None:
    """Whatever comes first; two training rows, or two held-out ones, may be nearly the same."""
    group = {name: next(g for g in map(str, range(99)) if split_of(g, SPLITS, 0) == name) for name in ("train", "test")}
    names = ("train", "test", "test", "train", "train", "train")
    rows = [Given(key, image, group=group[name], split=name) for key, image, name in zip("abcdef", "ssstts", names, strict=True)]
    given = {"deduplicate": {"near": 0, "near_scope": "held_out"}, "splits": splits}
    _, kept, rejected = assigned(tmp_path, [rows[:2], rows[2:]], **given)
    assert [(row["key"], row["split"]) for row in kept] == list(zip("bcde", names[1:5], strict=True))
    assert [(row["key"], row["reason"]) for row in rejected] == [("a", "near_duplicate"), ("f", "near_duplicate")]


WORDS = st.lists(st.sampled_from("xyz"), min_size=1, max_size=3).map(tuple)
ROWS = st.builds(Given, st.sampled_from("abcdefgh"), st.sampled_from("pq"), WORDS, st.sampled_from("stuvw"))


@given(
    parts=st.lists(st.lists(ROWS | st.just(BROKEN), max_size=5), min_size=1, max_size=4),
    exact=st.sampled_from(["none", "pair", "image"]),
)
def test_whatever_is_read_is_kept_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[Given | Rejected]], exact: str
) -> None:
    """A re-derivation row by row."""
    keys, seen = set(), set()
    expected, reasons = [], []
    for row in (row for part in parts for row in part):
        if isinstance(row, Rejected):
            reasons.append(row.reason)
        elif row.key in keys:
            reasons.append("duplicate_key")
        else:
            keys.add(row.key)
            same = {"none": row.key, "pair": (row.image, tuple(sorted(row.captions))), "image": row.image}[exact]
            if same in seen:
                reasons.append(f"duplicate_{exact}")
            else:
                seen.add(same)
                expected.append(row)
    result, kept, rejected = assigned(tmp_path_factory.mktemp("ids"), parts, deduplicate={"exact": exact})
    assert [(r["key"], tuple(r["captions"]), r["group"]) for r in kept] == [(r.key, r.captions, r.group) for r in expected]
    assert [r["sample_id"] for r in kept] == list(range(len(expected)))
    assert [r["reason"] for r in rejected] == reasons and result.reasons == Counter(reasons)
    assert result.kept == sum(shard["rows"] for shard in result.shards) == len(expected)
    splits = Counter(split_of(r.group, SPLITS, 0) for r in expected)
    assert result.splits == splits and sum((Counter(s["splits"]) for s in result.shards), Counter()) == splits
    images, texts = (
        list(dict.fromkeys(r.image for r in expected)),
        list(dict.fromkeys(t for r in expected for t in r.captions)),
    )
    assert [r["image_id"] for r in kept] == [images.index(r.image) for r in expected]
    assert [r["text_id"] for r in kept] == [[texts.index(t) for t in r.captions] for r in expected]
    assert (result.images, result.texts) == (len(images), len(texts))


# --- exchanged captions ---

MANY = [Given(f"k{i}", f"p{i}", (f"text {i}", f"more {i}") if i % 3 else (f"text {i}",), f"g{i}") for i in range(60)]


def test_captions_are_exchanged_among_training_rows_of_all_parts(tmp_path: Path) -> None:
    parts = [MANY[:20], MANY[20:25], MANY[25:]]
    _, before, _ = assigned(tmp_path / "plain", parts)
    result, after, _ = assigned(tmp_path / "noisy", parts, captions={"shuffled": 0.5})
    train = [row["split"] == "train" for row in before]
    moved = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old["captions"] != new["captions"]]
    assert len(moved) == round(0.5 * sum(train)) and all(train[i] for i in moved)
    assert result.captions == {"chosen": len(moved), "shuffled": len(moved)}
    assert [row["shuffled"] for row in after] == [i in moved for i in range(60)]
    # The same captions in other places, each whole and with its ids; everything else stays.
    assert Counter(tuple(r["captions"]) for r in after) == Counter(tuple(r["captions"]) for r in before)
    ids = {tuple(row["captions"]): row["text_id"] for row in before}
    assert all(row["text_id"] == ids[tuple(row["captions"])] for row in after)
    for name in ("sample_id", "image_id", "key", "group", "split"):
        assert [row[name] for row in before] == [row[name] for row in after]
    home = {tuple(row["captions"]): i // 20 for i, row in enumerate(before)}
    assert any(home[tuple(after[i]["captions"])] != i // 20 for i in moved), "parts do not shuffle among themselves"


# --- the fingerprint ---

BASE = [
    [Given("a", "one", ("x",), "s", {"kind": "cat"}), Given("b", "two", ("y",), "t")],
    [Given("c", "three", ("z",), "u"), BROKEN],
]


def changed(**keys: Any) -> list[list[Given | Rejected]]:
    return [[replace(BASE[0][0], **keys), BASE[0][1]], BASE[1]]


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        (changed(key="A"), {}),
        (changed(image="another"), {}),
        (changed(captions=("X",)), {}),
        (changed(captions=("x", "x")), {}),
        (changed(labels={"kind": "dog"}), {}),
        (changed(labels={"size": "cat"}), {}),
        (changed(group="S"), {}),
        (BASE, {"splits": {"test": 0.999999}}),
        ([BASE[0][::-1], BASE[1]], {}),
        ([BASE[0][:1], BASE[0][1:], BASE[1]], {}),
        (BASE, {"weights": (1.0, 2.0)}),
        (BASE, {"captions": {"shuffled": 1.0}}),
        ([BASE[0], BASE[1][1:]], {}),
    ],
    ids=[
        "key",
        "image",
        "caption",
        "more-captions",
        "label",
        "label-name",
        "group",
        "split",
        "order",
        "cut",
        "weight",
        "noise",
        "fewer",
    ],
)
def test_the_fingerprint_tells_contents_apart(tmp_path: Path, parts: list, keys: dict) -> None:
    assert assigned(tmp_path / "one", BASE)[0].fingerprint != assigned(tmp_path / "two", parts, **keys)[0].fingerprint


def test_the_fingerprint_is_of_the_content_alone(tmp_path: Path) -> None:
    """Not of places, of repetition, or of rows that were left out."""
    one = assigned(tmp_path / "one", BASE)[0]
    again = assigned(tmp_path / "one", BASE)[0]
    elsewhere = assigned(tmp_path / "two", [BASE[0], [*BASE[1], replace(BROKEN, key="other")]])[0]
    assert one.fingerprint == again.fingerprint == elsewhere.fingerprint and len(one.fingerprint) == 32
    assert one == again
