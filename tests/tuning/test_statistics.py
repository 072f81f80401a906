"""What is said of a sweep, on tables made by hand: numbers worked on paper, by naive code, or by scipy's own paired t-test."""

import itertools
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student_t
from scipy.stats import ttest_rel

from tuning.statistics import ALPHA, average, best_points, bootstrap_interval, compare, holm, pareto, results, summarize, verdict

TOP1, RECALL = "zero_shot/squares/top1", "retrieval/squares/image_to_text_recall@1"
COLUMNS = ["trial", "cell", "phase", "point", "seed", "status", "score", "seconds", TOP1, RECALL]


def row(cell: str, seed: int, score: float, phase: str = "final", point: int = 0, **other: Any) -> dict[str, Any]:
    named = {"trial": f"{cell}-p{point}-seed{seed}", "cell": cell, "phase": phase, "point": point, "seed": seed, "score": score}
    return named | {"status": "finished", "seconds": 10.0, TOP1: score, RECALL: score} | other


def search(cell: str, point: int, score: float, **other: Any) -> dict[str, Any]:
    return row(cell, 0, score, "search", point, **other)


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=COLUMNS)


def finals(scores: dict[str, Sequence[float]]) -> pd.DataFrame:
    """Final rows of cells that were not searched, seeds 0, 1, ...; NaN is a seed that was not run."""
    return table(*(row(c, seed, s) for c, run in scores.items() for seed, s in enumerate(run) if not math.isnan(s)))


def pair(compared: pd.DataFrame, *cells: str) -> pd.Series:
    found = compared[[{better, worse} == set(cells) for better, worse in zip(compared["better"], compared["worse"], strict=True)]]
    assert len(found) == 1
    return found.iloc[0]


def student(t: float, n: int) -> float:
    """Two-sided p in closed form, which there is for 1 and 2 degrees of freedom."""
    return 1 - 2 / math.pi * math.atan(t) if n == 2 else 1 - t / math.sqrt(t * t + 2)


def student_4(t: float) -> float:
    """The same for 4 degrees of freedom: 1 - sin x (1 + cos^2 x / 2), tan x = t / 2."""
    angle = math.atan(t / 2)
    return 1 - math.sin(angle) * (1 + math.cos(angle) ** 2 / 2)


# --- the average, and which rows count ---


def test_average_is_the_plain_mean_of_each_row_and_never_the_number_that_was_written_down() -> None:
    trials = table(row("a", 0, 99.0, **{TOP1: 1.0, RECALL: 4.0}), row("a", 1, 99.0, **{TOP1: math.nan, RECALL: 4.0}))
    trials.index = pd.Index([7, 3])
    found = average(trials, [TOP1, RECALL])
    assert found[7] == 2.5 and math.isnan(found[3])
    assert list(average(trials, [RECALL])) == [4.0, 4.0]
    assert average(trials, [TOP1, "never/measured"]).isna().all()


def test_the_best_point_is_the_one_that_validation_liked_whatever_the_test_split_says() -> None:
    trials = table(
        search("a", 0, 50.0),
        search("a", 1, 60.0),
        search("a", 2, 55.0),
        row("a", 0, 40.0, point=1),
        row("a", 0, 99.0, point=2),  # as if an earlier session had tried another point
    )
    assert best_points(trials) == {"a": 1}
    assert best_points(trials, "min") == {"a": 0}
    assert results(trials)["score"].tolist() == [40.0]
    only = summarize(trials, ["a"], [TOP1]).set_index("metric").loc["score"]
    assert (only["point"], only["n"], only["mean"]) == (1, 1, 40.0)


def test_of_equally_good_points_the_lowest_is_best_even_where_rounding_sees_a_difference() -> None:
    sums = [(0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)]
    assert sums[0] != sums[1]
    assert best_points(table(search("a", 2, 60.0), search("a", 1, 60.0), search("a", 3, 60.0))) == {"a": 1}
    assert best_points(table(search("a", 2, max(sums)), search("a", 1, min(sums)))) == {"a": 1}
    assert best_points(table(search("a", 2, min(sums)), search("a", 1, max(sums))), "min") == {"a": 1}


