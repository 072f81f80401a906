"""Test items in a verdict: what runs keep of them, the variance they make, and how often equal cells are called different."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from evaluation import items as outcomes
from evaluation.metrics import mean_recalls
from evaluation.suite import HeldOut, SuiteSettings, held_out, score
from tests.training.test_report import prepare_by_hand
from tuning.held_out_items import FILE, Items, read_items, variance, write_items
from tuning.statistics import compare, verdict


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def embeddings(data: HeldOut, seed: int) -> dict[str, np.ndarray]:
    """Of images, and of captions that lie near them: some are found, and some are not."""
    random = np.random.default_rng(seed)
    images = unit(random.normal(size=(len(data.sample_ids), 8))).astype(np.float32)
    texts = unit(images[data.image_of_text] + 0.5 * random.normal(size=(len(data.texts), 8))).astype(np.float32)
    return {"images": images, "texts": texts, "prompts": unit(random.normal(size=(len(data.prompts), 8))).astype(np.float32)}


CAPTIONS = [["a red square", "red"], ["a blue square"], ["green", "grass", "leaf"], ["a black cat"], ["snow", "white"]]
CAPTIONS += [[f"thing {i}"] for i in range(20)] + [["a black cat"], ["thing 3", "thing three"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    """27 images of one to three captions, some of which are right for two."""
    prepared = prepare_by_hand(tmp_path_factory.mktemp("items") / "data", CAPTIONS)
    found = held_out(prepared, SuiteSettings(recall_at=(1, 5)))
    found.targets["shape"][[2, 9]] = -1  # two have no label
    return found


class Grouped:
    """Of a prepared dataset the groups: of three images each."""

    def rows(self, sample_ids: np.ndarray, columns: tuple[str, ...]) -> pa.Table:
        assert columns == ("group",)
        return pa.table({"group": [f"group {i // 3}" for i in sample_ids.tolist()]})


def kept(place: Path, data: HeldOut, rows: dict[str, np.ndarray]) -> None:
    write_items(place, [(Grouped(), data, rows)])  # type: ignore[list-item]


def scores_of(data: HeldOut, rows: dict[str, np.ndarray]) -> dict[str, float]:
    scores = score(data, **rows).metrics
    return scores | mean_recalls(scores)


def test_the_mean_of_all_parts_is_the_score(data: HeldOut) -> None:
    rows = embeddings(data, 0)
    found = outcomes.contributions(data, **rows)
    for metric, value in scores_of(data, rows).items():
        part = outcomes.contributions_to(found, metric)
        assert part is not None and part.mean() == pytest.approx(value) and len(part) == len(CAPTIONS), metric
    assert sum(0 < value < 100 for value in scores_of(data, rows).values()) > 5
    assert outcomes.contributions_to(found, "retrieval/other/mean_recall@1") is None


def test_what_was_written_is_read_by_group_and_adds_up(data: HeldOut, tmp_path: Path) -> None:
    rows = embeddings(data, 1)
    kept(tmp_path, data, rows)
    assert [path.name for path in tmp_path.iterdir()] == [FILE] and (tmp_path / FILE).stat().st_size < 10_000
    scores = scores_of(data, rows)
    metrics = [f"retrieval/{data.dataset}/mean_recall@1", f"zero_shot/{data.dataset}_shape/top1"]
    found = read_items(tmp_path, metrics)
    assert found is not None
    assert found.parts.sum() == pytest.approx(sum(scores[metric] for metric in metrics) / 2, rel=1e-6)
    assert found.shares.sum() == pytest.approx(1) and found.reach == (100.0,)
    assert len(found.keys) == len({i // 3 for i in data.sample_ids.tolist()})
    assert read_items(tmp_path, ["no/such/metric"]) is None and read_items(tmp_path, [*metrics, "no/such/metric"]) is None


def test_of_several_datasets_each_item_moves_its_own_metrics(data: HeldOut, tmp_path: Path) -> None:
    """The score is the mean over one metric of one dataset and two of another, whose groups have the same names."""
    other, rows = replace(data, dataset="other"), [embeddings(data, 1), embeddings(data, 2)]
    write_items(tmp_path, [(Grouped(), data, rows[0]), (Grouped(), other, rows[1])])  # type: ignore[list-item]
    metrics = [f"retrieval/{data.dataset}/mean_recall@1", "retrieval/other/mean_recall@1", "retrieval/other/mean_recall@5"]
    found, scores = read_items(tmp_path, metrics), scores_of(data, rows[0]) | scores_of(other, rows[1])
    assert found is not None and found.parts.sum() == pytest.approx(sum(scores[metric] for metric in metrics) / 3, rel=1e-6)
    assert found.reach == pytest.approx((100 / 3, 200 / 3)) and found.shares.sum() == pytest.approx(2)
    groups = len({i // 3 for i in data.sample_ids.tolist()})
    assert np.bincount(found.of).tolist() == [groups, groups] and len(set(found.keys.tolist())) == 2 * groups


def test_a_file_that_is_missing_or_cut_off_is_no_file(data: HeldOut, tmp_path: Path) -> None:
    metrics = [f"retrieval/{data.dataset}/mean_recall@1"]
    assert read_items(tmp_path, metrics) is None
    kept(tmp_path, data, embeddings(data, 1))
    assert read_items(tmp_path, metrics) is not None
    whole = (tmp_path / FILE).read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / FILE).write_bytes(whole[:size])
        assert read_items(tmp_path, metrics) is None


# The variance


def run_of(hits: np.ndarray, keys: np.ndarray | None = None) -> Items:
    """Of one dataset, each item a group; `hits`: percent, [n]."""
    n = len(hits)
    return Items(np.arange(n) if keys is None else keys, np.zeros(n, int), hits / n, np.full(n, 1 / n), (100.0,))


def test_of_shared_items_it_is_the_variance_of_their_mean_over_seeds() -> None:
    random = np.random.default_rng(0)
    a, b = 100.0 * (random.random((3, 200)) < 0.5), 100.0 * (random.random((3, 200)) < 0.4)
    found = variance([(run_of(first), run_of(second)) for first, second in zip(a, b, strict=True)])
    expected = (a - b).mean(axis=0).var() / 200 + 2 * (100 / 200) ** 2
    assert found == (pytest.approx(expected), 199)


def test_of_two_runs_it_is_bonett_and_prices_but_for_the_shrinking() -> None:
    """10 images that only one finds, 2 that only the other does, of 86; their interval has n + 2 for n."""
    difference = 100.0 * np.repeat([1, -1, 0], [10, 2, 74])
    found = variance([(run_of(np.maximum(difference, 0)), run_of(np.maximum(-difference, 0)))])
    n, p, q = 86, 11 / 88, 3 / 88
    theirs = ((p + q) - (p - q) ** 2) / (n + 2)
    assert found is not None and found[0] / 1e4 == pytest.approx(theirs, rel=0.06)


def test_hits_that_never_differ_leave_room_for_chance() -> None:
    all_, none = run_of(np.full(86, 100.0)), run_of(np.zeros(86))
    for pair in ((all_, all_), (all_, none)):
        found = variance([pair] * 5)
        assert found is not None and math.sqrt(found[0]) == pytest.approx(100 * math.sqrt(2) / 86)


def test_items_of_a_group_are_drawn_together() -> None:
    """Four copies of each item tell no more than one."""
    random = np.random.default_rng(1)
    first, second = (100.0 * (random.random(50) < share) for share in (0.6, 0.5))
    once = variance([(run_of(first), run_of(second))])
    grouped = [Items(np.arange(50), np.zeros(50, int), hits / 50, np.full(50, 1 / 50), (100.0,)) for hits in (first, second)]
    copies = variance([(run_of(np.repeat(first, 4)), run_of(np.repeat(second, 4)))])
    assert variance([(grouped[0], grouped[1])]) == once and once is not None and copies is not None
    assert copies[0] == pytest.approx(once[0] / 4, rel=0.1), "as if all four were new"


def test_against_a_bootstrap_over_items_and_seeds() -> None:
    """Owen's (Annals of Applied Statistics 2007): seeds and items drawn again by themselves; ours is at least what it says."""
    random = np.random.default_rng(2)
    n, seeds = 150, 12
    taste = random.normal(0, 25, n)
    runs = [[taste + random.normal(0, 5) + random.normal(0, 20, n), random.normal(0, 20, n)] for _ in range(seeds)]
    runs = [[np.clip(row + 50, 0, 100) for row in pair] for pair in runs]
    matrix = np.array([first - second for first, second in runs])
    drawn = []
    for _ in range(4000):
        rows, columns = random.integers(0, seeds, seeds), random.integers(0, n, n)
        drawn.append(matrix[rows][:, columns].mean())
    over = variance([(run_of(first), run_of(second)) for first, second in runs])
    assert over is not None
    total = matrix.mean(axis=1).var(ddof=1) / seeds + over[0]
    assert total == pytest.approx(np.var(drawn), rel=0.15)


