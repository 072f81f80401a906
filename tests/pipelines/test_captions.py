"""Captions: each rule of cleaning, what is cut and what is refused, and noise that is exactly as much as was asked for."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.suite import SuiteSettings, held_out
from pipelines.dataset.prepared import Prepared, split_of
from pipelines.prepare.captions import CaptionSettings, clean, exchange, truncate, usable
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare, summary
from pipelines.program.display import Display
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from tests.refusals import refused

QUIET = Display(quiet=True)


# --- cleaning ---


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("A Cat", "a cat"),
        *[(f"a{sign}b {sign} c", "ab c") for sign in ",.'!?\"()*#:;~"],
        ("a black-and-white cat/dog", "a black and white cat dog"),
        ("<person> greets <PERSON>", "person greets person"),
        ("  two \t spaces\u00a0here\n", "two spaces here"),
        ("a - b", "a b"),
        ("1 & 2 % [of] <it> = \u00e9t\u00c9_@$+", "1 & 2 % [of] <it> = \u00e9t\u00e9_@$+"),
        ("?!... ()", ""),
        ("", ""),
    ],
)
def test_a_cleaned_caption(found: str, kept: str) -> None:
    assert clean(found) == kept
    assert clean(kept) == kept


def test_cutting_counts_words_and_leaves_short_captions_as_they_are() -> None:
    assert truncate("one two  three four", 3) == "one two three"
    assert truncate("one  two three", 3) == "one  two three"
    assert truncate("one", 1) == "one" and truncate("one two", 1) == "one"


def pair(*captions: str, group: str = "g") -> Pair:
    return Pair("k", "origin", b"", list(captions), group)


def kept(found: Pair | Rejected) -> list[str]:
    assert isinstance(found, Pair)
    return found.captions


def test_captions_stay_as_they_are_unless_asked_for() -> None:
    assert usable(pair("A  Cat!", "B"), CaptionSettings()) == pair("A  Cat!", "B")


def test_every_caption_of_a_row_is_cleaned_and_then_cut() -> None:
    settings = CaptionSettings(clean=True, max_words=2)
    assert kept(usable(pair("A black-white cat", "Cats!"), settings)) == ["a black", "cats"]
    assert kept(usable(pair("A black-white cat"), CaptionSettings(max_words=2))) == ["A black-white"]


def test_what_is_empty_after_cleaning_is_refused_as_empty() -> None:
    assert kept(usable(pair("?!"), CaptionSettings())) == ["?!"]
    for captions in (["?!"], ["a cat", "..."], [], ["  "]):
        found = usable(pair(*captions), CaptionSettings(clean=True))
        assert found == Rejected("k", "origin", "empty_caption", "no text")


def test_what_is_too_long_is_refused_before_it_is_cut() -> None:
    settings = CaptionSettings(max_words=2, reject_words=3)
    assert kept(usable(pair("a b c"), settings)) == ["a b"]
    assert usable(pair("a", "a b c d"), settings) == Rejected("k", "origin", "caption_too_long", "4 words")
    # Words are counted in the cleaned caption.
    assert isinstance(usable(pair("a-b c/d"), CaptionSettings(clean=True, reject_words=3)), Rejected)
    assert kept(usable(pair("a - b c"), CaptionSettings(clean=True, reject_words=3))) == ["a b c"]


def test_captions_that_become_equal_become_one_group_and_other_groups_stay() -> None:
    """Else a held-out caption would be trained on."""
    settings = CaptionSettings(clean=True, max_words=2)
    groups = [usable(pair(text, group=text.lower()), settings) for text in ("A cat, asleep", "a CAT!", "A-cat")]
    assert [found.group for found in groups if isinstance(found, Pair)] == ["a cat"] * 3
    other = usable(pair("A cat!", group="Mrs. Smith's photographs"), settings)
    assert isinstance(other, Pair) and other.group == "Mrs. Smith's photographs"


# --- exchanging ---


def exchanged(captions: list, share: float, seed: int = 0) -> dict[int, int]:
    return exchange(captions, share, np.random.default_rng(seed))


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 50])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.33, 0.5, 1.0])
def test_as_many_rows_as_asked_for_and_nobody_keeps_its_own(rows: int, share: float) -> None:
    for seed in range(20):
        found = exchanged(list(range(rows)), share, seed)
        assert len(found) == round(share * rows)
        assert set(found) == set(found.values()) <= set(range(rows))
        assert not any(row == giver for row, giver in found.items()) or len(found) == 1


def test_one_chosen_row_has_nobody_to_exchange_with() -> None:
    found = exchanged(list("abcdefgh"), 0.125)
    assert len(found) == 1 and set(found) == set(found.values())


def test_equal_captions_do_not_count_as_another_rows() -> None:
    for seed in range(50):
        captions = ["a"] * 5 + ["b"] * 2 + ["c", "d", "e"]
        found = exchanged(captions, 1.0, seed)
        assert len(found) == 10 and all(captions[row] != captions[giver] for row, giver in found.items())


def test_where_most_are_equal_as_few_as_possible_keep_theirs() -> None:
    """Of seven, five equal: two can be had from elsewhere, and two go elsewhere."""
    for seed in range(20):
        captions = ["a"] * 5 + ["b", "c"]
        found = exchanged(captions, 1.0, seed)
        stay = [row for row, giver in found.items() if captions[row] == captions[giver]]
        assert len(found) == 7 and len(stay) == 3 and all(found[row] == row for row in stay)
        assert Counter(captions[giver] for giver in found.values()) == Counter(captions)
    assert exchanged(["a", "a"], 1.0) == {0: 0, 1: 1}


def test_every_row_and_every_giver_has_its_turn() -> None:
    seen = {(row, giver) for seed in range(300) for row, giver in exchanged(list(range(5)), 0.6, seed).items()}
    assert seen == {(row, giver) for row in range(5) for giver in range(5) if row != giver}


# --- prepared ---

ROWS, SHARD, SHARE = 40, 10, 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, png_of: Any) -> Path:
    """Forty images; every third has two captions, and all captions differ."""
    root = tmp_path_factory.mktemp("images")
    for i in range(ROWS):
        (root / f"{i:02d}.png").write_bytes(png_of(np.full((8, 8, 3), 5 * i, dtype=np.uint8)))
        second = f"\nThing-{i}, again" if i % 3 == 0 else ""
        (root / f"{i:02d}.txt").write_text(f"A Thing: {i}!{second}")
    return root


def settings_of(folder: Path, output: Path, captions: dict | None = None, **keys: Any) -> PrepareSettings:
    tree = {
        "source": {"name": "folder", "path": folder, "dataset": "things", "captions": "all_lines"},
        "output": output,
        "image": {"size": 8, "format": "png"},
        "captions": captions or {},
        "splits": {"test": 0.2, "val": 0.1},
        "shard_rows": SHARD,
    }
    return PrepareSettings.model_validate(tree | keys)


@pytest.fixture(scope="module")
def plain(ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(settings_of(folder, tmp_path_factory.mktemp("plain") / "out", {"clean": True}), QUIET)


@pytest.fixture(scope="module")
def noisy(ray_session: None, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(settings_of(folder, tmp_path_factory.mktemp("noisy") / "out", {"clean": True, "shuffled": SHARE}), QUIET)


def shards_of(prepared: Prepared) -> list[list[dict]]:
    return [pq.read_table(prepared.path / shard["file"]).to_pylist() for shard in prepared.manifest["shards"]]


def test_captions_are_cleaned_where_a_dataset_is_prepared(plain: Prepared) -> None:
    rows = [row for shard in shards_of(plain) for row in shard]
    wanted = [[f"a thing {i}", f"thing {i} again"] if i % 3 == 0 else [f"a thing {i}"] for i in range(ROWS)]
    assert [row["captions"] for row in rows] == wanted and [row["group"] for row in rows] == [texts[0] for texts in wanted]
    assert plain.shuffled == 0 and "shuffled" not in rows[0] and "shuffled" not in summary(plain)
    assert plain.manifest["config"]["captions"] == CaptionSettings(clean=True).model_dump()


def test_the_share_is_exact_and_the_rest_is_untouched(plain: Prepared, noisy: Prepared) -> None:
    before, after = ([row for shard in shards_of(prepared) for row in shard] for prepared in (plain, noisy))
    assert len(plain.manifest["shards"]) > 1, "captions wander between shards too"
    train = sum(row["split"] == "train" for row in before)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old["captions"] != new["captions"]]
    total = len(moved)
    assert 1 < total == round(SHARE * train) < train
    assert all(old["split"] == new["split"] == "train" for old, new in moved)
    assert sorted(old["captions"] for old, _ in moved) == sorted(new["captions"] for _, new in moved)
    assert [row["shuffled"] for row in after] == [
        old["captions"] != new["captions"] for old, new in zip(before, after, strict=True)
    ]
    for old, new in zip(before, after, strict=True):
        for name in ("sample_id", "image_id", "key", "group", "split", "start", "length"):
            assert old[name] == new[name]
    assert list(noisy.images(np.arange(ROWS))) == list(plain.images(np.arange(ROWS)))
    assert noisy.manifest["captions"] == {"chosen": total, "shuffled": total} and noisy.shuffled == total
    assert f"captions of {total} rows shuffled" in summary(noisy)
    assert noisy.manifest["config"]["captions"] == CaptionSettings(clean=True, shuffled=SHARE).model_dump()


def test_a_captions_id_goes_with_it(plain: Prepared, noisy: Prepared) -> None:
    texts = noisy.texts().to_pylist()
    assert texts == plain.texts().to_pylist() and noisy.num_texts == ROWS + len(range(0, ROWS, 3))
    for shard in shards_of(noisy):
        for row in shard:
            assert [texts[i] for i in row["text_id"]] == row["captions"]


def test_held_out_rows_are_never_shuffled(ray_session: None, folder: Path, tmp_path: Path, plain: Prepared) -> None:
    found = prepare(settings_of(folder, tmp_path / "out", {"clean": True, "shuffled": 1.0}), QUIET)
    for before, after in zip(shards_of(plain), shards_of(found), strict=True):
        for old, new in zip(before, after, strict=True):
            assert (old["captions"] != new["captions"]) == (old["split"] == "train"), new["key"]


def test_the_same_config_gives_the_same_noise_and_the_fingerprint_tells_it_apart(
    ray_session: None, folder: Path, tmp_path: Path, plain: Prepared, noisy: Prepared
) -> None:
    again = prepare(settings_of(folder, tmp_path / "again", {"clean": True, "shuffled": SHARE}), QUIET)
    other = prepare(settings_of(folder, tmp_path / "other", {"clean": True, "shuffled": SHARE, "shuffle_seed": 1}), QUIET)
    assert again.fingerprint == noisy.fingerprint and shards_of(again) == shards_of(noisy)
    assert len({plain.fingerprint, noisy.fingerprint, other.fingerprint}) == 3 and shards_of(other) != shards_of(noisy)
    assert other.shuffled == noisy.shuffled
    with refused("output", tmp_path / "again", "captions.shuffled: 0.4 -> 0.0", remedy="overwrite=true"):
        prepare(settings_of(folder, tmp_path / "again", {"clean": True}), QUIET)


def test_another_split_of_shuffled_captions_is_refused(plain: Prepared, noisy: Prepared) -> None:
    """It would score the model on captions of other images."""
    with refused("data.split_seed", 3, f"{noisy.shuffled} rows", remedy="split_seed=3"):
        noisy.split_ids(3)
    with refused("data.split_seed", 3, remedy="split_seed=3"):
        held_out(noisy, SuiteSettings(), 3)
    # The split that it was prepared with is the same under its number.
    stored, named = noisy.split_ids(), noisy.split_ids(0)
    assert all(np.array_equal(stored[name], named[name]) for name in stored)
    assert len(plain.split_ids(3)["train"]) > 0


def test_a_single_training_row_is_left_alone_and_counted(ray_session: None, folder: Path, tmp_path: Path) -> None:
    splits, groups = {"test": 0.5, "val": 0.47}, [f"a thing: {i}!" for i in range(ROWS)]
    seed = next(s for s in range(200) if [split_of(group, splits, s) for group in groups].count("train") == 1)
    found = prepare(settings_of(folder, tmp_path / "out", {"shuffled": 1.0}, splits=splits, split_seed=seed), QUIET)
    assert found.manifest["splits"]["train"] == 1
    assert found.manifest["captions"] == {"chosen": 1, "shuffled": 0}
    assert found.table("shuffled")["shuffled"].to_pylist() == [False] * ROWS
    assert found.table("captions")["captions"].to_pylist()[1] == ["A Thing: 1!"]
    assert "captions of 0 rows shuffled" in summary(found)
    assert set(found.split_ids(seed + 1)) == {"train", "test", "val"}


def test_rows_that_cleaning_empties_are_listed(ray_session: None, tmp_path: Path, png_of: Any) -> None:
    root = tmp_path / "source"
    root.mkdir()
    for name, text in (("a", "A cat."), ("b", "?!"), ("c", "A dog of many words")):
        (root / f"{name}.png").write_bytes(png_of(np.zeros((8, 8, 3), dtype=np.uint8)))
        (root / f"{name}.txt").write_text(text)
    captions = {"clean": True, "max_words": 2}
    found = prepare(settings_of(root, tmp_path / "out", captions, max_rejected_rate=0.5), QUIET)
    counts = {"listed": 3, "found": 3, "read": 3, "kept": 2, "rejected": {"empty_caption": 1}}
    assert found.manifest["counts"] == counts
    assert found.texts().to_pylist() == ["a cat", "a dog"]
    (row,) = pq.read_table(found.path / "rejected.parquet").to_pylist()
    assert (row["key"], row["reason"]) == ("b.png", "empty_caption")


# --- settings ---


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"shuffled": 1.5}, ""),
        ({"shuffled": -0.1}, ""),
        ({"shuffle_seed": -1}, ""),
        ({"max_words": 0}, ""),
        ({"reject_words": 0}, ""),
        ({"clean": "very"}, ""),
        ({"shuffle": 0.5}, "'shuffled'"),
    ],
)
def test_a_value_that_cannot_be_names_its_key(change: dict, remedy: str) -> None:
    tree = {"source": {"name": "folder", "path": "in"}, "output": "out", "captions": change}
    ((key, value),) = change.items()
    with refused(f"captions.{key}", value, "c.yaml", remedy=remedy):
        validate(PrepareSettings, tree, "c.yaml")
