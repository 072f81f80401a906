"""Bootstrap intervals: the binomial's own quantiles, a plain resampling loop, and what must not move."""

import numpy as np
import pytest
from scipy import stats

from evaluation import bootstrap
from evaluation.bootstrap import interval


def test_of_hits_and_misses_it_is_the_binomial() -> None:
    """The mean of n draws with replacement from h hits in n is Binomial(n, h/n)/n: its quantiles are known."""
    hits = np.arange(400) < 130
    low, high = interval(hits, resamples=20000, seed=3)
    expected = stats.binom.ppf([0.025, 0.975], 400, 130 / 400) / 400
    assert [low, high] == pytest.approx(expected, abs=1.01 / 400)


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
    """Of two pictures a resample misses one half of the time; whatever is drawn is right."""
    assert interval(np.ones(2), np.array([0, 5])) == (1.0, 1.0)


def test_it_is_the_same_for_the_same_seed_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=300)
    groups = np.random.default_rng(2).integers(0, 7, 300)
    whole = interval(values, groups, seed=5)
    assert interval(values, groups, seed=5) == whole != interval(values, groups, seed=6)
    monkeypatch.setattr(bootstrap, "_AT_A_TIME", 1000)
    assert interval(values, groups, seed=5) == pytest.approx(whole)


@pytest.mark.parametrize("values", [np.array([]), np.array([1.0, np.nan])])
def test_no_items_or_nan_are_refused(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="at least one value and all of them finite"):
        interval(values)
