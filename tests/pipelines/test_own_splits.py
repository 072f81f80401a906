"""`splits: source`: what Karpathy published as train, val and test is prepared as that, and nothing draws it anew."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from evaluation.suite import SuiteSettings, held_out
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.prepare.check import check
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.prepare.shards import list_units, rows_file
from pipelines.program.display import Display
from tests.pipelines.rows import image, write_karpathy
from tests.refusals import refused

QUIET = Display(quiet=True)
# In no order, several units and shards, and restval, which belongs to train.
PUBLISHED: list[str | None] = [("train", "restval", "val", "test", "train")[i * 7 % 5] for i in range(300)]
EXPECTED = [{"restval": "train"}.get(str(split), split) for split in PUBLISHED]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of two equal images one is in train and one in test, and so is one first caption; a test image is broken."""
    root = tmp_path_factory.mktemp("karpathy")
    found = write_karpathy(root, PUBLISHED)
    train, test, broken = EXPECTED.index("train"), EXPECTED.index("test"), len(EXPECTED) - 1 - EXPECTED[::-1].index("test")
    (root / f"{test}.png").write_bytes(image(train))
    document = json.loads((root / "dataset_coco.json").read_text())
    document["images"][test]["sentences"][0] = document["images"][train]["sentences"][0]
    (root / "dataset_coco.json").write_text(json.dumps(document))
    (root / f"{broken}.png").write_bytes(b"no image")
    return found


def settings_of(source: dict[str, Any], output: Path, **keys: Any) -> PrepareSettings:
    tree = {"source": source, "output": output, "image": {"size": 8, "format": "png"}, "splits": "source", "shard_rows": 64}
    return PrepareSettings.model_validate(tree | keys)


