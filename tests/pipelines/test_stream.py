"""Streams: exactly the columns asked for, and a step's content that depends on neither workers nor where a run began."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.batch import Batch, Needs, columns
from pipelines.dataset.caption_augmentation import one_sentence, other_words
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.dataset.stream import Item, Stream, Worker
from pipelines.dataset.tokenizer import TextTokenizer, train_tokenizer
from pipelines.dataset.views import Augment
from pipelines.program.randomness import generator

ALONE = Worker(0, 1, torch.device("cpu"), 1)


@pytest.fixture(scope="module")
def tokenizer(stamps: Prepared) -> TextTokenizer:
    return train_tokenizer(stamps.texts().to_pylist(), 200, 10)


@pytest.fixture(scope="module")
def order(stamps: Prepared) -> Order:
    return Order(stamps, "train", None, seed=2, global_batch_size=8)


@pytest.fixture(scope="module")
def features(stamps: Prepared, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Made-up features whose first number is the row."""
    folders = []
    for name, rows in (("image", stamps.num_samples), ("text", stamps.num_texts)):
        folder = tmp_path_factory.mktemp(f"features-{name}")
        features = np.random.default_rng(0).normal(size=(rows, 3))
        features[:, 0] = np.arange(rows)
        np.save(folder / "rows.npy", features.astype(np.float16))
        folders.append(folder)
    return folders[0], folders[1]


def stream_of(stamps: Prepared, tokenizer: TextTokenizer, features: tuple[Path, Path], wanted: set[str]) -> Stream:
    return Stream(
        prepared=stamps,
        columns=frozenset(wanted),
        seed=2,
        image_size=12,
        augment=Augment(),
        tokenizer=tokenizer,
        image_features=features[0],
        text_features=features[1],
    )