@pytest.mark.parametrize("status", ["failed", "stopped", "running"])
def test_only_what_finished_counts(status: str) -> None:
    trials = table(
        search("a", 0, 50.0),
        search("a", 1, 90.0, status=status),
        row("a", 0, 10.0),
        row("a", 1, 12.0),
        row("a", 2, 90.0, status=status),
        search("b", 0, 90.0, status=status),
        row("b", 0, 90.0),  # cannot be: no point of b was found
    )
    assert best_points(trials) == {"a": 0}
    assert results(trials)["score"].tolist() == [10.0, 12.0]
    summary = summarize(trials, ["a", "b"], [TOP1]).set_index(["cell", "metric"])
    assert summary.loc[("a", TOP1), ["n", "mean", "point"]].tolist() == [2, 11.0, 0]
    assert summary.loc[("b", TOP1), "n"] == 0 and math.isnan(summary.loc[("b", TOP1), "point"])
    assert verdict(trials).leader == "a" and len(compare(trials)) == 0


def test_a_search_trial_without_a_score_is_not_best() -> None:
    trials = table(search("a", 0, math.nan), search("a", 1, 1.0), search("a", 2, math.inf), search("b", 0, math.nan))
    assert best_points(trials) == best_points(trials, "min") == {"a": 1}


def test_cells_that_were_not_searched_have_the_point_of_their_final_trials() -> None:
    trials = table(row("a", 0, 1.0), row("b", 0, 2.0, status="failed"), search("c", 4, 9.0))
    assert best_points(trials) == {"a": 0, "b": 0, "c": 4}
    assert results(trials)["cell"].tolist() == ["a"]


# --- means and intervals ---


def test_summary_of_a_table_worked_by_hand() -> None:
    trials = table(
        search("a", 0, 50.0, seconds=3.0),
        search("a", 1, 40.0, seconds=4.0, status="stopped"),
        search("a", 2, math.nan, seconds=math.nan, status="failed"),
        row("a", 0, 10.0, seconds=10.0, **{TOP1: 1.0}),
        row("a", 1, 13.0, seconds=20.0, **{TOP1: 2.0}),
        row("a", 2, 13.0, seconds=60.0, **{TOP1: math.nan}),
        row("a", 3, 77.0, seconds=5.0, status="failed"),
        row("b", 0, 15.0, seconds=7.0, **{TOP1: 8.0}),
    )
    summary = summarize(trials, ["b", "missing", "a"], [TOP1, RECALL])
    names = "cell point metric n mean sd low high rank seconds total_seconds"
    assert " ".join(summary.columns) == names
    assert summary["cell"].tolist() == ["b"] * 3 + ["missing"] * 3 + ["a"] * 3
    assert summary["metric"].tolist() == ["score", TOP1, RECALL] * 3
    by = summary.set_index(["cell", "metric"])
    numbers = ["point", "n", "mean", "sd", "low", "high", "rank", "seconds", "total_seconds"]
    # sd: deviations -2, 1, 1 from 12, squares 6, over n - 1 = 2. Total: 3 + 4 + 10 + 20 + 60 + 5.
    assert by.loc[("a", "score"), numbers].tolist() == pytest.approx([0, 3, 12, math.sqrt(3), 10, 13, 2, 30, 102])
    assert by.loc[("a", TOP1), numbers].tolist() == pytest.approx([0, 2, 1.5, math.sqrt(0.5), 1, 2, 2, 30, 102])
    nan = math.nan
    assert by.loc[("b", TOP1), numbers].tolist() == pytest.approx([0, 1, 8, nan, nan, nan, 1, 7, 7], nan_ok=True)
    for metric in ("score", TOP1, RECALL):
        assert by.loc[("missing", metric), numbers].tolist() == pytest.approx([nan, 0, *[nan] * 6, 0], nan_ok=True)


def test_a_metric_that_no_trial_has_been_judged_on_yet_has_no_results() -> None:
    summary = summarize(finals({"a": [1.0, 2.0]}), ["a"], ["never/measured"])
    assert summary["n"].tolist() == [2, 0] and summary["rank"].tolist() == [1, 1]
    assert summary[["mean", "sd", "low", "high"]].isna().all(axis=1).tolist() == [False, True]
    assert len(compare(finals({"a": [1.0], "b": [2.0]}), "never/measured")) == 0


