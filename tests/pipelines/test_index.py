"""Indexed images: the same as copied ones while they last, and what a run does without when they do not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.dataset.batch import Batch
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.dataset.stream import Stream, Unusable, Worker
from pipelines.dataset.tokenizer import TextTokenizer, train_tokenizer
from pipelines.dataset.views import Augment, train_view
from pipelines.features.feature_store import stored_image_features
from pipelines.features.pool import Pool
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.randomness import generator
from tests.pipelines.deadly import DeadlyPrepared, Means
from tests.refusals import refused

QUIET = Display(quiet=True)
ROWS, BATCH, SIZE, SEED = 60, 8, 12, 5
COLUMNS = frozenset({"image", "text", "text_mask", "text_id", "sample_id"})
ALONE = Worker(0, 1, torch.device("cpu"), 1)


def prepared_in(folder: Path, output: Path, mode: str, **keys: Any) -> Prepared:
    tree = {
        "source": {"name": "folder", "path": str(folder), "dataset": "things", "captions": "all_lines"},
        "output": output,
        "mode": mode,
        "image": {"size": 16, "format": "png"},
        "splits": {"test": 0.25},
    }
    return prepare(PrepareSettings.model_validate(tree | keys), QUIET)


@pytest.fixture
def folder(folder_of: Callable, png_of: Callable) -> Path:
    """Sixty different images of 16 x 12 pixels, every third with two captions."""
    files: dict[str, bytes | str] = {}
    for i in range(ROWS):
        files[f"{i:02d}.png"] = png_of(np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8))
        files[f"{i:02d}.txt"] = f"thing number {i}" + ("" if i % 3 else f"\nand again {i}")
    return folder_of(files)


@pytest.fixture
def indexed(ray_session: None, folder: Path, tmp_path: Path) -> Prepared:
    return prepared_in(folder, tmp_path / "indexed", "index")


def stream_of(prepared: Prepared, tokenizer: TextTokenizer | None = None) -> Stream:
    tokenizer = tokenizer or train_tokenizer(prepared.texts().to_pylist(), 200, 10)
    return Stream(prepared, COLUMNS, seed=SEED, image_size=SIZE, augment=Augment(), tokenizer=tokenizer)


def order_of(prepared: Prepared) -> Order:
    return Order(prepared, "train", None, seed=SEED, global_batch_size=BATCH)


def equal(one: Batch, two: Batch) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)  # type: ignore[literal-required]


def test_an_index_gives_what_a_copy_gives(indexed: Prepared, folder: Path, tmp_path: Path) -> None:
    copied = prepared_in(folder, tmp_path / "copied", "copy")
    for name, ids in copied.split_ids().items():
        assert np.array_equal(ids, indexed.split_ids()[name]) and len(ids) > 8
    columns = ("sample_id", "key", "captions", "group", "split", "text_id", "image_id")
    assert copied.table(*columns).equals(indexed.table(*columns))
    assert [s["rows"] for s in copied.manifest["shards"]] == [s["rows"] for s in indexed.manifest["shards"]]
    assert list(copied.images(np.arange(ROWS))) == list(indexed.images(np.arange(ROWS)))
    orders, tokenizer = (order_of(copied), order_of(indexed)), train_tokenizer(copied.texts().to_pylist(), 200, 10)
    steps = 2 * orders[0].steps_per_epoch
    ours, theirs = (
        list(stream_of(p, tokenizer).training(o, 0, steps, ALONE)) for p, o in zip((indexed, copied), orders, strict=True)
    )
    assert len(ours) == steps >= 8 and all(equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_index_holds_no_pixel_and_says_so(indexed: Prepared, folder: Path) -> None:
    assert indexed.manifest["mode"] == "index" and not list(indexed.path.rglob("*.tar"))
    assert [Path(place.file) for place in indexed.places(np.arange(ROWS))] == sorted(folder.glob("*.png"))


def spoil(indexed: Prepared, count: int) -> dict[int, str]:
    """Take some training images away, or break them; sample ids with the reason that each must be given."""
    ids = np.random.default_rng(0).permutation(indexed.split_ids()["train"])[:count]
    spoilt = {}
    for number, (sample_id, place) in enumerate(zip(ids.tolist(), indexed.places(ids), strict=True)):
        path = Path(place.file)
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(path.read_bytes()[:200])
        else:
            path.write_text("<!DOCTYPE html><html>404")
        spoilt[sample_id] = ("missing_image", "truncated", "html")[number % 3]
    return spoilt


def test_what_fails_while_training_is_replaced_and_told(indexed: Prepared) -> None:
    order, stream = order_of(indexed), stream_of(indexed)
    steps = 2 * order.steps_per_epoch
    healthy = list(stream.training(order, 0, steps, ALONE))
    originals = list(whole_images(indexed, np.arange(ROWS)))
    spoilt = spoil(indexed, 9)
    told: list[Unusable] = []
    batches = list(stream.training(order, 0, steps, ALONE, told.append))
    expected = [Unusable(i, spoilt[i]) for step in range(steps) for i in order.batch(step).tolist() if i in spoilt]
    assert told == expected and {one.reason for one in told} == {"missing_image", "truncated", "html"}

    texts, captions = indexed.texts().to_pylist(), indexed.table("captions")["captions"].to_pylist()
    train = set(indexed.split_ids()["train"].tolist())
    replaced = 0
    for step, (batch, before) in enumerate(zip(batches, healthy, strict=True)):
        planned = order.batch(step).tolist()
        assert {len(column) for column in batch.values()} == {BATCH}  # type: ignore[arg-type]
        for row, sample in enumerate(batch["sample_id"].tolist()):
            if planned[row] not in spoilt:
                assert sample == planned[row]
                assert all(torch.equal(batch[name][row], before[name][row]) for name in before)  # type: ignore[literal-required]
                continue
            # A real sample of the training split, with its own image and its own caption.
            replaced += 1
            assert sample in train and sample not in spoilt
            random = generator("view", SEED, order.epoch_of(step), sample, 0)
            assert np.array_equal(batch["image"][row].numpy(), train_view(originals[sample], SIZE, Augment(), random))
            shown = texts[int(batch["text_id"][row])]
            assert shown in captions[sample]
            assert stream.tokenizer is not None
            assert np.array_equal(batch["text"][row].numpy(), stream.tokenizer([shown])[0][0])
    assert replaced == len(expected) > 9
    # Stand-ins are no clique: a few samples must not be shown over and over.
    chosen = [
        s for step, b in enumerate(batches) for s, p in zip(b["sample_id"].tolist(), order.batch(step), strict=True) if s != p
    ]
    assert len(set(chosen)) > len(chosen) / 2


def test_stand_ins_do_not_depend_on_the_number_of_workers(indexed: Prepared) -> None:
    order, stream = order_of(indexed), stream_of(indexed)
    spoilt = spoil(indexed, 9)
    told: list[Unusable] = []
    whole = list(stream.training(order, 0, order.steps_per_epoch, ALONE, told.append))
    parts, told_by_parts = [], []
    for rank in range(2):
        mine: list[Unusable] = []
        worker = Worker(rank, 2, torch.device("cpu"), 0.5)
        parts.append(list(stream.training(order, 0, order.steps_per_epoch, worker, mine.append)))
        told_by_parts += mine
    for one, *two in zip(whole, *parts, strict=True):
        joined = {name: torch.cat([two[0][name], two[1][name]]) for name in one}  # type: ignore[literal-required]
        assert equal(one, joined)  # type: ignore[arg-type]
    assert sorted(told_by_parts, key=str) == sorted(told, key=str) and len(told) > len(spoilt) / 2


def test_a_resumed_run_gets_the_same_stand_ins(indexed: Prepared) -> None:
    order, stream = order_of(indexed), stream_of(indexed)
    spoil(indexed, 9)
    whole = list(stream.training(order, 0, 4, ALONE))
    assert all(equal(a, b) for a, b in zip(whole[2:], stream.training(order, 2, 4, ALONE), strict=True))


def test_scores_are_of_every_image_or_of_none(indexed: Prepared, tmp_path: Path) -> None:
    """Somebody else's image in an evaluation, or in stored features, would be a lie."""
    ids = indexed.split_ids()["test"]
    victim = int(ids[3])
    path = Path(indexed.places(np.asarray([victim]))[0].file)
    path.write_bytes(b"no image any more")
    for use in (
        lambda: list(stream_of(indexed).evaluation(ids, 4, ALONE)),
        lambda: list(whole_images(indexed, ids)),
        lambda: stored_image_features(indexed, SIZE, Means, (), {"weights": str(tmp_path)}, Pool(0), QUIET),
    ):
        with pytest.raises(UserError) as caught:
            use()
        message = str(caught.value)
        assert "\n" not in message and f"sample {victim} ({path})" in message
        assert "undecodable" in message and "verify=all" in message and "mode=copy" in message


