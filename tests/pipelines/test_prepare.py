"""Preparing: dense ids, counts that add up, reasons for what is missing, and nothing half-done that looks finished.

What a killed process leaves is the matter of test_prepare_resume.py.
"""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from pipelines.dataset.prepared import Prepared
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.settings import validate
from pipelines.sources.base import Pair, Rejected
from pipelines.sources.folder import FolderSource
from tests.refusals import refused

QUIET = Display(quiet=True)
PIXELS = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def settings_of(folder: Path, output: Path, **keys: Any) -> PrepareSettings:
    source = {"name": "folder", "path": folder, "dataset": "small"} | keys.pop("source", {})
    tree = {"source": source, "output": output, "image": {"size": 16, "format": "png"}, "splits": {"test": 0.5}}
    return PrepareSettings.model_validate(tree | keys)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def shard_files(prepared: Prepared) -> set[str]:
    """What a dataset consists of."""
    shards = [shard["file"] for shard in prepared.manifest["shards"]]
    tars = [file.replace(".parquet", ".tar") for file in shards] if prepared.manifest["mode"] == "copy" else []
    return {"manifest.json", "rejected.parquet", *shards, *tars}


# --- what is written ---


def test_counts_add_up_and_ids_are_dense(stamps: Prepared) -> None:
    manifest = stamps.manifest
    assert manifest["counts"] == {"listed": 41, "found": 41, "read": 41, "kept": 40, "rejected": {"undecodable": 1}}
    assert manifest["num_samples"] == 40 and manifest["name"] == "stamps"
    assert sum(shard["rows"] for shard in manifest["shards"]) == 40
    assert [s["rows"] for s in manifest["shards"]] == [16, 16, 8]
    splits = stamps.table("split")["split"].to_pylist()
    assert manifest["splits"] == {name: splits.count(name) for name in ("train", "test", "val")}
    assert manifest["labels"] == {"kind": {"animals": 14, "food": 13, "tools": 13}}
    first = 0
    for shard in manifest["shards"]:
        table = pq.read_table(stamps.path / shard["file"])
        assert table["sample_id"].to_pylist() == list(range(first, first + shard["rows"]))
        assert shard["splits"] == {
            name: count for name in ("test", "train", "val") if (count := table["split"].to_pylist().count(name))
        }
        first += shard["rows"]
    # Images lie apart: whoever needs captions or labels reads no pixel.
    light = {"sample_id", "image_id", "text_id", "key", "group", "split", "captions", "file", "start", "length", "column"}
    assert set(table.column_names) == light | {"label_kind"}
    assert files(stamps.path) - {f for f in files(stamps.path) if f.startswith("features/")} == shard_files(stamps)


def test_rows_keep_the_sources_order_and_content(stamps: Prepared, stamps_folder: Path) -> None:
    table = stamps.rows(np.arange(40), ("key", "captions", "group", "label_kind"))
    keys = table["key"].to_pylist()
    wanted = sorted(p.relative_to(stamps_folder).as_posix() for p in stamps_folder.rglob("*.png"))
    assert keys == [key for key in wanted if key != "tools/broken.png"]
    for row, data in zip(table.to_pylist(), stamps.images(np.arange(40)), strict=True):
        original = np.asarray(Image.open(stamps_folder / row["key"]))
        assert isinstance(data, bytes) and np.array_equal(np.asarray(Image.open(io.BytesIO(data))), original)
        lines = (stamps_folder / row["key"]).with_suffix(".txt").read_text().split("\n")
        assert row["captions"] == [line for line in lines if line]
        assert row["group"] == lines[0].lower() and row["label_kind"] == row["key"].split("/")[0]


def test_equal_images_and_equal_captions_share_ids(stamps: Prepared) -> None:
    table = stamps.rows(np.arange(40), ("key", "captions", "image_id", "text_id"))
    rows = {int(row["key"].split("/")[1][:2]): row for row in table.to_pylist()}
    assert rows[4]["image_id"] == rows[5]["image_id"]
    assert len({row["image_id"] for row in rows.values()}) == stamps.manifest["num_images"] == 39
    assert {row["image_id"] for row in rows.values()} == set(range(39))
    by_text: dict[str, set[int]] = {}
    for row in rows.values():
        for text, text_id in zip(row["captions"], row["text_id"], strict=True):
            by_text.setdefault(text, set()).add(text_id)
    # 20 shared first lines, and a second line for 0, 3, ..., 39.
    assert len(by_text) == 34 == stamps.num_texts and all(len(ids) == 1 for ids in by_text.values())
    assert {i for ids in by_text.values() for i in ids} == set(range(34))


