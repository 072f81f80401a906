"""The order of samples: a permutation that is a function of (seed, epoch), the same whatever the number of workers."""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dataset.order import Order
from pipelines.dataset.prepared import FORMAT_VERSION, Prepared
from pipelines.dataset.shares import shares
from pipelines.io import storage
from tests.refusals import refused


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Order]:
    """An order over a dataset whose shards hold given numbers of rows, every `keep`-th of them or so in the train split."""

    def make(rows: list[int], keep: int = 1, weights: Sequence[float] = (), tables: bool = False, **keys: Any) -> Order:
        folder = tmp_path_factory.mktemp("shards")
        shards, first = [], 0
        for index, count in enumerate(rows):
            split = np.where(np.random.default_rng(index).integers(keep, size=count) == 0, "train", "test")
            ids = np.arange(first, first + count)
            first += count
            table = pa.table({"sample_id": ids, "group": [f"g{i}" for i in ids], "split": split})
            pq.write_table(table, folder / f"{index}.parquet")
            splits = {name: int((split == name).sum()) for name in ("train", "test")}
            weight = {"weight": weights[index]} if weights else {}
            shards.append({"file": f"{index}.parquet", "rows": count, "splits": splits} | weight)
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": f"{folder}",
            "tables": tables,
            "captions": {"shuffled": 0},
            "config": {"split_seed": 0},
            "split_shares": {"test": 0.5},
            "shards": shards,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return Order(Prepared.open(folder), "train", **({"split_seed": None, "seed": 0, "global_batch_size": 1} | keys))

    return make


def epoch_of(order: Order, epoch: int) -> np.ndarray:
    """The whole order of an epoch."""
    return order.take(epoch, np.arange(order.rows))