@pytest.fixture(scope="module", params=["copy", "index"])
def prepared(
    request: pytest.FixtureRequest, ray_session: None, source: dict, tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    return prepare(settings_of(source, tmp_path_factory.mktemp("out") / "prepared", mode=request.param), QUIET)


def order_of(prepared: Prepared, **keys: Any) -> Order:
    return Order(prepared, "train", None, seed=0, global_batch_size=8, **keys)


def test_every_row_is_in_the_split_that_it_was_published_in(prepared: Prepared) -> None:
    table = prepared.table("key", "split", "captions", "image_id", "text_id").to_pylist()
    (bad,) = pq.read_table(prepared.path / "rejected.parquet").to_pylist()
    expected = {f"dataset_coco:{i}.png": split for i, split in enumerate(EXPECTED)}
    assert bad["reason"] == "undecodable" and expected.pop(bad["key"]) == "test"
    assert {row["key"]: row["split"] for row in table} == expected and all(len(row["captions"]) == 5 for row in table)
    counts = {name: list(expected.values()).count(name) for name in ("train", "test", "val")}
    manifest = prepared.manifest
    assert manifest["splits"] == counts and list(manifest["splits"]) == prepared.split_list() == ["train", "test", "val"]
    assert manifest["split_shares"] == {name: counts[name] / 299 for name in ("test", "val")}
    assert manifest["counts"] == {"listed": 300, "found": 300, "read": 300, "kept": 299, "rejected": {"undecodable": 1}}
    assert {name: len(ids) for name, ids in prepared.split_ids().items()} == counts
    # Equal images and captions stay where they were published.
    assert {"train", "test"} in [{row["split"] for row in table if row["image_id"] == one["image_id"]} for one in table]
    assert {"train", "test"} in [{row["split"] for row in table if one["text_id"][0] in row["text_id"]} for one in table]


def test_training_reads_train_alone_and_may_hold_out_a_share_of_it(prepared: Prepared) -> None:
    splits = np.asarray(prepared.table("split")["split"].to_pylist())
    order = order_of(prepared)
    assert np.array_equal(order.ids, np.flatnonzero(splits == "train"))
    assert np.array_equal(np.sort(order.take(3, np.arange(order.rows))), order.ids)
    before, after = prepared.split_ids(), prepared.split_ids(validation=0.3)
    assert list(after) == ["train", "test", "val", "validation"] and len(after["validation"]) > 20
    assert all(np.array_equal(after[name], before[name]) for name in ("test", "val"))
    assert np.array_equal(np.sort(np.concatenate([after["train"], after["validation"]])), before["train"])
    assert np.array_equal(order_of(prepared, validation=0.3).ids, after["train"])


@pytest.mark.parametrize("seed", [0, 3])
def test_no_seed_draws_published_splits_anew(prepared: Prepared, seed: int) -> None:
    for ask in (prepared.split_ids, lambda seed: held_out(prepared, SuiteSettings(split="test"), seed)):
        with refused("data.split_seed", prepared.path, "'splits={test: 0.1}'", remedy="split_seed null"):
            ask(seed)


def test_the_second_command_has_nothing_to_do_and_other_splits_are_another_dataset(
    prepared: Prepared, source: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mode = prepared.manifest["mode"]
    assert isinstance(prepared.path, Path)
    assert prepare(settings_of(source, prepared.path, mode=mode), Display()).manifest == prepared.manifest
    assert "already prepared by this config" in capsys.readouterr().out
    with refused("output", prepared.path, "splits: 'source' -> {'test': 0.2}", remedy="overwrite=true"):
        prepare(settings_of(source, prepared.path, mode=mode, splits={"test": 0.2}), QUIET)
    drawn = prepare(settings_of(source, tmp_path / "drawn", mode=mode, splits={"test": 0.2, "val": 0.2}), QUIET)
    assert drawn.fingerprint != prepared.fingerprint and drawn.table("split") != prepared.table("split")
    assert len(drawn.split_ids(3)["test"]) > 0


def test_what_was_interrupted_resumes_to_the_same_dataset(
    prepared: Prepared, source: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings = settings_of(source, tmp_path / "out", mode=prepared.manifest["mode"])

    def die(parts: list, content: Path, *_: Any) -> None:
        rows_file(content, parts[1]).unlink()  # type: ignore[union-attr]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.prepare.prepare.assign_ids", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, QUIET)
    again = prepare(settings, Display())
    assert re.search(r"\d+ of \d+ parts", capsys.readouterr().out)
    assert again.fingerprint == prepared.fingerprint and again.table("split") == prepared.table("split")


def test_another_split_in_the_file_is_another_dataset(ray_session: None, tmp_path: Path) -> None:
    """Even where the file's size and time say that nothing changed."""
    found = write_karpathy(tmp_path / "in", ["train", "val", "test"])
    one, file = prepare(settings_of(found, tmp_path / "out"), QUIET), tmp_path / "in" / "dataset_coco.json"
    before = file.stat()
    write_karpathy(tmp_path / "in", ["train", "test", "val"])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with refused("output", tmp_path / "out", "source's files", remedy="overwrite=true"):
        prepare(settings_of(found, tmp_path / "out"), QUIET)
    other = prepare(settings_of(found, tmp_path / "out", overwrite=True), QUIET)
    assert other.fingerprint != one.fingerprint and other.table("split")["split"].to_pylist() == ["train", "test", "val"]


def test_splits_are_told_beside_the_units_so_that_what_was_prepared_before_stays_as_it_is(source: dict, tmp_path: Path) -> None:
    """A unit's data are part of a dataset's recipe: they are the same whether splits are kept or drawn."""
    kept = list_units(settings_of(source, tmp_path / "out"))
    drawn = list_units(settings_of(source, tmp_path / "out", splits={"test": 0.2}))
    assert [unit.data for unit in kept] == [unit.data for unit in drawn] and not any(unit.splits for unit in drawn)
    assert [split for unit in kept for split in unit.splits or ()] == EXPECTED and len(kept) == 2
    assert not any('"split"' in unit.data["rows"] for unit in kept)
    held = list_units(settings_of(source | {"split": ["val", "test"]}, tmp_path / "out"))
    assert {split for unit in held for split in unit.splits or ()} == {"val", "test"}


def test_a_row_or_file_without_a_split_is_rejected_and_the_others_stay(ray_session: None, tmp_path: Path) -> None:
    found = write_karpathy(tmp_path / "in", ["train", None, "test", "", "val", "restval", "dev"])
    (tmp_path / "in" / "torn.json").write_text("{")
    paths = [found["paths"], str(tmp_path / "in" / "torn.json")]
    result = prepare(settings_of(found | {"paths": paths}, tmp_path / "out", max_rejected_rate=0.5), QUIET)
    assert result.table("split")["split"].to_pylist() == ["train", "test", "val", "train", "dev"]
    assert result.split_list() == ["train", "dev", "test", "val"]
    rejected = pq.read_table(result.path / "rejected.parquet").to_pylist()
    assert [(row["key"], row["reason"]) for row in rejected] == [
        ("dataset_coco:1.png", "bad_row"),
        ("dataset_coco:3.png", "bad_row"),
        ("torn", "unreadable_file"),
    ]
    assert rejected[0]["detail"] == "it has no split"


def without_splits(root: Path) -> dict[str, Any]:
    return write_karpathy(root, [None] * 5)


def a_folder(root: Path) -> dict[str, Any]:
    write_karpathy(root, ["train"])
    (root / "0.txt").write_text("a caption")
    return {"name": "folder", "path": str(root), "dataset": "coco"}


def some_without(root: Path) -> dict[str, Any]:
    sources = [{"source": write_karpathy(root / "a", ["train", "test"])}, {"source": a_folder(root / "b") | {"dataset": "b"}}]
    return {"name": "mix", "dataset": "coco", "sources": sources}


@pytest.mark.parametrize("ask", [prepare, check])
@pytest.mark.parametrize(("make", "which"), [(without_splits, "none"), (a_folder, "none"), (some_without, "not all")])
def test_a_source_without_splits_is_an_error_before_anything_is_read(
    tmp_path: Path, ask: Callable, make: Callable, which: str
) -> None:
    with refused("splits", f"{which} of coco's files", remedy="'splits={test: 0.1}'"):
        ask(settings_of(make(tmp_path / "in"), tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()