def test_rejected_rows_are_listed_with_their_reason(stamps: Prepared, stamps_folder: Path) -> None:
    (row,) = pq.read_table(stamps.path / "rejected.parquet").to_pylist()
    assert (row["key"], row["reason"]) == ("tools/broken.png", "undecodable")
    assert row["origin"] == str(stamps_folder / "tools/broken.png") and row["detail"]


def test_emojis_are_shrunk_and_lie_on_white(tiny_dataset: Prepared) -> None:
    assert tiny_dataset.num_samples == 96 and set(tiny_dataset.manifest["labels"]) == {"group", "subgroup"}
    assert "OpenMoji" in tiny_dataset.manifest["attribution"] and tiny_dataset.manifest["licence"] == "CC BY-SA 4.0"
    corners = 0
    for data in tiny_dataset.images(np.arange(20)):
        assert isinstance(data, bytes)
        image = Image.open(io.BytesIO(data))
        assert image.size == (48, 48) and image.mode == "RGB"
        corners += image.getpixel((0, 0)) == (255, 255, 255)
    assert corners > 15


def test_the_tars_are_webdataset_shards_that_others_read(
    ray_session: None, folder_of: Callable, png_of: Callable, tmp_path: Path
) -> None:
    """Over several parts, with a row in the middle that is left out; the webdataset package pairs images with captions."""
    source: dict[str, bytes | str] = {f"{i:02d}.png": png_of(PIXELS + i) for i in range(40)}
    source |= {f"{i:02d}.txt": f"Thing  {i},\nand more" for i in range(40)} | {"05.png": b"no image"}
    settings = settings_of(
        folder_of(source), tmp_path / "out", source={"captions": "all_lines"}, image={"size": 16, "format": "jpeg"}
    )
    prepared = prepare(settings, QUIET)
    tars = [str(prepared.path / shard["file"].replace(".parquet", ".tar")) for shard in prepared.manifest["shards"]]
    assert len(tars) == 3
    found = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    rows = [i for i in range(40) if i != 5]
    assert [sample["txt"] for sample in found] == [f"Thing  {i},\nand more" for i in rows]
    for sample, i, data in zip(found, rows, prepared.images(np.arange(39)), strict=True):
        assert isinstance(data, bytes) and np.array_equal(sample["jpg"], np.asarray(Image.open(io.BytesIO(data))))
        assert abs(sample["jpg"].mean() - (PIXELS + i).mean()) < 3, "the image is the caption's"


# --- again, elsewhere, differently ---


