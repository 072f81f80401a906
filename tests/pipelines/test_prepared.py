"""Reading a prepared dataset: rows and images in the order asked for, texts by id, splits by any seed."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.dataset.prepared import FORMAT_VERSION, Prepared, split_of
from pipelines.dataset.row_ids import RowIds
from tests.refusals import refused


@pytest.mark.parametrize("ids", [[0], [39, 0, 20], [15, 16, 15], [31, 12, 32, 1, 29, 2], list(range(39, -1, -1))])
def test_rows_come_in_the_order_asked_for(stamps: Prepared, ids: list[int]) -> None:
    assert len(stamps.manifest["shards"]) == 3
    whole = stamps.table("sample_id", "key", "captions")
    assert whole["sample_id"].to_pylist() == list(range(40))
    found = stamps.rows(np.asarray(ids), ("key", "captions"))
    assert found["key"].to_pylist() == [whole["key"][i].as_py() for i in ids]
    assert found["captions"].to_pylist() == [whole["captions"][i].as_py() for i in ids]


def test_images_come_in_the_order_asked_for_from_wherever_they_lie(stamps: Prepared, stamps_folder: Path) -> None:
    """One in each of three tars, one twice; and a dataset that is moved takes its images along."""
    ids = np.asarray([39, 3, 20, 3])
    keys = stamps.rows(ids, ("key",))["key"].to_pylist()
    originals = [np.asarray(Image.open(stamps_folder / key)) for key in keys]
    for data, original in zip(stamps.images(ids), originals, strict=True):
        assert isinstance(data, bytes) and np.array_equal(np.asarray(Image.open(io.BytesIO(data))), original)
    assert {Path(place.file).name for place in stamps.places(ids)} == {"00000.tar", "00001.tar", "00002.tar"}
    assert all(Path(place.file).is_relative_to(stamps.path) for place in stamps.places(ids))
    assert not any(Path(file).is_absolute() for file in stamps.table("file")["file"].to_pylist())


def test_shard_starts_are_the_shards_first_ids(stamps: Prepared) -> None:
    assert stamps.shard_starts.tolist() == [0, 16, 32, 40]


def test_texts_are_all_different_captions_by_id(stamps: Prepared) -> None:
    texts = stamps.texts().to_pylist()
    table = stamps.table("captions", "text_id")
    assert len(texts) == len(set(texts)) == stamps.num_texts
    for captions, ids in zip(table["captions"].to_pylist(), table["text_id"].to_pylist(), strict=True):
        assert [texts[i] for i in ids] == captions


def test_row_ids_are_those_of_the_lists(stamps: Prepared) -> None:
    table, everybody = stamps.table("image_id", "text_id"), np.arange(40)
    found, lists = stamps.row_ids, table["text_id"].to_pylist()
    assert found.image(everybody).tolist() == table["image_id"].to_pylist()
    assert found.counts(everybody).tolist() == list(map(len, lists)) and {1, 2} <= set(map(len, lists))
    assert found.text(everybody[::-1]).tolist() == [ids[0] for ids in lists[::-1]]
    assert found.text(everybody, found.counts(everybody) - 1).tolist() == [ids[-1] for ids in lists]
    assert {ids.dtype for ids in (found.image(everybody), found.text(everybody))} == {np.dtype(np.int64)}, "as batches have them"


def test_row_ids_beyond_32_bits() -> None:
    tables = [pa.table({"image_id": [0, 1 << 40], "text_id": [[5], [3, 1 << 33]]}), pa.table({"image_id": [7], "text_id": [[2]]})]
    found = RowIds.of(tables)
    assert found.image(np.asarray([1, 2])).tolist() == [1 << 40, 7]
    assert found.text(np.asarray([2, 1]), np.asarray([0, 1])).tolist() == [2, 1 << 33]


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_splits_divide_all_samples_and_tear_no_group(stamps: Prepared, seed: int | None) -> None:
    ids = stamps.split_ids(seed)
    assert list(ids) == ["train", "test", "val"]
    assert np.array_equal(np.sort(np.concatenate(list(ids.values()))), np.arange(40))
    groups = stamps.table("group")["group"].to_pylist()
    of_group: dict[str, set[str]] = {}
    for name, members in ids.items():
        assert np.array_equal(members, np.sort(members))
        for i in members:
            of_group.setdefault(groups[i], set()).add(name)
    assert len(of_group) == 20 and all(len(names) == 1 for names in of_group.values())


def test_the_seed_that_it_was_prepared_with_gives_the_stored_splits(stamps: Prepared) -> None:
    stored, again, other = stamps.split_ids(), stamps.split_ids(0), stamps.split_ids(1)
    assert all(np.array_equal(stored[name], again[name]) for name in stored)
    assert any(not np.array_equal(stored[name], other[name]) for name in stored)


def test_shares_of_many_groups_are_as_asked_for() -> None:
    assert {split_of(f"group {i}", dict.fromkeys("abc", 1 / 3), 0) for i in range(4000)} == set("abc")
    names = [split_of(f"group {i}", {"test": 0.2, "val": 0.05}, 0) for i in range(4000)]
    assert names.count("test") == pytest.approx(800, abs=100) and names.count("val") == pytest.approx(200, abs=55)
    # A group stays where it is when a dataset grows: its name alone decides.
    assert split_of("group 7", {"test": 0.2, "val": 0.05}, 0) == names[7]


def test_what_is_no_dataset_is_refused_with_the_command(tmp_path: Path) -> None:
    with refused("data.path", tmp_path, remedy=f"python -m pipelines CONFIG.yaml output={tmp_path}"):
        Prepared.open(tmp_path)
    (tmp_path / "image.png").write_bytes(b"")
    with refused("data.path", tmp_path, remedy=f"python -m pipelines CONFIG.yaml source.path={tmp_path}"):
        Prepared.open(tmp_path)
    with refused("data.path", tmp_path / "image.png", remedy="python -m pipelines"):
        Prepared.open(tmp_path / "image.png")


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with refused("data.path", tmp_path, 99, FORMAT_VERSION, remedy="overwrite=true"):
        Prepared.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with refused("data.path", tmp_path, "manifest.json", remedy="overwrite=true"):
        Prepared.open(tmp_path)


# A validation split at run time


def groups_of(prepared: Prepared, ids: np.ndarray) -> set[str]:
    groups = prepared.table("group")["group"].to_pylist()
    return {groups[i] for i in ids}


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_validation_takes_whole_groups_from_training_and_from_nothing_else(
    stamps: Prepared, seed: int | None, share: float
) -> None:
    before, after = stamps.split_ids(seed), stamps.split_ids(seed, share)
    assert list(after) == ["train", "test", "val", "validation"]
    assert all(np.array_equal(after[name], before[name]) for name in ("test", "val"))
    assert np.array_equal(np.sort(np.concatenate([after["train"], after["validation"]])), before["train"])
    assert np.array_equal(after["validation"], np.sort(after["validation"]))
    assert not groups_of(stamps, after["train"]) & groups_of(stamps, after["validation"])


def test_a_validation_split_is_a_function_of_group_and_seed(stamps: Prepared) -> None:
    """A larger share holds the smaller one; another seed is another choice; without a seed the prepared one counts."""

    def held(share: float, seed: int | None = None) -> set[str]:
        return groups_of(stamps, stamps.split_ids(seed, share)["validation"])

    assert held(0.2) <= held(0.5) <= held(0.9) and len(held(0.2)) < len(held(0.9))
    assert held(0.5) == held(0.5, 0)
    assert len({frozenset(held(0.5, seed)) for seed in range(5)}) > 1
    other = replace(stamps, manifest=stamps.manifest | {"config": stamps.manifest["config"] | {"split_seed": 3}})
    # The stored splits stay, so of them the same training groups are drawn from, by the seed that the manifest names.
    assert groups_of(stamps, other.split_ids(None, 0.5)["validation"]) != held(0.5)


def test_validation_is_the_share_that_was_asked_for(tmp_path: Path) -> None:
    """Of 4000 training groups, and as much of every other seed's test split: the two choices know nothing of one another."""
    names = [f"group {i}" for i in range(5000)]
    table = pa.table({"group": names, "split": [split_of(name, {"test": 0.2}, 0) for name in names]})
    pq.write_table(table, tmp_path / "a.parquet")
    shards = [{"file": "a.parquet", "rows": 5000}]
    manifest = {"split_shares": {"test": 0.2}, "config": {"split_seed": 0}, "captions": {"shuffled": 0}, "shards": shards}
    prepared = Prepared(tmp_path, manifest)
    for seed in (None, 1):
        found = prepared.split_ids(seed, 0.15)
        assert len(found["validation"]) == pytest.approx(0.15 * 4000, abs=75)
        tested = set(prepared.split_ids(2)["test"])
        assert len(tested & set(found["validation"])) == pytest.approx(0.2 * len(found["validation"]), abs=40)


def test_a_second_validation_split_is_refused(stamps: Prepared) -> None:
    has_one = replace(stamps, manifest=stamps.manifest | {"split_shares": {"test": 0.2, "validation": 0.1}})
    assert list(has_one.split_ids()) == ["train", "test", "validation"]
    with refused("data.validation", stamps.path, remedy="data.validation"):
        has_one.split_ids(validation=0.1)


def test_shuffled_captions_are_never_held_out_for_validation(stamps: Prepared) -> None:
    shuffled = replace(stamps, manifest=stamps.manifest | {"captions": {"shuffled": 5}})
    assert list(shuffled.split_ids()) == ["train", "test", "val"]
    with refused("data.validation", 0.1, 5, stamps.path, remedy="splits.validation"):
        shuffled.split_ids(validation=0.1)


def test_a_dataset_that_was_copied_in_part_names_what_is_missing(tmp_path: Path) -> None:
    manifest = {"format_version": FORMAT_VERSION, "shards": [{"file": "content-1/00000.parquet", "rows": 3}]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with refused("data.path", tmp_path, "content-1/00000.parquet", "manifest.json", remedy="overwrite=true"):
        Prepared.open(tmp_path)