def test_of_items_that_each_seed_draws_anew_it_is_that_of_all_of_them() -> None:
    random = np.random.default_rng(3)
    pairs, apart = [], []
    for seed in range(4):
        a, b = (100.0 * (random.random(100) < share) for share in (0.5, 0.4))
        keys = np.arange(100) + 100 * seed
        pairs.append((run_of(a, keys), run_of(b, keys)))
        apart.append((a - b).var())
    found = variance(pairs)
    assert found == (pytest.approx(np.sum(apart) / 100 / 16 + 2 * (100 / 400) ** 2), 399)


def test_runs_of_different_items_are_not_compared_by_item() -> None:
    a, b = run_of(np.full(5, 50.0)), run_of(np.full(5, 40.0), np.arange(5) + 1)
    assert variance([(a, b)]) is None and variance([]) is None
    assert variance([(run_of(np.ones(1)), run_of(np.zeros(1)))]) is None


# Verdicts


def simulated(
    random: np.random.Generator, cells: int, seeds: int, n: int, own: bool = False, lift: float = 0.0
) -> tuple[pd.DataFrame, dict[str, Items]]:
    """A sweep whose cells are equally good on all images that there are, but each has images that suit it.

    `own`: each seed tests on images of its own. `lift`: by how much the first cell is better, in probits.
    """
    rows: list[dict[str, Any]] = []
    known = {}
    keys = np.arange(n)
    ease = random.normal(-0.5, 1, n) + random.normal(0, 0.6, (cells, n))
    for seed in range(seeds):
        if own and seed:
            keys, ease = keys + n, random.normal(-0.5, 1, n) + random.normal(0, 0.6, (cells, n))
        luck = random.normal(0, 0.15, (cells, 1)) + random.normal(0, 0.5, (cells, n))
        hits = 100.0 * (ease + luck + lift * (np.arange(cells) == 0)[:, None] > 0)
        for cell, found in enumerate(hits):
            row = {"trial": f"c{cell}-s{seed}", "cell": f"c{cell}", "phase": "final", "point": 0, "seed": seed}
            rows.append(row | {"status": "finished", "score": found.mean(), "seconds": 1.0})
            known[row["trial"]] = run_of(found, keys)
    return pd.DataFrame(rows), known


