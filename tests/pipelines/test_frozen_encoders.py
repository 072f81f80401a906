"""Frozen encoders: the neighbours that a plain search finds, the same whoever asks, and never of another split."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.dataset.batch import Needs, columns
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Item, Stream, Worker
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.dataset.views import Augment
from pipelines.features.feature_store import stored_view_features
from pipelines.features.frozen_encoders import FrozenFeatures, unit
from pipelines.features.knn import nearest
from pipelines.features.knn_cache import find_neighbours, with_neighbours
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from tests.refusals import refused


@pytest.fixture(scope="module")
def frozen(stamps: Prepared, tmp_path_factory: pytest.TempPathFactory) -> FrozenFeatures:
    folders = []
    for rows, width in ((stamps.num_samples, 6), (stamps.num_texts, 4)):
        folders.append(tmp_path_factory.mktemp("features") / f"width-{width}")
        folders[-1].mkdir()
        np.save(folders[-1] / "rows.npy", np.random.default_rng(width).normal(size=(rows, width)).astype(np.float16))
    order = Order(stamps, "train", None, seed=2, global_batch_size=8)
    return FrozenFeatures(order, folders[0], folders[1], support=10_000)


def naive(stamps: Prepared, frozen: FrozenFeatures, sample: int, support: list[int]) -> tuple[int, int]:
    """The nearest of the support set by image and by first caption, by cosines one at a time."""
    table = stamps.table("image_id", "text_id").to_pylist()
    features = [np.load(folder / "rows.npy").astype(float) for folder in (frozen.image_features, frozen.text_features)]

    def feature(side: int, row: int) -> np.ndarray:
        found = features[side][table[row]["text_id"][0] if side else row]
        return found / np.linalg.norm(found)

    others = [row for row in support if table[row]["image_id"] != table[sample]["image_id"]]
    one, other = (max(others, key=lambda row: (float(feature(side, sample) @ feature(side, row)), -row)) for side in (0, 1))
    return one, other


def test_each_sample_gets_the_nearest_of_the_training_split(stamps: Prepared, frozen: FrozenFeatures) -> None:
    everybody = np.arange(stamps.num_samples)
    training = frozen.order.ids.tolist()
    assert len(training) < stamps.num_samples
    found = frozen.columns(everybody, 0, "cpu")
    for sample in everybody.tolist():
        assert tuple(found["neighbour_ids"][sample]) == (sample, *naive(stamps, frozen, sample, training))
    images = np.load(frozen.image_features / "rows.npy").astype(np.float32)
    expected, texts = images[found["neighbour_ids"]], found["frozen_text_features"]
    expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found["frozen_image_features"], expected, rtol=1e-5)
    assert texts.shape == (len(everybody), 3, 4) and texts.dtype == np.float32
    assert all(np.array_equal(found[name], column) for name, column in frozen.columns(everybody, 1, "cpu").items())


def test_a_smaller_support_set_is_drawn_anew_in_every_epoch(stamps: Prepared, frozen: FrozenFeatures) -> None:
    few, everybody = replace(frozen, support=9), np.arange(stamps.num_samples)
    sets = []
    for epoch in range(3):
        found = few.columns(everybody, epoch, "cpu")["neighbour_ids"]
        used = sorted(set(found[:, 1:].ravel().tolist()))
        assert len(used) <= 9 and set(used) <= set(frozen.order.ids.tolist())
        sets.append(used)
    assert sets[0] != sets[1] != sets[2]
    alone = few.columns(everybody[5:6], 2, "cpu")["neighbour_ids"]
    assert np.array_equal(alone, found[5:6]), "whoever else is in the batch"


def test_only_itself_leaves_no_neighbour() -> None:
    rows = np.eye(3, dtype=np.float32)
    assert nearest(rows, rows[:1], np.asarray([7, 8, 9]), np.asarray([7])).tolist() == [-1, 0, 0]
    assert nearest(rows, rows[:0], np.asarray([7, 8, 9]), np.asarray([], dtype=np.int64)).tolist() == [-1, -1, -1]


def test_the_first_of_equal_neighbours_in_blocks_or_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    queries, keys = random.normal(size=(40, 5)).astype(np.float32), random.normal(size=(30, 5)).astype(np.float32)
    keys[20] = keys[3]
    groups, key_groups = np.arange(40), np.arange(30)
    found = nearest(queries, keys, groups, key_groups)
    assert 20 not in found[[i for i in range(40) if i != 3]]
    monkeypatch.setattr("pipelines.features.knn._BYTES", 4 * 30 * 7)
    assert np.array_equal(nearest(queries, keys, groups, key_groups), found)


def test_a_stream_hands_them_on_whatever_the_workers(stamps: Prepared, frozen: FrozenFeatures) -> None:
    """Nothing has to be computed in the cluster for them."""
    wanted = columns(Needs(sample_id=True, frozen_encoders="neighbours"), True, True) - {"image_features", "text_features"}
    stream = Stream(stamps, frozenset(wanted), seed=2, frozen_features=frozen)
    assert not stream.uses_tasks
    whole = list(stream.training(frozen.order, 0, 4, Worker(0, 1, torch.device("cpu"), 1)))
    halves = [list(stream.training(frozen.order, 2, 4, Worker(rank, 2, torch.device("cpu"), 1))) for rank in range(2)]
    for batch, left, right in zip(whole[2:], *halves, strict=True):
        assert set(batch) == wanted
        assert torch.equal(batch["neighbour_ids"][:, 0], batch["sample_id"])
        for name in wanted:
            assert torch.equal(batch[name], torch.cat([left[name], right[name]]))  # type: ignore[literal-required]


def test_own_features_are_those_of_the_caption_that_is_shown(stamps: Prepared, frozen: FrozenFeatures) -> None:
    """A sample with several captions shows another one in another epoch, and its feature goes along."""
    wanted = columns(Needs(ids=True, sample_id=True, frozen_encoders="own"), True, True) - {"image_features", "text_features"}
    stream = Stream(stamps, frozenset(wanted), seed=2, augment=Augment(), frozen_features=frozen)
    images, texts = (np.load(folder / "rows.npy").astype(float) for folder in (frozen.image_features, frozen.text_features))
    seen = set()
    for epoch in range(6):
        found = stream.look_up(np.arange(stamps.num_samples), epoch)
        assert set(found) == wanted
        for sample, text in enumerate(found["text_id"]):
            seen.add((sample, int(text)))
            for rows, row, name in ((images, sample, "frozen_image_features"), (texts, text, "frozen_text_features")):
                np.testing.assert_allclose(found[name][sample, 0], rows[row] / np.linalg.norm(rows[row]), atol=1e-6)
    assert len(seen) > stamps.num_samples, "some samples have shown more than one caption"


def test_a_second_tokenizer_reads_the_same_captions(stamps: Prepared) -> None:
    """The student's and the frozen encoder's tokens are of one text."""
    first, second = (train_tokenizer(stamps.texts().to_pylist(), size, 16) for size in (90, 300))
    wanted = columns(Needs(frozen_encoders="live"), False, False)
    assert wanted == {"image", "text", "text_mask", "frozen_text", "frozen_mask"}
    stream = Stream(stamps, frozenset(wanted), 2, 8, Augment(), first, frozen_tokenizer=second)
    captions = stamps.table("captions")["captions"].to_pylist()
    several = next(sample for sample, texts in enumerate(captions) if len(texts) > 1)
    shown = set()
    for epoch in range(8):
        found = stream.compute(Item(np.asarray([several]), epoch))
        matches = [t for t in captions[several] if np.array_equal(first([t])[0], found["text"])]
        assert np.array_equal(second(matches[:1])[0], found["frozen_text"])
        assert np.array_equal(second(matches[:1])[1], found["frozen_mask"])
        shown.add(matches[0])
    assert len(shown) > 1


def test_neighbours_looked_up_beforehand_are_those_of_the_search(stamps: Prepared, frozen: FrozenFeatures) -> None:
    assert with_neighbours(frozen, stamps) is frozen, "nobody has looked yet"
    path = find_neighbours(frozen, stamps, Pool(2), Display(quiet=True))
    found, everybody = with_neighbours(frozen, stamps), np.arange(stamps.num_samples)
    assert found.neighbours == path and np.load(path / "rows.npy").dtype == np.int64
    for part, epoch in ((everybody, 0), (everybody[::-3], 4)):
        searched, stored = frozen.columns(part, epoch, "cpu"), pickle.loads(pickle.dumps(found)).columns(part, epoch, "cpu")
        assert searched.keys() == stored.keys()
        for name, column in searched.items():
            assert np.array_equal(stored[name], column) and stored[name].dtype == column.dtype, name
    assert with_neighbours(replace(frozen, support=9), stamps).neighbours is None, "a part of the split has others"
    assert find_neighbours(replace(frozen, support=9, search="approximate"), stamps, Pool(0), Display(quiet=True)) == path


def test_neighbours_of_another_split_or_encoder_are_not_taken(stamps: Prepared, frozen: FrozenFeatures) -> None:
    """Whatever decides who is in the split: its name, the seed of the splits, the share of the validation split."""
    find_neighbours(frozen, stamps, Pool(0), Display(quiet=True))
    order = frozen.order
    others = [replace(order, split="test"), replace(order, split_seed=5), replace(order, validation=0.3)]
    for other in [*(replace(frozen, order=order) for order in others), replace(frozen, image_features=frozen.text_features)]:
        assert with_neighbours(other, stamps).neighbours is None
    same = replace(frozen, order=replace(order, seed=77, global_batch_size=4))
    assert with_neighbours(same, stamps).neighbours is not None, "the order of samples has no part in it"


def test_damaged_neighbours_are_refused(stamps: Prepared, frozen: FrozenFeatures) -> None:
    file = find_neighbours(frozen, stamps, Pool(0), Display(quiet=True)) / "rows.npy"
    rows = np.load(file)
    np.save(file, rows[::-1])
    with refused(str(file.parent), "rows.npy", remedy="delete"):
        with_neighbours(frozen, stamps)
    np.save(file, rows)


def test_an_index_is_asked_where_the_config_says_so(stamps: Prepared, frozen: FrozenFeatures) -> None:
    """So few are all looked at: it must find the very same, in every epoch and on every worker."""
    pytest.importorskip("faiss")
    everybody = np.arange(stamps.num_samples)
    for support in (10_000, 9):
        exact = replace(frozen, support=support)
        quick = replace(exact, search="approximate")
        for epoch in (0, 1):
            searched = exact.columns(everybody, epoch, "cpu")["neighbour_ids"]
            assert np.array_equal(quick.columns(everybody, epoch, "cpu")["neighbour_ids"], searched)


class Pixels:
    """An encoder whose features tell its input: the mean of each of 24 parts of the image."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 24, -1).mean(2) / 255 + 0.1


