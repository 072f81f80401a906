"""The Hugging Face source: folders as `save_to_disk` writes them, snapshots with Parquet files, and imagefolders."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.io.image_bytes import Location, read_location
from pipelines.program.settings import validate
from pipelines.sources.base import Pair
from pipelines.sources.huggingface import HuggingFaceSource
from tests.object_store import Store
from tests.pipelines.rows import image, pairs, read, told
from tests.refusals import refused

FEATURES = datasets.Features(
    {"image": datasets.Image(), "caption": datasets.Value("string"), "kind": datasets.ClassLabel(names=["cat", "dog"])}
)


def dataset(first: int, end: int) -> datasets.Dataset:
    """Rows with numbers: the image, the caption `Text 7`, the kind by turns."""
    numbers = range(first, end)
    columns = {
        "image": [{"bytes": image(i), "path": None} for i in numbers],
        "caption": [f"Text {i}" for i in numbers],
        "kind": [i % 2 for i in numbers],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def source_of(path: Path | str, **keys: object) -> HuggingFaceSource:
    return validate(HuggingFaceSource, {"name": "huggingface", "path": str(path), **keys}, "test")


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 rows in two Arrow files of several record batches each."""
    folder = tmp_path_factory.mktemp("saved") / "Pets"
    dataset(0, 900).save_to_disk(folder, num_shards=2)
    return folder


@pytest.mark.parametrize("images", [True, False])
def test_a_saved_dataset(saved: Path, images: bool) -> None:
    source = source_of(saved, label="kind")
    assert len(source.units()) == 2 and [unit.rows for unit in source.units()] == [450, 450]
    found = pairs(read(source, images))
    assert [pair.key for pair in found] == [f"data-0000{i // 450}-of-00002:{i % 450 + 1}" for i in range(900)]
    assert [pair.captions for pair in found] == [[f"Text {i}"] for i in range(900)]
    assert [pair.labels for pair in found] == [{"kind": ("cat", "dog")[i % 2]} for i in range(900)]
    assert [pair.image for pair in found] == ([image(i) for i in range(900)] if images else [None] * 900)
    for number in (0, 99, 100, 449, 450, 899):
        assert read_location(found[number].location) == image(number)
    assert {pair.location.start for pair in found} > {0, 1}, "several record batches"
    assert source.title() == "pets"


def test_units_end_with_record_batches(tmp_path: Path) -> None:
    dataset(0, 1250).save_to_disk(tmp_path / "x", num_shards=1)
    source = source_of(tmp_path / "x")
    assert [unit.rows for unit in source.units()] == [500, 500, 250]
    found = pairs(read(source))
    assert [(pair.key, pair.image) for pair in found] == [(f"data-00000-of-00001:{i + 1}", image(i)) for i in range(1250)]
    assert all(read_location(found[i].location) == image(i) for i in (0, 499, 500, 999, 1000, 1249))


def test_a_filtered_and_shuffled_dataset_is_read_as_it_was_saved(tmp_path: Path) -> None:
    chosen = dataset(0, 40).filter(lambda row: row["kind"] == 1).select([7, 3, 11])
    chosen.save_to_disk(tmp_path / "x")
    assert [pair.image for pair in pairs(read(source_of(tmp_path / "x")))] == [image(i) for i in (15, 7, 23)]


def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": dataset(0, 3), "test": dataset(3, 5)}).save_to_disk(tmp_path / "x")
    train = [(f"train/data-00000-of-00001:{i + 1}", [f"Text {i}"]) for i in range(3)]
    test = [(f"test/data-00000-of-00001:{i + 1}", [f"Text {i + 3}"]) for i in range(2)]
    assert told(read(source_of(tmp_path / "x"))) == train
    assert told(read(source_of(tmp_path / "x", split="test"))) == test
    assert told(read(source_of(tmp_path / "x", split="all"))) == train + test
    assert told(read(source_of(tmp_path / "x" / "test", split="all"))) == [(key[5:], text) for key, text in test]
    with refused("source.split", "'val'", remedy="train, test"):
        source_of(tmp_path / "x", split="val").units()


