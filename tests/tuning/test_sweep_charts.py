"""The charts of a sweep's report and what they say of its search, against tables made by hand."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from evaluation import metrics
from evaluation.reporting import chart, number_format
from tests.training.test_report import Element
from tests.tuning.pages import figures, page_of, paths, plain, section, table_rows
from tests.tuning.tables import I2T, LR, NAN_REASON, cell_of, curve_rows, final_rows, row, search_rows


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Element:
    return page_of(tmp_path_factory.mktemp("sweep"), search_rows() + final_rows())


def test_learning_curves_have_a_point_an_epoch_and_the_spread_of_the_seeds(page: Element):
    shown = figures(section(page, "curves"))
    assert list(shown) == ["clip, adamw", "sogclr, adamw", "sogclr, sgd"]  # of clip, sgd no trial was evaluated
    mean = paths(shown["sogclr, adamw"], "mean")
    assert len(mean) == 1 and mean[0].count("L") == 3  # four epochs
    assert paths(shown["sogclr, adamw"], "band")[0].count("L") == 7  # and back
    assert not paths(shown["sogclr, adamw"], "reference") and len(paths(shown["clip, adamw"], "reference")) == 1
    about = shown["clip, adamw"].all("svg")[0].attributes["aria-label"]
    assert "from 4.2 to 17.0" in about and "4 epochs" in about  # a quarter of 17; all of it
    assert len(paths(shown["sogclr, sgd"], "thin")) == 2 and not paths(shown["sogclr, sgd"], "mean")
    assert "2 search trials, stopped early" in shown["sogclr, sgd"].text


def test_the_mean_of_curves_ends_where_the_shortest_ends(tmp_path: Path):
    finals = final_rows()
    curves = [c for c in curve_rows(finals) if not (c["trial"] == "clip-adamw-p0-seed1" and c["epoch"] > 2)]
    shown = figures(section(page_of(tmp_path, finals, curves), "curves"))
    assert paths(shown["clip, adamw"], "mean")[0].count("L") == 1
    assert "over 2 epochs" in shown["clip, adamw"].all("svg")[0].attributes["aria-label"]


def test_sensitivity_shows_every_trial_that_ended_by_itself(page: Element):
    part = section(page, "search")
    rates = part.children[[child.text.startswith("Sensitivity to lr") for child in part.children].index(True) + 2]
    shown = figures(rates)
    assert list(shown) == ["clip, adamw", "clip, sgd", "sogclr, adamw"]  # those of sogclr, sgd were all stopped
    best = shown["sogclr, adamw"]
    assert len(best.all("circle", "point")) == 7 and len(best.all("circle", "chosen")) == 1
    assert len(paths(best, "failed")) == 1 and NAN_REASON in best.all("path", "failed")[0].text
    assert "chosen: 3e-3" in best.text and "20.0" in best.all("circle", "chosen")[0].text
    assert len(paths(shown["clip, sgd"], "failed")) == 2 and "none chosen" in shown["clip, sgd"].text
    # 3e-3 lies at log(30) / log(100) of 1e-4 ... 1e-2, wherever the axis begins and ends.
    ticks = {e.text: float(e.attributes["x"]) for e in best.all("text") if e.attributes["text-anchor"] == "middle"}
    place = float(best.all("circle", "chosen")[0].attributes["cx"])
    assert (place - ticks["1e-4"]) / (ticks["0.01"] - ticks["1e-4"]) == pytest.approx(math.log(30) / math.log(100), abs=0.002)


def test_a_search_of_failures_alone_shows_where_they_were(tmp_path: Path):
    failed = {"status": "failed", "reason": NAN_REASON}
    trials = [row("clip, sgd", "search", i, 0, math.nan, **failed, **{"optimizer.lr": r}) for i, r in enumerate([0.01, 0.1, 1.0])]
    part = section(page_of(tmp_path, trials), "search")
    assert len(paths(figures(part)["clip, sgd"], "failed")) == 3 and "has ended" not in part.text


@pytest.mark.parametrize(
    ("rate", "low", "high", "log", "side"),
    [
        (1.2e-4, 1e-4, 1e-2, True, "lower"),  # 4 % of the way, in logarithms
        (1.3e-4, 1e-4, 1e-2, True, ""),  # 5.7 %
        (1.3e-4, 1e-4, 1e-2, False, "lower"),
        (8.5e-3, 1e-4, 1e-2, True, "upper"),
        (1e-2, 1e-4, 1e-2, False, "upper"),
    ],
)
def test_a_best_point_at_the_edge_of_its_range_is_told(
    tmp_path: Path, rate: float, low: float, high: float, log: bool, side: str
):
    trials = [row("clip, adamw", "search", i, 0, 16.0 - i, **{"optimizer.lr": r}) for i, r in enumerate([rate, 1e-3])]
    page = page_of(tmp_path, trials, cells=[cell_of("clip, adamw", {"low": low, "high": high, "log": log})])
    said = f"clip, adamw: lr {number_format.parameter(rate)} is at the edge of its range (its {side} end is"
    assert (said in plain(section(page, "search"))) == bool(side)
    assert (said in (tmp_path / "report.md").read_text()) == bool(side)
    assert ("at the edge of its range" in plain(page)) == bool(side)


@pytest.mark.parametrize("lr", [LR | {"low": 2e-4}, None], ids=["tried-beyond-it", "not-known"])
def test_what_was_tried_shows_no_edge(tmp_path: Path, lr: dict[str, Any] | None):
    trials = [row("clip, adamw", "search", i, 0, 16.0 - i, **{"optimizer.lr": r}) for i, r in enumerate([1e-4, 1e-3])]
    page = page_of(tmp_path, trials, cells=[cell_of("clip, adamw", lr)])
    assert "at the edge of its range" not in plain(page) and "chosen: 1e-4" in plain(section(page, "search"))


def test_parallel_coordinates_have_a_line_a_finished_search_trial(page: Element):
    chart = section(page, "search").all("svg", "parallel")[0]
    lines = [path for path in chart.all("path") if path.attributes["class"].startswith("shade-")]
    assert len(lines) == 11 and all(path.attributes["d"].count("L") == 4 for path in lines)  # two axes, two parameters, score
    best = {
        re.split("[:,]", path.text)[0]: path.attributes["class"] for path in lines if "best" in path.attributes["class"].split()
    }
    assert best == {"clip-adamw-p0": "shade-3 best", "sogclr-adamw-p4": "shade-5 best"}  # 16 and 20 of 11 ... 20, six shades


def test_importances_sum_to_one_and_need_eight_trials(page: Element, tmp_path: Path):
    part = section(page, "search")
    bars = [figure for figure in part.all("figure") if figure.all("div", "bars")]
    groups = {figure.all("figcaption")[0].texts[0]: figure for figure in bars}
    assert list(groups) == ["whole search", "sogclr, adamw"]  # the other cell has three trials
    assert "best 5 of 8 trials" in groups["sogclr, adamw"].text and "best 5 of 11 trials" in groups["whole search"].text
    for figure in groups.values():
        shares = [float(bar.attributes["style"].removeprefix("width:").removesuffix("%")) for bar in figure.all("i")]
        assert (
            sum(shares) == pytest.approx(100, abs=0.2) and shares == sorted(shares, reverse=True) and shares[0] > 50 / len(shares)
        )
    few = page_of(
        tmp_path,
        [r for r in search_rows() if r["trial"] != "sogclr-adamw-p0"],
        axes=[],
        cells=[{"cell": "sogclr, adamw", "labels": []}],
    )
    assert not few.all("div", "bars") and "at least 8 finished search trials" in section(few, "search").text


def test_the_parameter_that_decides_has_most_of_the_importance(tmp_path: Path):
    trials = [
        row(
            "all",
            "search",
            i,
            0,
            20 - abs(i - 20),
            **{"optimizer.lr": 1e-4 * 1.1**i, "objective.temperature": 0.01 + 0.01 * (i * 7 % 40)},
        )
        for i in range(40)
    ]
    page = page_of(tmp_path, trials, axes=[], cells=[{"cell": "all", "labels": []}], mode="max")
    bars = section(page, "search").all("div", "bars")[0]
    assert plain(bars).startswith("lr ") and float(bars.all("i")[0].attributes["style"][6:-1]) > 80


def test_what_nothing_beats_in_quality_and_cost_is_joined_and_named(tmp_path: Path):
    finals = final_rows(
        {"clip, adamw": [15.0, 17.0], "clip, sgd": [14.0, 14.0], "sogclr, adamw": [21.0, 23.0], "sogclr, sgd": [9.0, 9.5]}
    )
    part = section(page_of(tmp_path, finals), "cost")  # clip takes 10.5 s, sogclr 20.5 s
    assert table_rows(part.all("table", "front")[0]) == [["clip, adamw", "10.5 s", "16.0"], ["sogclr, adamw", "20.5 s", "22.0"]]
    assert {name.text for name in part.all("text", "name")} == {"clip, adamw", "sogclr, adamw"}
    # Equal scores show no interval: clip with sgd has no bar.
    assert paths(part, "front")[0].count("L") == 1 and len(paths(part, "bar")) == 3
    assert len(part.all("circle", "chosen")) == 2 and len(part.all("circle", "point")) == 2


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (3e-4, "3e-4"),
        (0.00031622, "3.16e-4"),
        (0.0625, "0.0625"),
        (0.01, "0.01"),
        (512, "512"),
        (1234.0, "1234"),
        (2e-6, "2e-6"),
        (0.0, "0"),
        (1e5, "1e5"),
        (-0.5, "-0.5"),
        ("adamw", "adamw"),
        (math.nan, ""),
        (None, ""),
        (True, "True"),
    ],
)
def test_hyperparameters_are_short_and_exact_enough(value: Any, printed: str):
    assert number_format.parameter(value) == printed


def test_probabilities_have_two_digits_and_times_are_for_people():
    assert [number_format.probability(p) for p in (0.0377, 0.5, 1.0, 3.14e-6, math.nan)] == [
        "0.038",
        "0.50",
        "1.0",
        "3.1e-06",
        "",
    ]
    assert [number_format.duration(s) for s in (4.2, 59.94, 59.96, 103, 7500, math.nan)] == [
        "4.2 s",
        "59.9 s",
        "1 min 00 s",
        "1 min 43 s",
        "2 h 05 min",
        "",
    ]


def test_metrics_name_their_dataset_only_where_there_are_several():
    path = "zero_shot/emoji_black_subgroup/mean_per_class"
    one = metrics.headings([I2T, path, "retrieval/emoji/mean_recall@5", "odd/path"], ["emoji"])
    assert list(one.values()) == ["image to text R@1", "zero-shot black_subgroup mean per class", "mean R@5", "odd/path"]
    two = metrics.headings([I2T, path], ["emoji", "emoji_black"])
    assert list(two.values()) == ["image to text R@1, emoji", "zero-shot subgroup mean per class, emoji_black"]


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 23.4, False), (-3, 7, False), (1e-5, 1, True), (2e-3, 8e-3, True), (0.011, 0.012, True)]
)
def test_ticks_are_round_and_within(low: float, high: float, log: bool):
    ticks = chart.Scale(low, high, 0, 100, log).ticks(4)
    assert 2 <= len(ticks) <= 6 and low <= min(ticks) and max(ticks) <= high and ticks == sorted(ticks)
    scale = chart.Scale(low, high, 100, 0, log)
    assert (scale(low), scale(high)) == (100, 0) and scale(math.sqrt(low * high) if log else (low + high) / 2) == pytest.approx(
        50
    )
