"""Intervals over items: Wilson's as scipy has it, plain resampling loops, coverage, and what must not move."""

import numpy as np
import pytest
from scipy import stats

from evaluation import bootstrap
from evaluation.bootstrap import interval


@pytest.mark.parametrize(("hits", "n"), [(0, 86), (86, 86), (1, 86), (130, 400), (0, 1), (1, 2)])
def test_of_hits_and_misses_it_is_wilsons(hits: int, n: int) -> None:
    """0 of 86 is no certainty: up to 4.3 % of all items may be hits."""
    found = interval(100.0 * np.random.default_rng(n).permutation(np.arange(n) < hits))
    expected = stats.binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert found == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-6)


@pytest.mark.parametrize("n", [10, 85, 1000])
@pytest.mark.parametrize("value", [0.0, 100.0])
def test_whatever_the_score_it_has_a_width_where_all_items_are_alike(value: float, n: int) -> None:
    """Means per class, clusters of captions, means of two directions: at the least Wilson's of as many items."""
    values, groups = np.full(n, value), np.arange(n) % 5
    counts = np.random.default_rng(n).integers(0, 6, n) + (np.arange(n) == 0)
    ends = stats.binomtest(round(value / 100 * n), n).proportion_ci(confidence_level=0.95, method="wilson")
    wilson = 100 * ends.low, 100 * ends.high
    assert interval(values, groups) == pytest.approx(wilson)
    assert interval(np.stack([values, values])) == pytest.approx(wilson)
    skewed = np.where(np.arange(n) < n // 2, 0, groups)  # one class has more images, each of which counts for less
    for low, high in (
        interval(values, skewed),
        interval(values, weights=counts),
        interval(np.stack([values] * 2), None, np.stack([groups * 0 + 1, counts])),
    ):
        assert low <= wilson[0] + 1e-9 and wilson[1] - 1e-9 <= high and low <= value <= high and high - low < 60
    low, high = interval(np.stack([values, 100 - values]))  # one way never, the other way always
    assert (low, high) == pytest.approx(((wilson[0] + 100 - wilson[1]) / 2, (wilson[1] + 100 - wilson[0]) / 2))


@pytest.mark.parametrize(("score", "n"), [(0.0, 20), (0.3, 86), (2.0, 86), (50.0, 86), (99.0, 86), (10.0, 400)])
def test_it_covers_the_true_share_as_often_as_it_says(score: float, n: int) -> None:
    """2,000 test sets: 95 %, but for the steps of a discrete distribution; the percentile bootstrap covers 0.3 % in a quarter."""
    random = np.random.default_rng(7)
    known = {hits: interval(100.0 * (np.arange(n) < hits)) for hits in range(n + 1)}
    drawn = [known[hits] for hits in random.binomial(n, score / 100, 2000)]
    assert np.mean([low - 1e-9 <= score <= high + 1e-9 for low, high in drawn]) > 0.92


def test_of_weighted_items_it_agrees_with_a_plain_loop_and_stays_a_percentage() -> None:
    """Images of one to five captions: drawn with all of theirs, every caption counting the same."""
    random = np.random.default_rng(1)
    counts = random.integers(1, 6, 60)
    captions = [100.0 * (random.random(count) < 0.3 + 0.4 * (i % 2)) for i, count in enumerate(counts)]
    found = []
    for _ in range(4000):
        found.append(np.concatenate([captions[i] for i in random.choice(60, size=60)]).mean())
    expected = np.quantile(found, [0.025, 0.975])
    shares = np.array([hits.mean() for hits in captions])
    assert interval(shares, weights=counts, resamples=4000) == pytest.approx(tuple(expected), abs=0.8)
    almost = np.where(np.arange(60) == 0, 50.0, 100.0)
    assert interval(almost, weights=counts)[1] <= 100


def test_over_groups_it_agrees_with_a_plain_loop() -> None:
    """One large group that is always found and a small one that hardly is: the score is 60, not 96."""
    random = np.random.default_rng(0)
    groups = np.array([0] * 180 + [3] * 20)
    values = 100.0 * np.concatenate([np.ones(180), np.arange(20) < 4])
    found = []
    for _ in range(4000):
        drawn = random.choice(200, size=200)
        found.append(np.mean([values[[i for i in drawn if groups[i] == g]].mean() for g in set(groups[drawn])]))
    expected = np.quantile(found, [0.025, 0.975])
    assert expected[1] - expected[0] > 15
    assert interval(values, groups, resamples=4000) == pytest.approx(tuple(expected), abs=0.8)
    low, high = interval(values, resamples=4000)
    assert low > 85 and high - low < 10


def test_a_group_that_a_resample_misses_does_not_count_as_zero() -> None:
    """Of three images a resample misses the one of a class most of the time; whatever is drawn of the other is half right."""
    low, _ = interval(np.array([100.0, 0.0, 100.0]), np.array([0, 0, 5]))
    assert low == 0.0 and interval(np.array([50.0, 50.0, 50.1]), np.array([0, 0, 5]))[0] == 50.0


def test_it_is_the_same_for_the_same_seed_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).uniform(0, 100, 300)
    groups = np.random.default_rng(2).integers(0, 7, 300)
    whole = interval(values, groups, seed=5)
    assert interval(values, groups, seed=5) == whole != interval(values, groups, seed=6)
    monkeypatch.setattr(bootstrap, "_MAX_INDICES", 1000)
    assert interval(values, groups, seed=5) == pytest.approx(whole)


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan]), np.array([50.0, 101.0]), np.array([-1.0])])
def test_no_items_or_what_is_no_percentage_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least one item, and percentages of all"):
        interval(values)