def test_an_image_that_ends_the_process_that_reads_it_is_named(indexed: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and while features are computed: Ray says that a task's process died, and not of what."""
    monkeypatch.setattr("pipelines.dataset.stream_tasks.RETRIES", 0)
    monkeypatch.setattr("pipelines.features.feature_store.RETRIES", 0)
    deadly = DeadlyPrepared(indexed.path, indexed.manifest)
    file = indexed.places(np.asarray([7]))[0].file
    ids = np.arange(16)
    for use in (
        lambda: list(stream_of(deadly).evaluation(ids, 4, ALONE)),
        lambda: stored_image_features(deadly, SIZE, Means, (), {"weights": "deadly"}, Pool(1), QUIET),
    ):
        with pytest.raises(UserError) as caught:
            use()
        message = str(caught.value)
        assert message.startswith(f"data.path: the image of sample 7 ({file}) of {indexed.path} ends the process that reads it")
        assert "SIGSEGV" in message and "verify=all" in message and "\n" not in message


def test_where_all_images_are_gone_a_run_ends(indexed: Prepared, folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.unlink()
    told: list[Unusable] = []
    with refused("data.path", folder, "missing_image", remedy="prepare again"):
        list(stream_of(indexed).training(order_of(indexed), 0, 2, ALONE, told.append))


def drawing(comment: str) -> bytes:
    inside = f'<!--{comment}--><rect width="5" height="5"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="6">{inside}</svg>'.encode()


@pytest.mark.parametrize("exact", ["none", "pair", "image"])
def test_both_ways_find_the_same_equal_images(ray_session: None, folder: Path, tmp_path: Path, exact: str) -> None:
    """Equal bytes are one image, and equal drawings; an image that was encoded again is another, however equal its pixels."""
    original = folder / "07.png"
    again = PngInfo()
    again.add_text("Software", "another program")
    Image.open(original).save(folder / "again.png", pnginfo=again)
    for name, data in {
        "same.png": original.read_bytes(),
        "twin.png": original.read_bytes(),
        "one.svg": drawing("one"),
        "two.svg": drawing("another"),
    }.items():
        (folder / name).write_bytes(data)
    for name, caption in {"same": "thing number 7", "twin": "else", "again": "again", "one": "a box", "two": "a box"}.items():
        (folder / f"{name}.txt").write_text(caption)
    found = {}
    for mode in ("copy", "index"):
        data = prepared_in(folder, tmp_path / mode, mode, deduplicate={"exact": exact})
        table = data.table("key", "image_id", "text_id", "split")
        found[mode] = (table.to_pylist(), data.manifest["counts"], data.manifest["num_images"])
    assert found["copy"] == found["index"]
    rows, counts, images = found["copy"]
    ids = {row["key"]: row["image_id"] for row in rows}
    assert images == len(set(ids.values())) == ROWS + 2  # again.png and the drawing
    if exact == "none":
        assert ids["07.png"] == ids["same.png"] == ids["twin.png"] != ids["again.png"] and ids["one.svg"] == ids["two.svg"]
    assert counts["kept"] == ROWS + {"none": 5, "pair": 3, "image": 2}[exact]