def test_the_fingerprint_is_of_the_content(
    ray_session: None, folder_of: Callable, png_of: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = folder_of({f"{i}.png": png_of(PIXELS + i) for i in range(4)} | {f"{i}.txt": f"thing {i}" for i in range(4)})
    one = prepare(settings_of(root, tmp_path / "one"), QUIET)
    two = prepare(settings_of(root, tmp_path / "two", max_rejected_rate=0.9), QUIET)
    assert one.fingerprint == two.fingerprint and one.path != two.path
    manifest = tmp_path / "one" / "manifest.json"
    written = manifest.stat().st_mtime_ns

    # The same again is done at once.
    assert prepare(settings_of(root, tmp_path / "one"), Display()).manifest == one.manifest
    assert "already prepared" in capsys.readouterr().out and manifest.stat().st_mtime_ns == written
    # Neither the limit for rejected rows nor the permission to overwrite is part of what was prepared.
    prepare(settings_of(root, tmp_path / "one", max_rejected_rate=0.5, overwrite=True), QUIET)
    assert manifest.stat().st_mtime_ns == written

    # Another config is refused with the key that differs, unless told otherwise.
    other = {"image": {"size": 8, "format": "png"}}
    with refused("output", tmp_path / "one", "image.size: 16 -> 8", remedy="overwrite=true"):
        prepare(settings_of(root, tmp_path / "one", **other), QUIET)
    assert manifest.stat().st_mtime_ns == written
    smaller = prepare(settings_of(root, tmp_path / "one", **other, overwrite=True), QUIET)
    assert smaller.manifest["image"]["size"] == 8 and smaller.fingerprint != one.fingerprint
    assert Prepared.open(tmp_path / "one").fingerprint == smaller.fingerprint

    # Another image: the listing has changed, and with it the content.
    (root / "2.png").write_bytes(png_of(255 - PIXELS))
    with refused("output", tmp_path / "two", "source's files", remedy="overwrite=true"):
        prepare(settings_of(root, tmp_path / "two"), QUIET)
    changed = prepare(settings_of(root, tmp_path / "two", overwrite=True), QUIET)
    assert changed.fingerprint != two.fingerprint
    # Of what was replaced nothing is left.
    assert files(changed.path) == shard_files(changed) and files(smaller.path) == shard_files(smaller)


def test_a_folder_with_something_else_in_it_is_not_touched(folder_of: Callable, png_of: Callable, tmp_path: Path) -> None:
    root = folder_of({"a.png": png_of(PIXELS), "a.txt": "x"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with refused("output", tmp_path / "out", "thesis.tex", remedy="output"):
        prepare(settings_of(root, tmp_path / "out"), QUIET)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_nothing_outside_the_output_is_tidied_away(
    ray_session: None, folder_of: Callable, png_of: Callable, tmp_path: Path
) -> None:
    """Whatever folders around it, or a stranger's inside it, are called."""
    root = folder_of({"a.png": png_of(PIXELS), "a.txt": "x"})
    above = tmp_path / "content-0123456789ab"
    (above / "out" / "content-of-my-thesis").mkdir(parents=True)
    mine = [above / "notes.txt", above / "out" / "content-of-my-thesis" / "a.tex"]
    for path in mine:
        path.write_text("years of work")
    with refused("output", above / "out", "content-of-my-thesis/a.tex", remedy="overwrite=true"):
        prepare(settings_of(root, above / "out"), QUIET)
    prepared = prepare(settings_of(root, above / "out", overwrite=True), QUIET)
    assert all(path.exists() for path in mine)
    assert files(prepared.path) == shard_files(prepared) | {"content-of-my-thesis/a.tex"}


def test_an_output_that_is_a_file_is_refused(folder_of: Callable, png_of: Callable, tmp_path: Path) -> None:
    root = folder_of({"a.png": png_of(PIXELS), "a.txt": "x"})
    (tmp_path / "out").write_text("a file")
    with refused("output", tmp_path / "out", remedy="output"):
        prepare(settings_of(root, tmp_path / "out"), QUIET)
    assert (tmp_path / "out").read_text() == "a file"


# --- what goes wrong ---


def test_too_many_unusable_rows_stop_with_the_table_and_leave_no_dataset(
    ray_session: None, folder_of: Callable, png_of: Callable, tmp_path: Path
) -> None:
    source: dict[str, bytes | str] = {f"{i}.png": png_of(PIXELS + i) for i in range(6)} | {f"{i}.txt": "x" for i in range(8)}
    source |= {"6.png": b"no image", "7.png": b"", "0.txt": "", "1.txt": "one two three four"}
    root = folder_of(source)
    counts = ("4 of 8 rows", "undecodable 1", "empty 1", "empty_caption 1", "caption_too_long 1", "10%")
    with refused("max_rejected_rate", *counts, root / "0.png", remedy="max_rejected_rate=") as caught:
        prepare(settings_of(root, tmp_path / "out", captions={"reject_words": 3}), QUIET)
    with refused("data.path", tmp_path / "out", remedy="python -m pipelines"):
        Prepared.open(tmp_path / "out")
    # The way out that it names is one, and continues from what was read.
    rate = float(caught.value.remedy.rsplit("max_rejected_rate=", 1)[1])
    done = prepare(settings_of(root, tmp_path / "out", captions={"reject_words": 3}, max_rejected_rate=rate), QUIET)
    assert done.manifest["counts"]["kept"] == 4 and sum(done.manifest["counts"]["rejected"].values()) == 4
    assert files(done.path) == shard_files(done)


def test_nothing_usable_at_all_is_an_error(ray_session: None, folder_of: Callable, tmp_path: Path) -> None:
    root = folder_of({"a.png": b"no image", "a.txt": "x"})
    with refused("source", "1 rows", "undecodable 1", root / "a.png"):
        prepare(settings_of(root, tmp_path / "out", max_rejected_rate=1.0), QUIET)
    with refused("data.path", tmp_path / "out", remedy="python -m pipelines"):
        Prepared.open(tmp_path / "out")


def test_an_empty_source_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    class Empty(FolderSource):
        def units(self) -> list:
            return []

    (tmp_path / "in").mkdir()
    settings = settings_of(tmp_path / "in", tmp_path / "out")
    with refused("source.path", tmp_path / "in", remedy="source.path"):
        prepare(settings, QUIET)
    empty = settings.model_copy(update={"source": Empty(name="folder", path=tmp_path / "in", dataset="none")})
    with refused("source", "none"):
        prepare(empty, QUIET)
    assert not (tmp_path / "out").exists()


def burning() -> type[FolderSource]:
    """A class made where no fixtures are: pydantic keeps a class's surroundings, and they travel to Ray's workers with it."""

    class Broken(FolderSource):
        def read(self, unit: Any, images: bool) -> Iterator[Pair | Rejected]:
            yield from super().read(unit[:1], images)
            raise ZeroDivisionError("the disk caught fire")

    return Broken


def test_a_crash_leaves_nothing_that_looks_finished(
    ray_session: None, folder_of: Callable, png_of: Callable, tmp_path: Path
) -> None:
    root = folder_of({f"{i}.png": png_of(PIXELS + i) for i in range(3)} | {f"{i}.txt": "x" for i in range(3)})
    settings = settings_of(root, tmp_path / "out")
    broken = settings.model_copy(update={"source": burning()(name="folder", path=root, dataset="small")})
    with pytest.raises(Exception, match="the disk caught fire"):
        prepare(broken, QUIET)
    with refused("data.path", tmp_path / "out", remedy="python -m pipelines"):
        Prepared.open(tmp_path / "out")
    # An older dataset survives a crash of the one that should replace it, and the same command then does it.
    older = prepare(settings, QUIET)
    assert files(older.path) == shard_files(older)
    with pytest.raises(Exception, match="the disk caught fire"):
        prepare(broken.model_copy(update={"overwrite": True, "split_seed": 3}), QUIET)
    survivor = Prepared.open(tmp_path / "out")
    assert survivor.manifest == older.manifest and shard_files(older) <= files(older.path)
    assert all(isinstance(data, bytes) for data in survivor.images(np.arange(3)))
    newer = prepare(settings.model_copy(update={"overwrite": True, "split_seed": 3}), QUIET)
    assert newer.manifest["config"]["split_seed"] == 3 and files(newer.path) == shard_files(newer)


def test_a_manifest_is_complete(stamps: Prepared) -> None:
    manifest = json.loads((stamps.path / "manifest.json").read_text())
    assert manifest == stamps.manifest
    for key in ("format_version", "fingerprint", "counts", "mode", "licence", "attribution", "code_version", "splits"):
        assert key in manifest
    assert manifest["split_shares"] == {"test": 0.2, "val": 0.1}
    assert manifest["image"] == {"size": 16, "format": "png", "background": "white"}


# --- settings ---


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ({"splits": {"train": 0.5}}, "splits", ["'train'"]),
        ({"splits": {"test": 0.7, "val": 0.4}}, "splits", ["0.7", "0.4"]),
        ({"splits": {"test": 0}}, "splits", ["0"]),
        ({"splits": {"test": "half"}}, "splits.test", ["half"]),
        ({"splits": "karpathy"}, "splits", ["'karpathy'", "{test: 0.1}"]),
        ({"image": {"background": "invisible"}}, "image.background", ["invisible"]),
        ({"image": {"format": "bmp"}}, "image.format", ["bmp", "'png', 'jpeg' or 'webp'"]),
        ({"output": "in"}, "output", ["in "]),
        ({"source": {"name": "folders"}}, "source.name", ["'folders'", "'folder'?", "webdataset"]),
        ({"source": {"name": "openmoji", "path": "x"}}, "source.path", ["x"]),
    ],
)
def test_a_config_that_cannot_work_names_its_key(change: dict, key: str, named: list[str]) -> None:
    tree = {"source": {"name": "folder", "path": "in"}, "output": "out"}
    with refused(key, *named):
        validate(PrepareSettings, tree | change, "c.yaml")