def test_rows_of_a_saved_dataset_that_are_no_pair(tmp_path: Path) -> None:
    put(tmp_path / "b.png", image(2))
    columns = {
        "image": [{"bytes": image(1), "path": None}, None, {"bytes": None, "path": str(tmp_path / "b.png")}, None],
        "text": [["a", "A"], ["b"], ["c"], None],
    }
    features = datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Sequence(datasets.Value("string"))})
    # As a dataset in memory is saved, images of paths are embedded.
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "x")
    found = read(source_of(tmp_path / "x", caption="text"), images=False)
    assert [value for _, value in told(found)] == [["a", "A"], "missing_image", ["c"], "missing_image"]
    assert [read_location(row.location) for row in found if isinstance(row, Pair)] == [image(1), image(2)]


def test_an_arrow_file_cut_short_gives_its_complete_batches(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        put(tmp_path / file.name, file.read_bytes())
    second = tmp_path / "data-00001-of-00002.arrow"
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    found = read(source_of(tmp_path))
    kept = len(found) - 1
    assert 450 < kept < 900 and kept % 10 == 0
    assert [pair.image for pair in pairs(found[:-1])] == [image(i) for i in range(kept)]
    assert told(found[-1:]) == [("data-00001-of-00002", "truncated_archive")]
    second.write_bytes(b"nonsense" * 1000)
    assert told(read(source_of(tmp_path))[450:]) == [("data-00001-of-00002", "unreadable_file")]
    put(tmp_path / "data-00000-of-00002.arrow", b"nonsense" * 1000)
    with refused("source.path", "data-00000-of-00002.arrow"):
        source_of(tmp_path).units()


def test_a_file_that_is_gone_or_shorter_when_it_is_read(saved: Path, tmp_path: Path) -> None:
    for file in saved.iterdir():
        put(tmp_path / file.name, file.read_bytes())
    source = source_of(tmp_path)
    first, second = source.units()
    dataset(0, 100).save_to_disk(tmp_path / "other")
    put(tmp_path / "data-00000-of-00002.arrow", (tmp_path / "other" / "data-00000-of-00001.arrow").read_bytes())
    (tmp_path / "data-00001-of-00002.arrow").unlink()
    assert told(list(source.read(first.data, True)))[100:] == [("data-00000-of-00002", "unreadable_file")]
    assert told(list(source.read(second.data, True))) == [("data-00001-of-00002", "unreadable_file")]
    with refused("source.path", "state.json", "data-00001-of-00002.arrow", tmp_path):
        source.units()
    put(tmp_path / "state.json", "{}")
    with refused("source.path", "state.json", "'_data_files'"):
        source.units()


def test_a_snapshot_with_parquet_files(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for name, first, end in (("train-00000-of-00002", 0, 4), ("train-00001-of-00002", 4, 6), ("test-00000-of-00001", 6, 7)):
        dataset(first, end).to_parquet(blobs / name)
        link = tmp_path / "snapshots" / "0f3a" / "data" / f"{name}.parquet"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / name)  # as the hub's cache has it
    folder = tmp_path / "snapshots" / "0f3a"
    put(folder / "README.md", "a card")
    put(folder / ".cache" / "train.parquet", "hidden")
    for images in (True, False):
        found = pairs(read(source_of(folder, label="kind"), images))
        keys = [f"data/train-0000{file}-of-00002:{row}" for file, row in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]]
        assert [pair.key for pair in found] == keys
        assert [read_location(pair.location) for pair in found] == [image(i) for i in range(6)]
        assert [pair.labels["kind"] for pair in found] == ["cat", "dog"] * 3
    assert found[5].location == Location(str(folder / "data" / "train-00001-of-00002.parquet"), 0, 1, "image.bytes")
    assert [pair.captions for pair in pairs(read(source_of(folder, split="test")))] == [["Text 6"]]
    assert len(read(source_of(folder, split="all"))) == 7
    with refused("source.split", "'val'", "data/test-00000", remedy="source.split=all"):
        source_of(folder, split="val").units()


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("train.parquet", True),
        ("default/train/0000.parquet", True),
        ("train_1.parquet", True),
        ("trainable.parquet", False),
        ("train-test-00000-of-00001.parquet", False),
        ("part-0.parquet", False),
    ],
)
def test_which_files_belong_to_a_split(tmp_path: Path, name: str, train: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    dataset(0, 2).to_parquet(tmp_path / name)
    dataset(2, 3).to_parquet((tmp_path / name).parent / "train-00000-of-00001.parquet")
    assert len(read(source_of(tmp_path))) == (3 if train else 1)


def test_an_imagefolder(tmp_path: Path) -> None:
    put(tmp_path / "train" / "pics" / "a.png", image(1))
    put(tmp_path / "train" / "b.png", image(2))
    put(tmp_path / "train" / "metadata.csv", 'file_name,text,owner\npics/a.png,"NA",x\nb.png,"two, with a comma",y\n,none,z\n')
    put(tmp_path / "test" / "c.png", image(3))
    put(tmp_path / "test" / "metadata.jsonl", '{"file_name": "c.png", "text": ["one", "two"], "owner": "x"}\n{"text": "d"}\n')
    for images in (True, False):
        found = read(source_of(tmp_path, group="owner"), images)
        assert told(found) == [
            ("train/metadata:1", ["NA"]),
            ("train/metadata:2", ["two, with a comma"]),
            ("train/metadata:3", "missing_image"),
        ]
        assert [read_location(pair.location) for pair in pairs(found[:2])] == [image(1), image(2)]
        assert [pair.group for pair in pairs(found[:2])] == ["x", "y"]
    test = [("test/metadata:1", ["one", "two"]), ("test/metadata:2", "missing_image")]
    assert told(read(source_of(tmp_path, split="test"))) == test
    assert told(read(source_of(tmp_path, split="all"))) == test + told(found)
    assert told(read(source_of(tmp_path / "test"))) == [(key.removeprefix("test/"), value) for key, value in test]
    with refused("source.caption", "train/metadata.csv", "'alt'", "'file_name', 'text', 'owner'"):
        source_of(tmp_path, caption="alt").units()
    put(tmp_path / "test" / "metadata.jsonl", "")
    assert told(read(source_of(tmp_path, split="all"))) == [("test/metadata", "unreadable_file"), *told(found)]
    put(tmp_path / "train" / "metadata.csv", "")
    with refused("source.path", "test/metadata.jsonl"):
        source_of(tmp_path, split="all").units()


def test_folders_that_are_none_of_these(tmp_path: Path) -> None:
    with refused("source.path", tmp_path / "none", remedy="source.path=FOLDER"):
        source_of(tmp_path / "none").units()
    put(tmp_path / "a.png", image(1))
    with refused("source.path", tmp_path, "state.json", "dataset_dict.json", ".parquet", "metadata.csv", remedy="source.name"):
        source_of(tmp_path).units()
    put(tmp_path / "train.parquet", b"")
    with refused("source.path", "train.parquet"):
        source_of(tmp_path).units()
    dataset(0, 2).remove_columns("caption").to_parquet(tmp_path / "train.parquet")
    with refused("source.caption", "train.parquet", "'image', 'kind'", remedy="source.caption=NAME"):
        source_of(tmp_path).units()


def test_a_damaged_file_of_a_snapshot_does_not_stop_the_others(tmp_path: Path) -> None:
    for number in range(3):
        dataset(number, number + 1).to_parquet(tmp_path / f"train-0000{number}-of-00003.parquet")
    put(tmp_path / "train-00001-of-00003.parquet", "<html>")
    assert [value for _, value in told(read(source_of(tmp_path)))] == [["Text 0"], "unreadable_file", ["Text 2"]]


def test_a_saved_dataset_in_a_bucket(store: Store, saved: Path) -> None:
    folder = store.folder("saved")
    for file in saved.iterdir():
        folder.put(file.name, file.read_bytes())
    source = source_of(folder.uri())
    assert [unit.rows for unit in source.units()] == [None, None]
    found = pairs(read(source))
    assert [(pair.captions[0], pair.image) for pair in found] == [(f"Text {i}", image(i)) for i in range(900)]
    assert found[899].location.file == folder.uri("data-00001-of-00002.arrow")
    assert read_location(found[899].location) == image(899)
    with refused("source.path", "00000-of-00002.arrow", remedy="mode=copy"):
        read(source, images=False)
    second: Any = folder.get("data-00001-of-00002.arrow")
    folder.put("data-00001-of-00002.arrow", second[: len(second) // 2])
    found_cut = read(source)
    assert 450 < len(found_cut) < 900
    assert told(found_cut[-1:]) == [("data-00001-of-00002", "truncated_archive")]


# --- configurations ---


def snapshot(root: Path, *names: str) -> Path:
    """Parquet files of a row each, whose caption is the file's name."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": [{"bytes": image(number), "path": None}], "caption": [name]})
        pq.write_table(table, root / name)
    return root


def captions(root: Path, **keys: object) -> list[str]:
    return [pair.captions[0] for pair in pairs(read(source_of(root, **keys)))]


TWO = [f"{config}/{split}/0000.parquet" for config in ("de", "en") for split in ("test", "train")]
SHARDS = ["v1/train-00000-of-00001.parquet", "v2/train-00000-of-00001.parquet"]
OWN_SPLIT = ["v1/night-00000-of-00001.parquet", "v2/night-00000-of-00001.parquet"]
PARTIAL = ["de/partial-train/0000.parquet", "en/partial-train/0000.parquet"]


@pytest.mark.parametrize(
    ("names", "split", "configs"),
    [
        (TWO, "train", "de, en"),
        (TWO, "all", "de, en"),
        (SHARDS, "train", "v1, v2"),
        (OWN_SPLIT, "night", "v1, v2"),
        (PARTIAL, "all", "de, en"),
    ],
)
def test_several_configurations_by_their_folders(tmp_path: Path, names: list[str], split: str, configs: str) -> None:
    root = snapshot(tmp_path, *names)
    with refused("source.config", configs, remedy="source.config="):
        source_of(root, split=split).units()
    one = configs.split(", ")[1]
    assert captions(root, split=split, config=one) == [n for n in names if n.startswith(one) and (split in n or split == "all")]


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["train/a/0.parquet", "train/b/0.parquet"],
        ["train/train-a.parquet", "train/train-b.parquet"],
        ["default/train/0000.parquet"],
        ["train.parquet"],
    ],
)
def test_folders_that_are_no_configurations(tmp_path: Path, names: list[str]) -> None:
    assert captions(snapshot(tmp_path, *names, "data/test-00000-of-00001.parquet")) == names


README = """---
configs:
- config_name: en
  data_files: en-*.parquet
- config_name: de
  data_files:
  - split: train
    path: ["german/a.parquet", "german/b.parquet"]
  - split: test
    path: german/c.parquet
- config_name: fr
  data_dir: french
---
# Pets
"""


def test_several_configurations_by_the_readme(tmp_path: Path) -> None:
    names = ["en-train.parquet", "french/train/0.parquet", "german/a.parquet", "german/b.parquet", "german/c.parquet"]
    root = snapshot(tmp_path, *names, "other/train.parquet")
    (root / "README.md").write_text(README)
    with refused("source.config", "de, en, fr", remedy="source.config="):
        source_of(root).units()
    assert captions(root, config="en", split="all") == ["en-train.parquet"]
    assert captions(root, config="fr") == ["french/train/0.parquet"]
    assert captions(root, config="de", split="all") == names[2:]
    with refused("source.config", "'es'", remedy="de, en, fr"):
        source_of(root, config="es").units()


def test_a_saved_dataset_has_no_configurations(saved: Path) -> None:
    with refused("source.config", saved, "'en'", remedy="source.config=null"):
        source_of(saved, config="en").units()
