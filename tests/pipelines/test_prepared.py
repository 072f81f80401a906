"""Reading a prepared dataset: rows in the order asked for, texts by id, splits by any seed."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.prepared import Prepared, split_of
from pipelines.settings import UserError


@pytest.mark.parametrize("ids", [[0], [39, 0, 20], [6, 7, 6], [13, 12, 30, 1, 29, 2], list(range(39, -1, -1))])
def test_rows_come_in_the_order_asked_for(stamps: Prepared, ids: list[int]) -> None:
    assert len(stamps.manifest["shards"]) == 6
    whole = stamps.table("sample_id", "key", "captions")
    assert whole["sample_id"].to_pylist() == list(range(40))
    found = stamps.rows(np.asarray(ids), ("key", "captions"))
    assert found["key"].to_pylist() == [whole["key"][i].as_py() for i in ids]
    assert found["captions"].to_pylist() == [whole["captions"][i].as_py() for i in ids]


def test_shard_starts_are_the_shards_first_ids(stamps: Prepared) -> None:
    assert stamps.shard_starts().tolist() == [0, 7, 14, 21, 28, 35, 40]


def test_texts_are_all_different_captions_by_id(stamps: Prepared) -> None:
    texts = stamps.texts()
    table = stamps.table("captions", "text_id")
    assert len(texts) == len(set(texts)) == stamps.num_texts
    for captions, ids in zip(table["captions"].to_pylist(), table["text_id"].to_pylist(), strict=True):
        assert [texts[i] for i in ids] == captions


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
    names = [split_of(f"group {i}", {"test": 0.2, "val": 0.05}, 0) for i in range(4000)]
    assert names.count("test") == pytest.approx(800, abs=100) and names.count("val") == pytest.approx(200, abs=55)
    # A group stays where it is when a dataset grows: its name alone decides.
    assert split_of("group 7", {"test": 0.2, "val": 0.05}, 0) == names[7]


def test_what_is_no_dataset_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Prepared.open(tmp_path)
    assert str(caught.value) == (
        f"data.path: {tmp_path} is no prepared dataset; make it with: python -m pipelines CONFIG.yaml output={tmp_path}"
    )


def test_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(UserError, match="has format 99, this version reads"):
        Prepared.open(tmp_path)