def test_a_score_of_one_metric_is_not_shown_twice() -> None:
    assert summarize(finals({"a": [1.0]}), ["a"], ["score", TOP1])["metric"].tolist() == ["score", TOP1]


@pytest.mark.parametrize(("mode", "expected"), [("max", [3, 1, 1, 4, math.nan]), ("min", [2, 3, 3, 1, math.nan])])
def test_equal_means_share_the_lowest_rank(mode: str, expected: list[float]) -> None:
    """b and c hit equally often, spread otherwise over their seeds: 0.1 + 0.2 is not 0.3 in floats."""
    trials = finals({"a": [0.1, 0.1], "b": [0.1, 0.2], "c": [0.3, 0.0], "d": [0.0, 0.1]})
    assert np.mean([0.1, 0.2]) != np.mean([0.3, 0.0])
    ranks = summarize(trials, [*"abcd", "nothing"], [], mode)["rank"]
    assert ranks.tolist() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("values", [[3.0, 1.0], [1.0, 2.0, 4.0], [9.0, 1.5, 2.0, 2.0, 7.25], [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
@pytest.mark.parametrize("level", [0.95, 0.8, 0.5])
def test_bootstrap_interval_is_exact_for_few_values(values: list[float], level: float) -> None:
    """Against all n^n resamples, written out: the interval leaves (1 - level)/2 of them below, and as many above."""
    means = sorted(sum(draw) / len(values) for draw in itertools.product(values, repeat=len(values)))
    place = math.ceil(round((1 - level) / 2 * len(means), 6)) - 1
    assert bootstrap_interval(values, level) == pytest.approx((means[place], means[-1 - place]), abs=1e-12)


def test_bootstrap_interval_of_two_or_three_values_is_their_range() -> None:
    """1 of 4 and 1 of 27 resamples repeat the smallest value, which is more than 2.5 %; of four values it is 1 in 256."""
    assert bootstrap_interval([4.0, 2.0]) == (2.0, 4.0)
    assert bootstrap_interval([4.0, 2.0, 9.0]) == (2.0, 9.0)
    low, high = bootstrap_interval([4.0, 2.0, 9.0, 5.0])
    assert 2.0 < low < 5.0 < high < 9.0


def test_one_value_has_no_interval_and_missing_ones_are_no_values() -> None:
    for values in ([], [5.0], [5.0, math.nan], [5.0, math.inf]):
        assert all(math.isnan(end) for end in bootstrap_interval(values))
    assert bootstrap_interval([5.0, math.nan, 6.0]) == (5.0, 6.0)


@pytest.mark.parametrize("n", [2, 3, 6, 12])
def test_equal_values_have_no_interval(n: int) -> None:
    """Two seeds without a hit do not prove that there never is one."""
    assert all(math.isnan(end) for end in bootstrap_interval([0.1] * n))
    only = summarize(finals({"a": [0.1] * n}), ["a"], []).iloc[0]
    assert (only["mean"], only["sd"]) == (0.1, 0.0) and math.isnan(only["low"]) and math.isnan(only["high"])


def test_many_values_are_resampled_at_random_but_always_alike() -> None:
    values = np.random.default_rng(5).normal(50, 4, 60)
    low, high = bootstrap_interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(60)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    np.random.default_rng().shuffle(values)
    for n in range(20, 30):  # nothing that is remembered of 60 outlives these
        bootstrap_interval([float(value) for value in range(n)])
    assert bootstrap_interval(values.tolist()) == (low, high)
    # A resample of seven is no longer one of 7^7; the interval hardly notices.
    seven = [1.0, 2.0, 4.0, 4.5, 6.0, 7.0, 9.0]
    exact = np.percentile(reduce(np.add.outer, [seven] * 7) / 7, [2.5, 97.5])
    assert bootstrap_interval(seven) == pytest.approx(exact, abs=0.15)


# --- pairs ---


def test_paired_t_test_worked_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3). Of two seeds, 1 and 4: mean 2.5, sd 1.5 sqrt(2), t = 5/3."""
    three = pair(compare(finals({"b": [9.0, 10.0, 11.0], "a": [10.0, 12.0, 14.0]})), "a", "b")
    assert (three["better"], three["worse"], three["n"]) == ("a", "b", 3)
    assert (three["difference"], three["sd"]) == pytest.approx((2, 1))
    assert three["p"] == pytest.approx(student(2 * math.sqrt(3), 3)) == pytest.approx(0.0741799)
    assert three["p_adjusted"] == three["p"] and not three["distinguishable"]
    two = pair(compare(finals({"a": [10.0, 14.0], "b": [9.0, 10.0]})), "a", "b")
    assert two[["difference", "sd", "p"]].tolist() == pytest.approx([2.5, 1.5 * math.sqrt(2), student(5 / 3, 2)])


def residual_variance(cells: dict[str, dict[int, float]]) -> tuple[float, int]:
    """Of the two-way layout cells x seeds, by least squares on dummies; and its degrees of freedom, from the rank."""
    names, seeds = list(cells), sorted({seed for values in cells.values() for seed in values})
    rows, values = [], []
    for name, of_seed in cells.items():
        for seed, value in of_seed.items():
            rows.append([float(name == other) for other in names] + [float(seed == other) for other in seeds])
            values.append(value)
    solution, _, rank, _ = np.linalg.lstsq(np.array(rows), np.array(values))
    residuals = np.array(values) - np.array(rows) @ solution
    return float(residuals @ residuals) / (len(values) - int(rank)), len(values) - int(rank)


def test_p_values_are_of_the_spread_of_all_pairs_and_are_corrected_for_their_number() -> None:
    """Three quiet cells and a noisy one, whose pairs are judged by their own spread. The reference is an analysis of variance."""
    rng = np.random.default_rng(3)
    levels = zip("abcd", (40, 43, 41, 36), (0.5, 0.5, 0.5, 3.0), strict=True)
    cells = {name: (level + rng.normal(0, noise, 5)).tolist() for name, level, noise in levels}
    compared = compare(finals(cells))
    variance, freedom = residual_variance({name: dict(enumerate(values)) for name, values in cells.items()})
    assert len(compared) == 6 and freedom == 12
    own = 0
    for _, found in compared.iterrows():
        better, worse = cells[found["better"]], cells[found["worse"]]
        assert np.mean(better) >= np.mean(worse)
        assert found["p_alone"] == pytest.approx(ttest_rel(better, worse).pvalue)
        assert found["sd"] == pytest.approx(np.std(np.subtract(better, worse), ddof=1))
        spread = max(found["sd"], math.sqrt(2 * variance))
        own += spread == found["sd"]
        t_value = (np.mean(better) - np.mean(worse)) / (spread / math.sqrt(5))
        assert found["p"] == pytest.approx(2 * student_t(freedom).sf(t_value))
        assert found["distinguishable"] == (found["p_adjusted"] < ALPHA)
    assert own == 3, "the pairs of the noisy cell"
    assert compared["p_adjusted"].tolist() == holm(compared["p"].tolist())
    assert 0 < compared["distinguishable"].sum() < 6


def test_two_cells_are_compared_by_the_paired_t_test() -> None:
    (found,) = compare(finals({"a": [3.0, 4.0, 5.5], "b": [1.0, 2.1, 2.9]})).to_dict("records")
    expected = ttest_rel([3.0, 4.0, 5.5], [1.0, 2.1, 2.9]).pvalue
    assert found["p"] == pytest.approx(expected) and found["p_alone"] == pytest.approx(found["p"]) == found["p_adjusted"]


def test_degrees_of_freedom_with_missing_seeds_are_those_of_the_layout() -> None:
    """d has one seed only, e one that nobody shares: they say nothing about the spread."""
    cells = {"a": {0: 1.0, 1: 2.5, 2: 3.0}, "b": {0: 2.0, 1: 2.0, 2: 4.5}, "c": {0: 3.0, 1: 4.0}, "d": {0: 5.0}, "e": {9: 1.0}}
    rows = [row(name, seed, value) for name, values in cells.items() for seed, value in values.items()]
    compared = compare(table(*rows))
    _, freedom = residual_variance(cells)
    assert freedom == 3
    shared = compared[compared["n"] > 1]
    pooled = math.sqrt(np.average(shared["sd"] ** 2, weights=shared["n"] - 1))
    for _, found in shared.iterrows():
        t_value = found["difference"] / max(found["sd"], pooled) * math.sqrt(found["n"])
        assert found["p"] == pytest.approx(2 * student_t(freedom).sf(t_value))
    assert compared[compared["n"] < 2]["p"].isna().all() and len(shared) == 3


def test_equal_cells_are_rarely_called_different() -> None:
    """What a level of 5 % over all pairs promises, with cells of equal and of very unequal spread."""
    rng = np.random.default_rng(0)
    for noises in ([1.0] * 6, [0.1, 0.1, 0.1, 1.0, 1.0, 1.0]):
        wrong = 0
        for _ in range(200):
            common = rng.normal(size=3)
            cells = {name: (50 + common + rng.normal(0, s, 3)).tolist() for name, s in zip("abcdef", noises, strict=True)}
            wrong += bool(compare(finals(cells))["distinguishable"].any())
        assert wrong <= 0.08 * 200


def test_another_column_is_compared_by_the_points_that_the_score_chose() -> None:
    a = [row("a", seed, 50.0, **{TOP1: top1}) for seed, top1 in enumerate([1.0, 2.0])]
    b = [row("b", seed, 10.0, **{TOP1: top1}) for seed, top1 in enumerate([4.0, 7.0])]
    found = pair(compare(table(*a, *b), TOP1), "a", "b")
    assert (found["better"], found["difference"]) == ("b", 4.0)


def test_the_lower_is_better_where_the_mode_says_so() -> None:
    trials = finals({"a": [3.0, 4.0, 5.0], "b": [1.0, 2.1, 2.9]})
    found = pair(compare(trials, mode="min"), "a", "b")
    assert (found["better"], found["worse"]) == ("b", "a") and found["difference"] == pytest.approx(2)
    assert found["p"] == pytest.approx(ttest_rel([3.0, 4.0, 5.0], [1.0, 2.1, 2.9]).pvalue)
    said = verdict(trials, "min")
    assert said.leader == "b" and said.value == 2.0 and said.ahead_of == ["a"]


def test_only_seeds_that_both_have_are_paired() -> None:
    trials = finals({"a": [10.0, math.nan, 13.0, 90.0], "b": [9.0, 50.0, 11.0, math.nan]})
    found = pair(compare(trials), "a", "b")
    assert (found["better"], found["n"], found["difference"]) == ("a", 2, 1.5)
    assert found["p"] == pytest.approx(ttest_rel([10, 13], [9, 11]).pvalue)
    failed = trials.copy()
    failed.loc[(failed["cell"] == "a") & (failed["seed"] == 0), "status"] = "failed"
    assert pair(compare(failed), "a", "b")["n"] == 1
    apart = pair(compare(finals({"a": [10.0, math.nan], "b": [math.nan, 20.0]})), "a", "b")
    assert (apart["better"], apart["n"]) == ("b", 0)
    assert apart[["difference", "sd", "p", "p_adjusted"]].isna().all() and not apart["distinguishable"]


def test_who_is_better_is_judged_on_shared_seeds() -> None:
    """One lucky seed that only a ran makes its mean the best; b was better whenever both ran, so a is not ahead of it."""
    trials = finals({"a": [10.0, 11.0, 12.0, 90.0], "b": [20.0, 21.1, 22.2, math.nan]})
    found = pair(compare(trials), "a", "b")
    assert (found["better"], found["n"], found["distinguishable"]) == ("b", 3, True)
    assert found["difference"] == pytest.approx(10.1)
    said = verdict(trials)
    assert (said.leader, said.level_with, said.ahead_of) == ("a", ["b"], [])


@pytest.mark.parametrize("shift", [0.0, 0.1, 5.0])
def test_differences_without_spread_are_no_evidence(shift: float) -> None:
    """Also where rounding leaves them a spread of 1e-15, with which t would be astronomic."""
    a = [10.3, 20.7, 31.1]
    found = pair(compare(finals({"a": [value + shift for value in a], "b": a})), "a", "b")
    assert found["difference"] == pytest.approx(shift) and found["sd"] == 0
    assert math.isnan(found["p"]) and math.isnan(found["p_adjusted"]) and not found["distinguishable"]
    assert (found["better"], found["worse"]) == ("a", "b")


def test_pairs_that_could_not_be_tested_do_not_make_the_others_pay() -> None:
    """c shares no seed with a and b, so one comparison was made, and its p stays as it is."""
    nan = math.nan
    compared = compare(finals({"a": [3.0, 5.0, 7.0, nan], "b": [2.0, 4.1, 6.1, nan], "c": [nan, nan, nan, 9.0]}))
    assert compared["p"].notna().sum() == 1
    only = pair(compared, "a", "b")
    assert only["p_adjusted"] == only["p"] and only["distinguishable"]


# --- Holm ---


def test_holm_on_a_textbook_example() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; the last may not be below the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, math.nan, 0.04, 0.03, math.nan, 0.005]) == pytest.approx(
        [0.03, math.nan, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert holm([0.6, 0.7, 0.9]) == [1.0, 1.0, 1.0]
    assert holm([]) == [] and holm([0.2]) == [0.2] and math.isnan(holm([math.nan])[0])


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.001, 0.01, 0.02, math.nan])), max_size=12))
def test_holm_agrees_with_its_definition(p: list[float]) -> None:
    """Rejecting what is below a level after the adjustment is Holm's procedure: stop at the first that fails."""
    adjusted = holm(p)
    tested = sorted(i for i, value in enumerate(p) if not math.isnan(value))
    assert [i for i, value in enumerate(adjusted) if not math.isnan(value)] == tested
    for i in tested:
        below = [p[j] for j in tested if p[j] <= p[i]]
        assert adjusted[i] == max(min(1.0, value * sum(p[k] >= value for k in tested)) for value in below)
        assert p[i] <= adjusted[i] <= 1
    for level in (0.05, 0.5):
        rejected: set[int] = set()
        for step, i in enumerate(sorted(tested, key=lambda i: p[i])):
            if p[i] * (len(tested) - step) >= level:
                break
            rejected.add(i)
        assert rejected == {i for i in tested if adjusted[i] < level}


# --- the verdict ---


def test_verdict_worked_by_hand() -> None:
    """Differences a-b 1, -0.5, 1.5; a-c 20, 19.5, 19.5; b-c 19, 20, 18: squared sds 13/12, 1/12 and 1.

    Their mean, 13/18, is the pooled one, which is larger than a-c's own; the median spread is then b-c's, 1. Degrees of freedom:
    (3 - 1)(3 - 1) = 4.
    """
    trials = finals({"c": [10.0, 11.5, 12.5], "b": [29.0, 31.5, 30.5], "a": [30.0, 31.0, 32.0]})
    said = verdict(trials)
    assert (said.leader, said.value, said.n) == ("a", 31.0, 3)
    assert (said.level_with, said.ahead_of, said.comparisons) == (["b"], ["c"], 3)
    assert said.resolution is not None and student_4(said.resolution * math.sqrt(3)) == pytest.approx(0.05 / 3)
    p = [student_4(59 / 3 / math.sqrt(13 / 54)), student_4(19 * math.sqrt(3)), student_4(2 / 3 / math.sqrt(13 / 36))]
    compared = compare(trials)
    found = [pair(compared, *cells)["p_adjusted"] for cells in ("ac", "bc", "ab")]
    assert found == pytest.approx([3 * p[0], 2 * p[1], p[2]])


def test_the_resolution_is_where_a_difference_begins_to_count() -> None:
    """With one comparison: a difference just above it is distinguishable, one just below is not."""
    noise = np.array([0.3, -0.5, 0.2])
    needed = verdict(finals({"a": (60 + noise).tolist(), "b": [50.0] * 3})).resolution
    assert needed is not None
    for factor, clear in ((1.01, ["b"]), (0.99, [])):
        assert verdict(finals({"a": (50 + factor * needed + noise).tolist(), "b": [50.0] * 3})).ahead_of == clear


def test_what_another_cell_is_ahead_of_the_leader_need_not_be() -> None:
    """a leads with seeds that lie apart, so that it is judged by its own spread, while b is clearly better than c.

    By itself a would seem to be better than c too; of six comparisons it is not.
    """
    trials = finals({"a": [20.0, 31.0, 42.0], "b": [30.0, 31.1, 29.0], "c": [10.0, 11.0, 9.3], "d": [29.5, 30.0, 29.8]})
    said = verdict(trials)
    compared = compare(trials)
    assert (said.leader, said.level_with, said.ahead_of) == ("a", ["b", "d", "c"], [])
    leading = pair(compared, "a", "c")
    assert leading["p"] < ALPHA < leading["p_adjusted"] and not leading["distinguishable"]
    assert pair(compared, "b", "c")["distinguishable"]


def test_cells_stand_best_first_and_equal_ones_by_name() -> None:
    trials = finals({"d": [1.0, 5.2], "e": [3.0, 3.2], "c": [3.3, 3.2], "a": [3.2, 3.3], "b": [3.0, 3.0]})
    said = verdict(trials)
    assert (said.leader, said.level_with) == ("a", ["c", "d", "e", "b"])
    assert np.mean([0.1, 0.2]) > np.mean([0.3, 0.0])
    assert verdict(finals({"b": [0.1, 0.2], "a": [0.3, 0.0]})).leader == "a"
    tie = pair(compare(trials), "a", "c")
    assert (tie["better"], tie["worse"]) == ("a", "c") and tie["difference"] == pytest.approx(0, abs=1e-12)


def test_one_cell_leads_without_comparison() -> None:
    said = verdict(finals({"all": [3.0, 4.0]}))
    assert (said.leader, said.value, said.n, said.level_with, said.ahead_of) == ("all", 3.5, 2, [], [])
    assert (said.comparisons, said.resolution) == (0, None)
    assert summarize(finals({"all": [3.0, 4.0]}), ["all"], [])["rank"].tolist() == [1]


@pytest.mark.parametrize(
    "trials", [pd.DataFrame(), table(), table(search("a", 0, 5.0)), table(row("a", 0, 5.0, status="failed"))]
)
def test_without_results_nothing_is_claimed(trials: pd.DataFrame) -> None:
    said = verdict(trials)
    assert (said.leader, said.n, said.level_with, said.ahead_of) == (None, 0, [], []) and math.isnan(said.value)
    assert (said.comparisons, said.resolution) == (0, None)
    summary = summarize(trials, ["a", "b"], [TOP1])
    assert summary["n"].tolist() == [0] * 4
    assert summary[["mean", "sd", "low", "high", "rank", "seconds"]].isna().all(axis=None)
    compared = compare(trials)
    assert len(compared) == 0
    expected = [
        "better",
        "worse",
        "n",
        "difference",
        "sd",
        "p_alone",
        "se_items",
        "df_items",
        "p",
        "p_adjusted",
        "distinguishable",
    ]
    assert compared.columns.tolist() == expected and compared["distinguishable"].dtype == bool
    assert len(results(trials)) == 0 and len(average(trials, [TOP1])) == len(trials)


@settings(max_examples=30)
@given(st.data())
def test_the_order_of_rows_does_not_matter(data: st.DataObject) -> None:
    score = st.one_of(st.floats(0, 100), st.sampled_from([0.1, 0.2, 0.3, math.nan]))
    status = st.sampled_from(["finished", "finished", "finished", "failed"])
    searched = [search(c, p, data.draw(score), status=data.draw(status)) for c in "ab" for p in range(3)]
    final = [row(c, s, data.draw(score), point=p, status=data.draw(status)) for c in "abc" for s in range(3) for p in range(2)]
    rows = [*searched, *(one for one in final if one["cell"] != "c" or one["point"] == 0)]
    mode = data.draw(st.sampled_from(["max", "min"]))
    trials, other = table(*rows), table(*data.draw(st.permutations(rows)))
    assert best_points(trials, mode) == best_points(other, mode)
    assert verdict(trials, mode) == verdict(other, mode) or verdict(trials, mode).leader is None
    pd.testing.assert_frame_equal(compare(trials, mode=mode), compare(other, mode=mode), check_exact=True)
    pd.testing.assert_frame_equal(summarize(trials, [*"abc"], [TOP1], mode), summarize(other, [*"abc"], [TOP1], mode))


def test_nothing_is_changed_in_the_table() -> None:
    trials = table(search("a", 1, 5.0), search("a", 0, 7.0), row("a", 0, 1.0), row("b", 0, 2.0))
    before = trials.copy(deep=True)
    summarize(trials, ["a", "b"], [TOP1])
    verdict(trials)
    average(trials, [TOP1])
    pd.testing.assert_frame_equal(trials, before)


# --- the Pareto front ---


def test_pareto_front_with_ties() -> None:
    values = [50.0, 60.0, 60.0, 60.0, 40.0, 70.0, 50.0, math.nan, 99.0]
    costs = [1.0, 2.0, 2.0, 3.0, 1.0, 9.0, 2.0, 0.1, math.nan]
    # Two equal points are both on it; as good at more cost, or worse at the same, is not.
    assert pareto(values, costs) == [True, True, True, False, False, True, False, False, False]
    assert pareto([-value for value in values], costs, "min") == pareto(values, costs)
    assert pareto([], []) == [] and pareto([0.0], [5.0]) == [True]


# --- the course project's table ---

# Optimizer, loss; TR@1 and IR@1 on MSCOCO, ACC@1 on ImageNet, and their Average as printed.
PRINTED = """
AdamW SogCLR    13.18 10.3  24.55 16.68
AdamW CLIP      11.62 9.16  21.66 14.81
AdamW CyCLIP    14.1  10.68 25.91 16.9
AdamW VicReg    2.86  2.16  5.79  3.6
AdamW OnlineCLR 10.96 8.64  20.52 13.37
SGD   SogCLR    1.56  1     2.87  1.81
SGD   CLIP      10.3  7     17.01 11.44
SGD   CyCLIP    10.38 7.31  16.86 11.52
SGD   VicReg    2     1.6   2.43  2.01
SGD   OnlineCLR 0.74  0.56  1.5   0.93
Adam  SogCLR    0.1   0.1   0.23  0.14
Adam  CLIP      3.34  3.03  4.71  3.69
Adam  CyCLIP    3.92  3.25  4.04  3.74
Adam  VicReg    0.66  0.63  1.28  0.86
Adam  OnlineCLR 0.02  0.02  0.1   0.05
"""
COURSE = ["retrieval/mscoco/image_to_text_recall@1", "retrieval/mscoco/text_to_image_recall@1", "zero_shot/imagenet/top1"]


def course() -> pd.DataFrame:
    """As final rows, one seed; the printed average stands in `printed` and, wrongly trusted, in `score`."""
    rows = []
    for line in PRINTED.split("\n")[1:-1]:
        optimizer, loss, *numbers = line.split()
        *metrics, printed = map(float, numbers)
        named = row(f"{loss}, {optimizer}", 0, printed)
        rows.append(named | dict(zip(COURSE, metrics, strict=True)) | {"printed": printed})
    return pd.DataFrame(rows)


def test_two_averages_of_the_course_table_are_printed_wrong_and_come_out_right() -> None:
    trials = course()
    assert len(trials) == 15
    found = average(trials, COURSE)
    wrong = {"SogCLR, AdamW": (16.68, 16.01), "CLIP, AdamW": (14.81, 14.15)}
    for cell, printed, recomputed in zip(trials["cell"], trials["printed"], found, strict=True):
        expected = wrong.get(cell, (printed, printed))
        assert (printed, round(recomputed, 2)) == expected, cell
    off = found.round(2) != trials["printed"]
    assert set(trials["cell"][off]) == set(wrong)


def test_the_course_table_has_a_leader_and_no_evidence() -> None:
    trials = course()
    trials["score"] = average(trials, COURSE)
    cells = trials["cell"].tolist()
    said = verdict(trials)
    assert (said.leader, said.n, round(said.value, 2)) == ("CyCLIP, AdamW", 1, 16.9)
    assert said.level_with[:3] == ["SogCLR, AdamW", "CLIP, AdamW", "OnlineCLR, AdamW"] and len(said.level_with) == 14
    assert (said.ahead_of, said.comparisons, said.resolution) == ([], 0, None)
    compared = compare(trials)
    assert len(compared) == 105 and (compared["n"] == 1).all()
    assert compared[["sd", "p", "p_adjusted"]].isna().all(axis=None) and not compared["distinguishable"].any()
    summary = summarize(trials, cells, COURSE).query("metric == 'score'").set_index("cell")
    assert summary.loc["CyCLIP, AdamW", "rank"] == 1 and summary.loc["OnlineCLR, Adam", "rank"] == 15
    assert summary[["sd", "low", "high"]].isna().all(axis=None)
