"""Retrieval: ranks by hand, ties and NaN against the model, and agreement with a plain double loop."""

import itertools
import math

import numpy as np
import pytest

from evaluation.retrieval import MISS, chance, ranks, recalls, top


def from_scores(scores: np.ndarray, right: list[list[int]]) -> np.ndarray:
    """Ranks for given scores: candidates are the unit axes, so the product gives the scores themselves."""
    return ranks(scores, np.eye(scores.shape[1]), [np.asarray(r) for r in right])


SIMILARITIES = np.array([[0.9, 0.8, 0.1, 0.3], [0.2, 0.85, 0.95, 0.6], [0.5, 0.4, 0.7, 0.65]])


def test_worked_example_of_three_pictures_and_four_captions() -> None:
    """Captions 1 and 2 belong to picture 1, caption 3 to picture 2, caption 4 to picture 3."""
    by_image = from_scores(SIMILARITIES, [[0, 1], [2], [3]])
    assert by_image.tolist() == [0, 0, 1]
    assert recalls(by_image, [1, 2]) == pytest.approx({1: 200 / 3, 2: 100.0})
    by_text = from_scores(SIMILARITIES.T, [[0], [0], [1], [2]])
    assert by_text.tolist() == [0, 1, 0, 0]
    assert recalls(by_text, [1, 2]) == {1: 75.0, 2: 100.0}


def test_a_collapsed_model_scores_nothing() -> None:
    same = np.ones((4, 3)) / math.sqrt(3)
    found = ranks(same, same, [np.array([i]) for i in range(4)])
    assert found.tolist() == [3, 3, 3, 3] and recalls(found, [1, 4]) == {1: 0.0, 4: 100.0}


def test_nan_is_a_miss_for_a_query_and_a_rival_as_a_candidate() -> None:
    queries, right = np.eye(3), [np.array([0]), np.array([1]), np.array([2])]
    spoilt = queries.copy()
    spoilt[1] = np.nan
    found = ranks(spoilt, np.eye(3), right)
    assert found.tolist() == [0, MISS, 0]
    assert recalls(found, [1, 3, 10**9]) == pytest.approx(dict.fromkeys([1, 3, 10**9], 200 / 3))
    # A candidate that cannot be compared stands before every right one, and is never found itself.
    assert ranks(queries, spoilt, right).tolist() == [1, MISS, 1]
    # One of two right candidates is NaN: a miss, though the other would have been found.
    assert ranks(queries[:1], spoilt, [np.array([0, 1])]).tolist() == [MISS]


def test_the_best_of_several_right_candidates_counts_and_they_are_no_rivals() -> None:
    scores = np.array([[0.1, 0.9, 0.8, 0.7]])
    assert from_scores(scores, [[2, 3]]).tolist() == [1]
    assert from_scores(scores, [[1, 3]]).tolist() == [0]
    assert from_scores(scores, [[0, 2, 3]]).tolist() == [1]
    assert from_scores(np.array([[0.5, 0.5, 0.5]]), [[0, 2]]).tolist() == [1]


def naive_rank(scores: np.ndarray, right: list[int]) -> int:
    best = max(scores[c] for c in right)
    return sum(1 for c in range(len(scores)) if c not in right and scores[c] >= best)


@pytest.mark.parametrize("seed", range(3))
def test_agreement_with_a_double_loop(seed: int) -> None:
    """Coarse scores, so that there are many ties."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, size=(40, 25)) / 4
    right = [sorted(random.choice(25, size=random.integers(1, 4), replace=False).tolist()) for _ in range(40)]
    assert from_scores(scores, right).tolist() == [naive_rank(row, r) for row, r in zip(scores, right, strict=True)]


def test_more_queries_than_fit_into_one_block() -> None:
    random = np.random.default_rng(0)
    queries, candidates = random.normal(size=(2500, 8)), random.normal(size=(30, 8))
    right = [np.array([i % 30]) for i in range(2500)]
    pieces = [ranks(queries[i : i + 100], candidates, right[i : i + 100]) for i in range(0, 2500, 100)]
    found = ranks(queries, candidates, right)
    assert found.shape == (2500,) and (np.abs(found - np.concatenate(pieces)) > 0).mean() < 0.001
    scores = queries.astype(np.float32) @ candidates.astype(np.float32).T
    naive = [naive_rank(row, r.tolist()) for row, r in zip(scores, right, strict=True)]
    assert (found != naive).mean() < 0.001  # the order of additions in a product may differ


def test_equal_rows_in_single_precision_are_ties() -> None:
    """Rounding must not decide between identical candidates: each query sees both in the same product."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(50, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    candidates = np.repeat(rows, 2, axis=0)
    found = ranks(rows, candidates, [np.array([2 * i]) for i in range(50)])
    assert found.tolist() == [1] * 50


@pytest.mark.parametrize(("candidates", "right", "k"), [(5, 1, 1), (5, 2, 1), (6, 2, 3), (4, 3, 2), (3, 1, 10)])
def test_chance_is_the_mean_over_all_rankings(candidates: int, right: int, k: int) -> None:
    """All positions that the right candidates can take are equally likely."""
    places = list(itertools.combinations(range(candidates), right))
    expected = 100 * sum(min(place) < k for place in places) / len(places)
    assert chance(candidates, [right, right], k) == pytest.approx(expected)


def test_chance_of_mixed_queries_is_their_mean() -> None:
    assert chance(10, [1, 3], 2) == pytest.approx((chance(10, [1], 2) + chance(10, [3], 2)) / 2)
    assert chance(25_000, [5] * 3, 10) == pytest.approx(100 * (1 - (1 - 10 / 25_000) ** 5), rel=1e-3)


def test_top_lists_the_best_first_and_the_earlier_of_equals() -> None:
    assert top(SIMILARITIES, np.eye(4), 2).tolist() == [[0, 1], [2, 1], [2, 3]]
    assert top(np.ones((1, 4)), np.eye(4), 3).tolist() == [[0, 1, 2]]