def small_window(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("pipelines.dataset.prepared._WINDOW", rows)


@pytest.mark.parametrize("window", [1, 7, 40, 1000])
@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("epoch", [0, 1])
def test_every_sample_once_and_the_same_in_pieces(
    dataset: Callable, monkeypatch: pytest.MonkeyPatch, window: int, keep: int, epoch: int
) -> None:
    small_window(monkeypatch, window)
    order = dataset([5, 1, 30, 12, 8, 9, 2, 17], keep, seed=window)
    whole = epoch_of(order, epoch)
    assert np.array_equal(np.sort(whole), order.ids) and len(whole) == order.rows
    if keep == 1:
        assert order.rows == 84
    # Asked for backwards, one by one: nothing depends on what was asked before.
    assert [int(order.take(epoch, np.asarray([i]))[0]) for i in reversed(range(order.rows))] == whole[::-1].tolist()


@pytest.mark.parametrize("window", [3, 20, 50])
def test_reading_stays_within_a_window_of_shards(dataset: Callable, monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    """Wherever all shards touched so far are used up, one may cut; between two cuts lies at most one window of rows.

    Shards join a window until it holds `window` rows, so it has fewer than `window` rows more than its largest shard.
    """
    small_window(monkeypatch, window)
    rows = [5, 1, 30, 12, 8, 9, 2, 17, 25, 25, 3]
    order = epoch_of(dataset(rows), 0)
    shard_of = np.searchsorted(np.cumsum([0, *rows]), order, side="right") - 1
    last = {int(shard): int(np.flatnonzero(shard_of == shard)[-1]) for shard in np.unique(shard_of)}
    begin, end, cuts = 0, -1, 0
    for position, shard in enumerate(shard_of):
        end = max(end, last[int(shard)])
        if position == end:
            assert position + 1 - begin < window + max(rows)
            begin, cuts = position + 1, cuts + 1
    assert cuts > 1


def test_tables_have_a_smaller_window(dataset: Callable) -> None:
    """Row groups of a window have to fit into memory: of 40,000 rows, neighbours in the order are of neighbouring shards."""
    rows = [1000] * 40
    apart = [np.ptp(epoch_of(dataset(rows, tables=tables), 0)[:2000]) for tables in (True, False)]
    spread = [len(np.unique(epoch_of(dataset(rows, tables=tables), 0)[:2000] // 1000)) for tables in (True, False)]
    assert spread[0] <= 3 and spread[1] == 40 and apart[1] > 39_000


def test_a_small_dataset_is_permuted_as_a_whole_however_it_is_cut(dataset: Callable) -> None:
    """Any place may hold any sample: over many epochs positions and samples are unrelated."""
    order = dataset([20, 20, 20])
    places = np.stack([np.argsort(epoch_of(order, epoch)) for epoch in range(200)])
    assert np.abs(places.mean(axis=0) - 29.5).max() < 5  # standard error 1.2
    assert len({tuple(row) for row in places}) == 200
    assert np.array_equal(epoch_of(dataset([60]), 3), epoch_of(dataset([11, 40, 9]), 3))


def test_epochs_and_seeds_have_orders_of_their_own(dataset: Callable) -> None:
    orders = {(s, e): tuple(epoch_of(dataset([50], seed=s), e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9


def test_weights_say_how_often_an_epoch_shows_a_pair(dataset: Callable) -> None:
    """Weights 1, 2, 0.25 and 1.5 on shards of 10, 10, 20 and 6: 10 + 20 + 5 + 9 rows in each epoch, exactly."""
    order = dataset([10, 10, 20, 6], weights=[1, 2, 0.25, 1.5])
    assert order.rows == 44 and order.ids.tolist() == list(range(46))
    seen = np.zeros(46, dtype=int)
    for epoch in range(40):
        counts = np.bincount(epoch_of(order, epoch), minlength=46)
        assert counts[:10].tolist() == [1] * 10 and counts[10:20].tolist() == [2] * 10
        assert counts[20:40].sum() == 5 and counts[20:40].max() == 1
        assert counts[40:].sum() == 9 and set(counts[40:]) == {1, 2}
        seen += counts
    assert seen[20:40].min() > 0 and seen[40:].min() >= 40  # other rows take their turn


def test_starting_late_reads_nothing_before(dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of an epoch of 50 shards opens the shards of its own window, and no other."""
    small_window(monkeypatch, 20)
    order = dataset([10] * 50, global_batch_size=10)
    opened: list[str] = []

    read = storage.read_table

    def spy(path: Any, *arguments: Any) -> Any:
        opened.append(str(path))
        return read(path, *arguments)

    monkeypatch.setattr(storage, "read_table", spy)
    order.batch(49)
    assert 1 <= len(set(opened)) <= 2


def test_a_task_finds_what_earlier_tasks_of_its_process_have_read(dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each task unpickles the order: the manifest and the shards of a window are read once, and no group to count a new split."""
    small_window(monkeypatch, 20)
    order = dataset([10] * 50, global_batch_size=10, split_seed=3)
    order.check()
    sent, expected = pickle.dumps(order), order.batch(2)
    assert len(sent) < 50 * 8 + 800, "eight bytes a shard, and not the manifest"
    read: list[str] = []
    for name in ("read", "read_table"):
        function = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda path, *rest, f=function: (read.append(str(path)), f(path, *rest))[1])
    for _ in range(3):
        assert np.array_equal(pickle.loads(sent).batch(2), expected)
    assert len(read) == len(set(read)) < 10


def test_a_dataset_that_was_prepared_anew_meanwhile_is_refused(dataset: Callable) -> None:
    order = dataset([10])
    sent, manifest = pickle.dumps(order), order.prepared.path / "manifest.json"
    manifest.write_text(json.dumps(order.prepared.manifest | {"fingerprint": "another"}))
    with refused("data.path", order.prepared.path, "another"):
        pickle.loads(sent)


def test_stand_ins_are_of_other_batches_and_differ_within_one(dataset: Callable) -> None:
    order = dataset([40, 27], global_batch_size=8)
    for step in (0, 5, order.steps_per_epoch + 2):
        whole = order.batch(step)
        first = [next(order.spares(step, rank, 2, row)) for rank in range(2) for row in range(4)]
        assert len(set(first)) == 8 and not set(first) & set(whole.tolist())
        # The same whoever asks: one worker of one, or one of two.
        assert first == [next(order.spares(step, 0, 1, row)) for row in range(8)]
    everything = list(order.spares(0, 0, 1, 3))
    own = int(order.batch(0)[3])
    assert own not in everything and len(everything) == len(set(everything)) == order.steps_per_epoch - 1 + 7


@pytest.fixture
def order(stamps: Prepared) -> Order:
    return Order(stamps, "train", None, seed=3, global_batch_size=8)


@pytest.mark.parametrize("workers", range(1, 9))
def test_workers_parts_make_up_the_global_batch(order: Order, workers: int) -> None:
    """Whether or not their number divides it: sizes differ by at most one, as numpy cuts an array."""
    for step in range(2 * order.steps_per_epoch + 1):
        parts = [order.batch(step, rank, workers) for rank in range(workers)]
        expected = np.array_split(order.batch(step), workers)
        assert all(np.array_equal(part, other) for part, other in zip(parts, expected, strict=True))
        spares = [next(order.spares(step, rank, workers, row)) for rank, part in enumerate(parts) for row in range(len(part))]
        assert spares == [next(order.spares(step, 0, 1, row)) for row in range(8)]


def test_nobody_is_left_without_a_row() -> None:
    with pytest.raises(ValueError, match="3 rows cannot be shared by 4"):
        shares(3, 4)


def test_an_epoch_shows_no_sample_twice_and_other_samples_are_left_over_each_time(order: Order, stamps: Prepared) -> None:
    train = stamps.split_ids()["train"]
    assert np.array_equal(order.ids, train)
    steps = order.steps_per_epoch
    assert steps == len(train) // 8
    seen = []
    for epoch in range(8):
        assert [order.epoch_of(epoch * steps + i) for i in (0, steps - 1)] == [epoch, epoch]
        ids = np.concatenate([order.batch(epoch * steps + i) for i in range(steps)])
        assert len(np.unique(ids)) == len(ids) == steps * 8 and np.isin(ids, train).all()
        seen.append(frozenset(ids.tolist()))
    if len(train) % 8:
        assert len(set(seen)) > 1
    assert frozenset.union(*seen) == frozenset(train.tolist())


def test_the_batch_size_only_cuts_the_order(order: Order) -> None:
    """Half the batch size, the same order: what a larger batch holds, two smaller ones hold."""
    half = replace(order, global_batch_size=4)
    assert np.array_equal(np.concatenate([half.batch(0), half.batch(1)]), order.batch(0))


def test_another_split_seed_trains_on_other_samples(order: Order, stamps: Prepared) -> None:
    other = replace(order, split_seed=5)
    assert np.array_equal(other.ids, stamps.split_ids(5)["train"]) and not np.array_equal(other.ids, order.ids)


def test_a_split_smaller_than_the_batch_is_refused_with_the_way_out(order: Order) -> None:
    samples = len(order.ids)
    replace(order, global_batch_size=samples).check()
    with refused("global_batch_size", samples + 1, samples, "'train'", remedy=f"global_batch_size={samples}"):
        replace(order, global_batch_size=samples + 1).check()


def test_a_smaller_share_is_a_part_of_a_larger_one(stamps: Prepared, order: Order) -> None:
    """Of one seed; another seed draws another part. Groups stay whole, and what is held out has no part in it."""
    table = stamps.table("group")["group"].to_pylist()
    for seed in range(5):
        parts = [set(replace(order, seed=seed, fraction=share).ids.tolist()) for share in (0.2, 0.5, 0.8, 1.0)]
        assert all(small <= large for small, large in pairwise(parts)) and len(parts[0]) < len(parts[-1])
        assert parts[-1] == set(stamps.split_ids()["train"].tolist())
        for part in parts:
            groups = {table[i] for i in part}
            assert part == {i for i in parts[-1] if table[i] in groups}
    draws = {frozenset(replace(order, seed=seed, fraction=0.5).ids.tolist()) for seed in range(5)}
    assert len(draws) == 5


def test_a_share_is_about_as_large_as_it_says(dataset: Callable[..., Order]) -> None:
    """Of 2,000 groups: four standard deviations of a binomial are 4.5 %."""
    for share in (0.1, 0.5, 0.9):
        for seed in range(3):
            assert abs(dataset([1200, 800], seed=seed, fraction=share).rows / 2000 - share) < 0.045


def test_an_epoch_of_a_share_shows_each_of_its_samples_once(
    dataset: Callable[..., Order], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the data lies in shards: who is in it is a function of the group and the seed."""
    small_window(monkeypatch, 40)
    few = dataset([30, 50, 20], fraction=0.5)
    assert few.steps_per_epoch == few.rows == len(few.ids) < 70
    for epoch in range(2):
        assert np.array_equal(np.sort(epoch_of(few, epoch)), few.ids)
    assert np.array_equal(dataset([100], fraction=0.5).ids, few.ids)


def test_the_whole_share_changes_nothing(dataset: Callable[..., Order]) -> None:
    plain, whole = dataset([30, 50], keep=2), dataset([30, 50], keep=2, fraction=1.0)
    assert np.array_equal(epoch_of(plain, 1), epoch_of(whole, 1))


def test_a_share_too_small_for_a_batch_is_refused_with_the_way_out(order: Order) -> None:
    few = replace(order, fraction=0.2)
    rows = few.rows
    assert 0 < rows < 20
    with refused("data.fraction", 0.2, rows, "'train'", "seed=3", f"global_batch_size={rows + 1}", remedy="data.fraction"):
        replace(few, global_batch_size=rows + 1).check()