def test_features_of_views_are_of_what_the_stream_shows_in_each_epoch(
    stamps: Prepared, frozen: FrozenFeatures, tmp_path: Path
) -> None:
    """Views repeat after as many epochs as there are, and are the same for every seed; captions go on being drawn by the seed."""
    augment, count = Augment(crop_scale=(0.3, 0.8)), 3
    places = stored_view_features(stamps, 12, Pixels, (), {"at": str(tmp_path)}, (augment, count), Pool(0), Display(quiet=True))
    assert len({*places}) == count
    repeated = replace(frozen, views=tuple(places))
    wanted = columns(Needs(frozen_encoders="own"), False, False) | {"image"}
    tokenizer = train_tokenizer(["a thing"], 70, 4)
    stream = Stream(stamps, frozenset(wanted), 5, 12, augment, tokenizer, frozen_features=repeated, repeated=count)
    item, seen = np.arange(10), []
    for epoch in range(2 * count):
        batch = stream.here(Item(item, epoch))
        expected = Pixels()(batch["image"].numpy())
        found = batch["frozen_image_features"][:, 0].numpy()
        np.testing.assert_allclose(found, unit(expected), atol=1e-3)  # stored in half precision
        seen.append(batch["image"])
        other = replace(stream, seed=6).here(Item(item, epoch))["image"]
        assert torch.equal(other, batch["image"])
    for epoch in range(count):
        assert torch.equal(seen[epoch], seen[epoch + count])
        assert not torch.equal(seen[epoch], seen[(epoch + 1) % count])
    assert not torch.equal(replace(stream, repeated=None).here(Item(item, 0))["image"], seen[0])
