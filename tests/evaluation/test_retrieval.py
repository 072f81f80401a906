"""Retrieval: ranks by hand, ties and NaN against the model, and agreement with a plain double loop."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.retrieval import MISS, both_ranks, chance, median_rank, ranks, recalls, top

ROOT = Path(__file__).parents[2]


def from_scores(scores: np.ndarray, right: list[list[int]]) -> np.ndarray:
    """Ranks for given scores: candidates are the unit axes, so the product gives the scores themselves."""
    return ranks(scores, np.eye(scores.shape[1]), [np.asarray(r) for r in right])


SIMILARITIES = np.array([[0.9, 0.8, 0.1, 0.3], [0.2, 0.85, 0.95, 0.6], [0.5, 0.4, 0.7, 0.65]])


def test_worked_example_of_three_images_and_four_captions() -> None:
    """Captions 1 and 2 belong to image 1, caption 3 to image 2, caption 4 to image 3."""
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


def naive_both(images: np.ndarray, texts: np.ndarray, image_of_text: list[int]) -> tuple[list[int], list[int]]:
    """Ranks both ways from the whole matrix of scores in double precision, with no product of matrices; MISS for NaN."""
    scores = [[math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True)) for y in texts] for x in images]

    def rank(row: list[float], right: set[int]) -> int:
        if any(math.isnan(row[c]) for c in right):
            return MISS
        best = max(row[c] for c in right)
        return sum(1 for c, score in enumerate(row) if c not in right and not score < best)

    own = [{t for t, i in enumerate(image_of_text) if i == image} for image in range(len(images))]
    return (
        [rank(row, right) for row, right in zip(scores, own, strict=True)],
        [rank([row[t] for row in scores], {image}) for t, image in enumerate(image_of_text)],
    )


def five_captions(kind: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """30 images and five captions of each in no order: unit rows, coarse ones full of ties, and some that are NaN."""
    random = np.random.default_rng(7)
    image_of_text = random.permutation(np.repeat(np.arange(30), 5)).tolist()
    if kind == "random":
        images, texts = (random.normal(size=(n, 12)).astype(np.float32) for n in (30, 150))
        texts += 0.3 * images[image_of_text]
        return *(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts)), image_of_text
    images, texts = (random.integers(-1, 2, size=(n, 3)).astype(np.float32) for n in (30, 150))
    if kind == "nan":
        images[4] = texts[11] = texts[60, 1] = np.nan
    return images, texts, image_of_text


def lists(image_of_text: list[int], images: int) -> list[np.ndarray]:
    return [np.flatnonzero(np.asarray(image_of_text) == image) for image in range(images)]


@pytest.mark.parametrize("kind", ["random", "ties", "nan"])
def test_five_captions_an_image_agree_with_the_whole_matrix(kind: str) -> None:
    images, texts, image_of_text = five_captions(kind)
    by_image, by_text = naive_both(images, texts, image_of_text)
    found = both_ranks(images, texts, lists(image_of_text, 30), tile=64)
    assert found[0].tolist() == by_image and found[1].tolist() == by_text
    for ours, theirs in zip(found, (by_image, by_text), strict=True):
        for k in (1, 5, 10):
            assert recalls(ours, [k])[k] == pytest.approx(100 * sum(r < k for r in theirs) / len(theirs), abs=1e-6)
    assert min(len(set(by_image)), len(set(by_text))) > 5
    assert np.array_equal(ranks(images, texts, lists(image_of_text, 30)), found[0])
    assert np.array_equal(ranks(texts, images, [np.array([i]) for i in image_of_text]), found[1])
    assert (kind == "nan") == (MISS in found[0].tolist()) == (MISS in found[1].tolist())


def test_the_worked_example_both_ways_in_one_pass() -> None:
    found = both_ranks(SIMILARITIES, np.eye(4), [np.array([0, 1]), np.array([2]), np.array([3])])
    assert [r.tolist() for r in found] == [[0, 0, 1], [0, 1, 0, 0]]
    assert recalls(found[0], [1, 2]) == pytest.approx({1: 66.67, 2: 100.0}, abs=0.005)
    assert recalls(found[1], [1, 2]) == {1: 75.0, 2: 100.0}


def near_equals() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Unit rows, each candidate there four times: twice the same, and off by the last bit of one number each way.

    One of the two equal ones is right, so that no order of additions may tell them apart, and the other two by their value.
    """
    random = np.random.default_rng(1)
    rows = random.normal(size=(80, 200)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    more, less = rows.copy(), rows.copy()
    more[:, 0] = np.nextafter(rows[:, 0], np.float32(2) * np.sign(rows[:, 0]))
    less[:, 0] = np.nextafter(rows[:, 0], np.float32(0))
    candidates = np.concatenate([rows, more, less, rows])
    return rows, candidates, [np.array([240 + i]) for i in range(80)]


def test_rounding_neither_finds_nor_loses_a_candidate() -> None:
    """Before each right candidate stand its equal, by the rule of ties, and the one that is better by a last bit."""
    queries, candidates, right = near_equals()
    assert ranks(queries, candidates, right, tile=50).tolist() == [2] * 80


@pytest.mark.parametrize("tile", [1, 7, 50, 64, 1000])
def test_the_size_of_tiles_changes_no_rank(tile: int) -> None:
    queries, candidates, right = near_equals()
    whole = ranks(queries, candidates, right)
    assert np.array_equal(ranks(queries, candidates, right, tile), whole)
    images, texts, image_of_text = five_captions("random")
    right = lists(image_of_text, 30)
    for cut, uncut in zip(both_ranks(images, texts, right, tile), both_ranks(images, texts, right), strict=True):
        assert np.array_equal(cut, uncut)


def test_more_queries_and_candidates_than_fit_into_one_tile() -> None:
    """With the scores of whole rows in double precision, sorted."""
    random = np.random.default_rng(0)
    images, texts = (random.normal(size=(n, 8)).astype(np.float32) for n in (1300, 2600))
    found = both_ranks(images, texts, [np.array([i, 2599 - i]) for i in range(1300)])
    scores = images.astype(np.float64) @ texts.astype(np.float64).T
    best = [max(scores[i, i], scores[i, 2599 - i]) for i in range(1300)]
    assert found[0].tolist() == [int((scores[i] > best[i]).sum()) for i in range(1300)]
    owner = [t if t < 1300 else 2599 - t for t in range(2600)]
    assert found[1].tolist() == [int((scores[:, t] > scores[owner[t], t]).sum()) for t in range(2600)]


MEMORY = """
import resource
import numpy as np
from evaluation.retrieval import both_ranks, top

random = np.random.default_rng(0)
images, texts = (random.standard_normal((n, 64), dtype=np.float32) for n in (10_000, 50_000))
right = np.arange(50_000).reshape(-1, 5)
both_ranks(images[:1000], texts[:5000], right[:1000], tile=512)  # threads and libraries are there from here on
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = both_ranks(images, texts, right, tile=512)
top(images[:20], texts, 10, tile=512)
print(*(int(np.median(ranks)) for ranks in found), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_memory_does_not_grow_with_the_matrix_of_scores() -> None:
    """10,000 x 50,000 scores are 1,900 MiB; one row of tiles across all texts would be 98 MiB a thread."""
    ran = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, cwd=ROOT)
    by_image, by_text, grown = ran.stdout.split()
    # Of random scores the best of five is in the middle of its distribution at 1 - 0.5 ** (1 / 5) of all from above.
    assert 0.9 < int(by_image) / (50_000 * (1 - 0.5**0.2)) < 1.1 and 0.9 < int(by_text) / 5_000 < 1.1
    assert float(grown) < 32 + 8 * (os.cpu_count() or 1)  # a tile and what is counted in it, for each thread


def test_the_median_counts_places_from_one() -> None:
    assert median_rank(np.array([0, 0, 4])) == 1 and median_rank(np.array([0, 3])) == 2.5
    assert median_rank(np.array([MISS, 2, 7])) == 8 and median_rank(np.array([MISS, MISS, 0])) == math.inf


@pytest.mark.parametrize(
    ("right", "message"),
    [
        ([[0], [1]], "right: 2 lists for 3 queries"),
        ([[0], [], [1]], "right: query 1 has no right candidate"),
        ([[0], [1, 1], [2]], "right: a candidate is listed twice for the same query"),
    ],
)
def test_lists_that_would_give_wrong_ranks_are_refused(right: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks(np.eye(3), np.eye(3), [np.asarray(r, dtype=np.int64) for r in right])


def test_a_text_of_no_image_is_refused_both_ways_only() -> None:
    """An image may be searched among texts of others; a text without an image has no rank."""
    right = [np.array([0]), np.array([2])]
    assert ranks(np.eye(3)[:2], np.eye(3)[[0, 2, 1]], right).tolist() == [0, 0]
    with pytest.raises(ValueError, match="right: query 1 has no right candidate"):
        both_ranks(np.eye(3)[:2], np.eye(3)[[0, 2, 1]], right)


@pytest.mark.parametrize(("candidates", "right", "k"), [(5, 1, 1), (5, 2, 1), (6, 2, 3), (4, 3, 2), (3, 1, 10)])
def test_chance_is_the_mean_over_all_rankings(candidates: int, right: int, k: int) -> None:
    """All positions that the right candidates can take are equally likely."""
    places = list(itertools.combinations(range(candidates), right))
    expected = 100 * sum(min(place) < k for place in places) / len(places)
    assert chance(candidates, [right, right], k) == pytest.approx(expected)


def test_chance_of_mixed_queries_is_their_mean() -> None:
    assert chance(10, [1, 3], 2) == pytest.approx((chance(10, [1], 2) + chance(10, [3], 2)) / 2)
    assert chance(25_000, [5] * 3, 10) == pytest.approx(100 * (1 - (1 - 10 / 25_000) ** 5), rel=1e-3)


@pytest.mark.parametrize("tile", [1, 3, 8, 1024])
def test_top_does_not_depend_on_the_size_of_tiles(tile: int) -> None:
    """Scores are a few whole numbers, so that most places are taken by the earlier of equals; a NaN row comes last."""
    random = np.random.default_rng(3)
    queries, candidates = (random.integers(0, 3, size=(n, 2)).astype(float) for n in (9, 20))
    candidates[6] = np.nan
    expected = [
        sorted(range(20), key=lambda c, q=q: (c == 6, -sum(x * y for x, y in zip(q, candidates[c], strict=True)), c))
        for q in queries.tolist()
    ]
    assert top(queries, candidates, 5, tile).tolist() == [order[:5] for order in expected]
    assert top(queries, candidates, 50, tile).tolist() == expected


def test_top_lists_the_best_first_and_the_earlier_of_equals() -> None:
    assert top(SIMILARITIES, np.eye(4), 2).tolist() == [[0, 1], [2, 1], [2, 3]]
    assert top(np.ones((1, 4)), np.eye(4), 3).tolist() == [[0, 1, 2]]