@pytest.mark.parametrize(
    ("cells", "seeds", "n", "own"), [(4, 2, 86, False), (2, 10, 86, False), (4, 5, 20, False), (3, 4, 30, True)]
)
def test_equal_cells_are_seldom_called_different(cells: int, seeds: int, n: int, own: bool) -> None:
    """500 sweeps in all: at most the nominal 5 %, where chance includes the draw of test items.

    Of seeds alone it would be up to 28 % of these on shared items: the cells do differ on the images at hand.
    """
    random = np.random.default_rng(cells)
    claims = []
    for _ in range(125):
        trials, known = simulated(random, cells, seeds, n, own)
        claims.append(bool(compare(trials, items=known)["distinguishable"].any()))
    assert np.mean(claims) <= 0.05


def test_a_large_difference_is_found() -> None:
    random = np.random.default_rng(0)
    for seeds, n in ((5, 200), (3, 373)):
        trials, known = simulated(random, 4, seeds, n, lift=1.5)
        said = verdict(trials, items=known)
        assert (said.leader, said.over_items) == ("c0", True) and sorted(said.ahead_of) == ["c1", "c2", "c3"]


def test_two_seeds_and_few_items_claim_no_small_difference() -> None:
    """86 pairs, of which one cell finds three more in each of two seeds that agree: by seeds alone that is certain."""
    first, second = 100.0 * (np.arange(86) < 23), 100.0 * (np.arange(86) < 20)
    rows, known = [], {}
    for cell, hits in (("a", first), ("b", second)):
        for seed in (0, 1):
            flipped = np.where(np.arange(86) == 85 - seed, 100.0 - hits, hits) if cell == "a" else hits
            known[f"{cell}{seed}"] = run_of(flipped)
            row = {"trial": f"{cell}{seed}", "cell": cell, "phase": "final", "point": 0, "seed": seed, "status": "finished"}
            rows.append(row | {"score": flipped.mean() + 0.01 * seed * (cell == "a"), "seconds": 1.0})
    trials = pd.DataFrame(rows)
    alone, both = verdict(trials), verdict(trials, items=known)
    assert alone.ahead_of == ["b"] and not alone.over_items and alone.resolution is not None and alone.resolution < 1.8
    assert both.level_with == ["b"] and both.over_items and both.resolution is not None and both.resolution > 4.5


def test_items_count_only_where_every_result_has_them() -> None:
    trials, known = simulated(np.random.default_rng(5), 3, 3, 50)
    both = compare(trials, items=known)
    assert both["se_items"].notna().all() and (both["p"] >= compare(trials)["p"]).all()
    lost = {trial: found for trial, found in known.items() if trial != "c1-s2"}
    pd.testing.assert_frame_equal(compare(trials, items=lost), compare(trials))
    assert not verdict(trials, items=lost).over_items


def test_p_is_where_the_difference_equals_what_chance_needs() -> None:
    """Banerjee's bound from scipy's quantiles, at the p that was found; and it is no less than either test alone."""
    from scipy.stats import t

    trials, known = simulated(np.random.default_rng(8), 2, 4, 80, lift=0.5)
    (pair,) = compare(trials, items=known).to_dict("records")
    half = pair["p"] / 2
    by_seeds = t.isf(half, 3) * pair["sd"] / 2
    by_items = t.isf(half, pair["df_items"]) * pair["se_items"]
    assert pair["difference"] == pytest.approx(math.hypot(by_seeds, by_items), rel=1e-6)
    assert pair["p"] > pair["p_alone"] and pair["p"] > 2 * t.sf(pair["difference"] / pair["se_items"], pair["df_items"])
