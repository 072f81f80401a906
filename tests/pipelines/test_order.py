"""The order of samples: a permutation that is a function of (seed, epoch), the same whatever the number of workers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.order import Order, epoch_order
from pipelines.prepared import Prepared
from pipelines.settings import UserError


def layout(rows: list[int], keep: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted ids of a split that holds every `keep`-th sample or so, and the starts of the shards."""
    starts = np.cumsum([0, *rows])
    ids = np.flatnonzero(np.random.default_rng(seed).integers(keep, size=starts[-1]) == 0)
    return ids, starts


layouts = st.builds(layout, st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 5))


@settings(max_examples=80, deadline=None)
@given(layouts, st.integers(0, 3), st.integers(0, 3), st.integers(1, 100))
def test_every_sample_once_and_the_same_again(found: tuple, seed: int, epoch: int, window: int) -> None:
    ids, starts = found
    order = epoch_order(ids, starts, seed, epoch, window)
    assert np.array_equal(np.sort(order), ids)
    assert np.array_equal(order, epoch_order(ids, starts, seed, epoch, window))


@settings(max_examples=80, deadline=None)
@given(layouts, st.integers(0, 3), st.integers(1, 60))
def test_reading_stays_within_a_window_of_shards(found: tuple, seed: int, window: int) -> None:
    """Wherever all shards touched so far are used up, one may cut; between two cuts lies at most one window of rows.

    Shards join a window until it holds `window` rows, so it has fewer than `window` rows more than its largest shard.
    """
    ids, starts = found
    order = epoch_order(ids, starts, seed, 0, window)
    shard_of = np.searchsorted(starts, order, side="right") - 1
    last = {int(shard): int(np.flatnonzero(shard_of == shard)[-1]) for shard in np.unique(shard_of)}
    begin, end = 0, -1
    for position, shard in enumerate(shard_of):
        end = max(end, last[int(shard)])
        if position == end:
            assert position + 1 - begin < window + max(np.bincount(shard_of))
            begin = position + 1


def test_a_small_dataset_is_permuted_as_a_whole() -> None:
    """Any place may hold any sample: over many epochs positions and samples are unrelated."""
    ids, starts = np.arange(60), np.array([0, 20, 40, 60])
    places = np.stack([np.argsort(epoch_order(ids, starts, 0, epoch)) for epoch in range(200)])
    assert np.abs(places.mean(axis=0) - 29.5).max() < 5  # standard error 1.2
    assert len({tuple(row) for row in places}) == 200


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    ids, starts = np.arange(50), np.array([0, 50])
    orders = {(s, e): tuple(epoch_order(ids, starts, s, e)) for s in range(3) for e in range(3)}
    assert len(set(orders.values())) == 9


@pytest.fixture
def order(stamps: Prepared) -> Order:
    return Order(str(stamps.path), stamps.fingerprint, "train", None, seed=3, global_batch_size=8)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_parts_make_up_the_global_batch(order: Order, workers: int) -> None:
    for step in range(2 * order.steps_per_epoch + 1):
        parts = [order.batch(step, rank, workers) for rank in range(workers)]
        assert {len(part) for part in parts} == {8 // workers}
        assert np.array_equal(np.concatenate(parts), order.batch(step))


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
    with pytest.raises(UserError) as caught:
        replace(order, global_batch_size=samples + 1).check()
    message = str(caught.value)
    assert message.startswith(f"global_batch_size: {samples + 1} is more than the {samples} samples of split 'train'")
    assert f"global_batch_size={samples} or less" in message