def equal(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)  # type: ignore[literal-required]
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(("ids", "sample_id"), [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("image_locked", "text_locked"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_batch_holds_exactly_the_columns_needed(
    stamps: Prepared,
    tokenizer: TextTokenizer,
    features: tuple[Path, Path],
    order: Order,
    image_locked: bool,
    text_locked: bool,
    ids: bool,
    sample_id: bool,
) -> None:
    wanted = columns(Needs(ids, sample_id), image_locked, text_locked)
    stream = stream_of(stamps, tokenizer, features, wanted)
    assert stream.uses_tasks == (not (image_locked and text_locked))
    (batch,) = stream.training(order, 1, 2, ALONE)
    expected = {"image_features"} if image_locked else {"image"}
    expected |= {"text_features"} if text_locked else {"text", "text_mask"}
    expected |= {"image_id", "text_id"} if ids else set()
    expected |= {"sample_id"} if sample_id else set()
    assert set(batch) == expected
    kinds = {
        "image": (torch.uint8, (8, 3, 12, 12)),
        "text": (torch.int64, (8, 10)),
        "text_mask": (torch.int64, (8, 10)),
        "image_features": (torch.float32, (8, 3)),
        "text_features": (torch.float32, (8, 3)),
    }
    for name, column in batch.items():
        assert isinstance(column, torch.Tensor)
        assert (column.dtype, tuple(column.shape)) == kinds.get(name, (torch.int64, (8,)))
    if image_locked:
        assert batch["image_features"][:, 0].tolist() == order.batch(1).tolist()
    if text_locked and ids:
        assert torch.equal(batch["text_features"][:, 0].long(), batch["text_id"])


@pytest.fixture(scope="module")
def whole(
    stamps: Prepared, tokenizer: TextTokenizer, features: tuple[Path, Path], order: Order
) -> tuple[Stream, list[Batch], int]:
    """A stream of images and words, all its batches over two epochs for one worker, and their number."""
    stream = stream_of(stamps, tokenizer, features, columns(Needs(ids=True, sample_id=True), False, False))
    steps = 2 * order.steps_per_epoch
    return stream, list(stream.training(order, 0, steps, ALONE)), steps


def test_hidden_words_are_those_of_sample_and_epoch(
    stamps: Prepared, tokenizer: TextTokenizer, features: tuple[Path, Path], order: Order, whole: tuple[Stream, list[Batch], int]
) -> None:
    """On any number of workers; the captions themselves stay."""
    stream = stream_of(stamps, tokenizer, features, columns(Needs(ids=True, sample_id=True, masked="apart"), False, False))
    _, plain, steps = whole
    found = list(stream.training(order, 0, steps, ALONE))
    half = list(stream.training(order, 3, steps, Worker(1, 2, torch.device("cpu"), 1)))
    for step, (batch, without) in enumerate(zip(found, plain, strict=True)):
        assert torch.equal(batch["text"], without["text"])
        randoms = [generator("mask", 2, step // order.steps_per_epoch, i) for i in batch["sample_id"].tolist()]
        hidden, labels = tokenizer.mask(batch["text"].numpy(), randoms)
        assert np.array_equal(batch["masked_text"].numpy(), hidden) and np.array_equal(batch["masked_labels"].numpy(), labels)
        if step >= 3:
            assert torch.equal(half[step - 3]["masked_text"], batch["masked_text"][4:])
    assert any(bool((batch["masked_labels"] >= 0).any()) for batch in found)


def test_hidden_words_may_be_those_of_the_caption_itself_and_it_may_be_said_otherwise(
    stamps: Prepared, tokenizer: TextTokenizer, features: tuple[Path, Path], order: Order, whole: tuple[Stream, list[Batch], int]
) -> None:
    """Other words are made of the whole caption, by a key of their own."""
    wanted = columns(Needs(ids=True, sample_id=True, masked="shared", other_words=True), False, False)
    assert "masked_text" not in wanted
    captions = stamps.table("captions")["captions"].to_pylist()
    text_ids = stamps.table("text_id")["text_id"].to_pylist()
    found = list(stream_of(stamps, tokenizer, features, wanted).training(order, 0, whole[2], ALONE))
    for step, (batch, without) in enumerate(zip(found, whole[1], strict=True)):
        ids, epoch = batch["sample_id"].tolist(), step // order.steps_per_epoch
        hidden, labels = tokenizer.mask(without["text"].numpy(), [generator("mask", 2, epoch, i) for i in ids])
        assert np.array_equal(batch["text"].numpy(), hidden) and np.array_equal(batch["masked_labels"].numpy(), labels)
        shown = [captions[i][text_ids[i].index(text)] for i, text in zip(ids, batch["text_id"].tolist(), strict=True)]
        others, mask = tokenizer([other_words(t, generator("eda", 2, epoch, i)) for t, i in zip(shown, ids, strict=True)])
        assert np.array_equal(batch["other_text"].numpy(), others) and np.array_equal(batch["other_mask"].numpy(), mask)


def test_a_sentence_of_a_caption_is_that_of_sample_and_epoch(
    stamps: Prepared, tokenizer: TextTokenizer, features: tuple[Path, Path]
) -> None:
    stream = stream_of(stamps, tokenizer, features, {"text", "text_mask", "image_id", "text_id"})
    stream = dataclasses.replace(stream, sentences=0.7)
    texts, cut = stamps.texts().to_pylist(), 0
    for epoch in range(3):
        found = stream.here(Item(np.arange(40), epoch))
        shown = [texts[i] for i in found["text_id"].tolist()]
        randoms = [generator("sentence", 2, epoch, i, 0) for i in range(40)]
        expected = [one_sentence(text, 0.7, random) for text, random in zip(shown, randoms, strict=True)]
        assert np.array_equal(found["text"].numpy(), tokenizer(expected)[0])
        cut += sum(text != whole for text, whole in zip(expected, shown, strict=True))
    assert cut > 0


def test_batches_follow_the_order_and_describe_their_samples(
    stamps: Prepared, tokenizer: TextTokenizer, order: Order, whole: tuple[Stream, list[Batch], int]
) -> None:
    _, batches, steps = whole
    assert len(batches) == steps
    texts, image_ids = stamps.texts().to_pylist(), stamps.table("image_id")["image_id"].to_numpy()
    captions = stamps.table("captions")["captions"].to_pylist()
    for step, batch in enumerate(batches):
        ids = order.batch(step)
        assert batch["sample_id"].tolist() == ids.tolist()
        assert batch["image_id"].tolist() == image_ids[ids].tolist()
        shown = [texts[i] for i in batch["text_id"].tolist()]
        assert all(text in captions[i] for text, i in zip(shown, ids, strict=True))
        # The id that the objective sees belongs to the caption that the tower sees.
        tokens, mask = tokenizer(shown)
        assert np.array_equal(batch["text"].numpy(), tokens) and np.array_equal(batch["text_mask"].numpy(), mask)


def test_tasks_and_workers_choose_the_same_caption(
    stamps: Prepared, tokenizer: TextTokenizer, features: tuple[Path, Path]
) -> None:
    """Where tasks read captions they hand on the ids; where nothing is read, the worker looks the ids of all samples up."""
    ids, read = {"image_id", "text_id", "text_features"}, {"text", "text_mask"}
    texts, several = stamps.texts().to_pylist(), 0
    for epoch in range(4):
        item = Item(np.arange(40)[::-1].copy(), epoch)
        tasks, looked_up = Prepared.open(stamps.path), Prepared.open(stamps.path)
        found = stream_of(tasks, tokenizer, features, ids | read).here(item)
        expected = stream_of(looked_up, tokenizer, features, ids).here(item)
        assert set(found) == ids | read and set(expected) == ids
        assert all(torch.equal(column, found[name]) for name, column in expected.items())  # type: ignore[literal-required]
        assert np.array_equal(found["text"].numpy(), tokenizer([texts[i] for i in found["text_id"].tolist()])[0])
        assert "row_ids" in vars(looked_up) and "row_ids" not in vars(tasks), "not held where the stream brings them"
        several += int((found["text_id"] != torch.from_numpy(stamps.row_ids.text(item.sample_ids))).sum())
    assert several > 0, "some samples have shown another caption than their first"


def test_every_epoch_shows_other_views_and_other_captions(whole: tuple[Stream, list[Batch], int]) -> None:
    _, batches, _ = whole
    seen: dict[int, list[tuple[torch.Tensor, int]]] = {}
    for batch in batches:
        for i, sample in enumerate(batch["sample_id"].tolist()):
            seen.setdefault(sample, []).append((batch["image"][i], int(batch["text_id"][i])))
    twice = [views for views in seen.values() if len(views) == 2]
    assert len(twice) > 8
    assert sum(torch.equal(a[0], b[0]) for a, b in twice) == 0
    assert 0 < sum(a[1] != b[1] for a, b in twice) < len(twice)  # one caption for two samples of three


def test_two_workers_share_what_one_would_get(order: Order, whole: tuple[Stream, list[Batch], int]) -> None:
    stream, batches, steps = whole
    parts = [list(stream.training(order, 0, steps, Worker(rank, 2, torch.device("cpu"), 0.5))) for rank in range(2)]
    joined = [
        {name: torch.cat([a[name], b[name]]) for name in a}  # type: ignore[literal-required]
        for a, b in zip(*parts, strict=True)
    ]
    assert {len(part["image"]) for part in parts[0]} == {4}
    assert equal(joined, batches)  # type: ignore[arg-type]


def test_a_run_that_starts_in_the_middle_sees_what_it_would_have_seen(
    order: Order, whole: tuple[Stream, list[Batch], int]
) -> None:
    stream, batches, steps = whole
    first = order.steps_per_epoch - 1  # the end of one epoch and the beginning of the next
    assert equal(list(stream.training(order, first, steps, ALONE)), batches[first:])


def test_long_runs_are_cut_into_executions_without_a_seam(
    order: Order, whole: tuple[Stream, list[Batch], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, batches, _ = whole
    monkeypatch.setattr("pipelines.dataset.stream._SEGMENT", 2)
    assert equal(list(stream.training(order, 1, 4, ALONE)), batches[1:4])


def test_another_seed_shows_other_views(order: Order, whole: tuple[Stream, list[Batch], int]) -> None:
    stream, batches, _ = whole
    (batch,) = replace(stream, seed=3).training(order, 0, 1, ALONE)
    assert torch.equal(batch["sample_id"], batches[0]["sample_id"])
    assert not torch.equal(batch["image"], batches[0]["image"])


def test_evaluation_shows_centre_views_once_and_ends_with_a_shorter_batch(stamps: Prepared, tokenizer: TextTokenizer) -> None:
    stream = Stream(prepared=stamps, columns=frozenset({"image", "text", "text_mask"}), image_size=12, tokenizer=tokenizer)
    ids = np.array([3, 39, 8, 0, 21, 20, 7])
    batches = list(stream.evaluation(ids, 3, ALONE))
    assert [len(batch["image"]) for batch in batches] == [3, 3, 1]
    found = torch.cat([batch["image"] for batch in batches]).numpy()
    for pixels, image in zip(found, whole_images(stamps, ids), strict=True):
        # Images are 16 x 12: the centre square is columns 2 to 14, and nothing is resized.
        assert np.array_equal(pixels, np.asarray(image)[:, 2:14].transpose(2, 0, 1))
    tokens, _ = tokenizer([captions[0] for captions in stamps.rows(ids, ("captions",))["captions"].to_pylist()])
    assert np.array_equal(torch.cat([batch["text"] for batch in batches]).numpy(), tokens)


def test_nothing_to_evaluate_gives_no_batch(stamps: Prepared) -> None:
    stream = Stream(prepared=stamps, columns=frozenset({"image"}), image_size=12)
    assert list(stream.evaluation(np.zeros(0, dtype=np.int64), 4, ALONE)) == []
