"""The kit that pages are made with: what a chart draws stands in its table, and a page is reached with the keyboard."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from markupsafe import Markup
from scipy.special import logit

from evaluation.reporting import html, render
from evaluation.reporting.chart import Chart, Plot, Scale, Series, figure, lines
from evaluation.reporting.markdown import markdown
from tests.training.test_report import Element, read


def page_of(folder: Path, *sections: html.Section) -> Element:
    (folder / "made.html").write_text(render.page("name", "over", "headline", [], sections, "footer"), encoding="utf-8")
    return read(folder / "made.html")


def test_a_chart_is_followed_by_the_figures_that_it_draws(tmp_path: Path) -> None:
    drawn = [Series("a", {1.0: 10.0, 2.0: 20.0}, "m0", spread={2.0: (18.0, 22.0)}), Series("b", {2.0: math.nan, 3.0: 5.0}, "m1")]
    chart = lines([*drawn, Series("c", {1.0: 1.0}, background=True)], "a <chart>", "shots")
    page = page_of(tmp_path, html.section("one", "One", figure(chart, "A & B")))
    shown = page.all("figure")[0]
    rows = [[cell.text for cell in row.children] for row in shown.all("tr")]
    assert rows == [["shots", "a", "b"], ["1", "10.0", ""], ["2", "20.0 (18.0 to 22.0)", ""], ["3", "", "5.0"]]
    assert [dot.text for dot in shown.all("circle")] == ["a, shots 1: 10.0", "a, shots 2: 20.0", "b, shots 3: 5.0"]
    assert "nan" not in shown.all("svg")[0].text + str([path.attributes for path in shown.all("path")])


def test_sections_are_linked_and_wide_tables_scroll_with_the_keyboard(tmp_path: Path) -> None:
    chart = lines([Series("a", {1.0: 1.0})], "about", "x")
    page = page_of(tmp_path, *(html.section(id, f"Part {id}", figure(chart, id)) for id in "ab"))
    assert [(a.attributes["href"], a.text) for a in page.all("nav")[0].all("a")] == [("#a", "Part a"), ("#b", "Part b")]
    tables = [div for div in page.all("div", "scroll") if div.all("table")]
    assert len(tables) == 2 and all(div.attributes["tabindex"] == "0" and div.attributes["aria-label"] for div in tables)


def test_the_table_of_a_long_line_keeps_both_ends_and_says_how_many_rows_there_are(tmp_path: Path) -> None:
    chart = lines([Series("loss", {float(x): 1000.0 - x for x in range(900)})], "about", "epoch")
    page = page_of(tmp_path, html.section("a", "A", figure(chart, "Loss")))
    shown = [int(row.children[0].text) for row in page.all("tbody")[0].all("tr")]
    assert shown[0] == 0 and shown[-1] == 899 and len(shown) == len(set(shown)) <= 30 and len(chart.rows) == 900
    assert max(b - a for a, b in pairwise(shown)) <= 40
    assert f"{len(shown)} of 900 rows" in page.all("summary")[0].text
    short = page_of(tmp_path, html.section("a", "A", figure(Chart(Markup(""), ["x"], [["1"], ["2"]]), "Loss")))
    assert len(short.all("tbody")[0].all("tr")) == 2 and "rows" not in short.all("summary")[0].text


@pytest.mark.parametrize("percent", [0.2, 30.0, 97.0])
def test_a_logit_axis_is_that_of_scipy(percent: float) -> None:
    scale = Scale(0.1, 99.0, 0, 1, logit=True)
    low, high = logit(0.001), logit(0.99)
    assert scale(percent) == pytest.approx((logit(percent / 100) - low) / (high - low))


def test_labels_at_the_ends_of_lines_do_not_cover_one_another() -> None:
    plot = Plot(100, 100, Scale(0, 1, 0, 50), Scale(0, 100, 100, 0))
    plot.end_labels([(50.0, "a", ""), (50.5, "b", ""), (51.0, "c", ""), (90.0, "d", "")])
    places = sorted(float(re.findall(r' y="([\d.]+)"', part)[0]) for part in plot.parts)
    assert all(b - a >= 11 for a, b in pairwise(places))


def test_an_axis_between_whole_numbers_says_its_fractions() -> None:
    plot = Plot(100, 50, Scale(-0.5, 1.6, 0, 80), Scale(0, 50, 0, 50))
    plot.columns(0, 40, 5)
    numbers = [re.findall(">(.*)<", part)[0] for part in plot.parts if part.startswith("<text")]
    assert numbers == ["\u22120.5", "0", "0.5", "1", "1.5"]


def test_markdown_has_a_pages_words_and_tables_without_charts_and_what_is_closed() -> None:
    chart = lines([Series("a", {1.0: 1.0})], "drawn", "x")
    marked = html.row(["a|b", html.fill("<b>{}</b>{}", "1.0", html.small("0.5 to 1.5")), 2])
    group = html.join("Group", html.small("of rows"))
    every = html.table("All", ["name", "first", "<i>second</i>"], {group: [marked, ("c_d", "", "3")], "empty": []})
    shown = [figure(chart, "A chart"), html.more("Closed", every), every, html.facts([("Rows", "1 * 2"), ("Left out", "")])]
    text = markdown("name", html.fill("best {}", "x_y"), html.section("s", "Title", *shown, html.tag("pre", "a_b  *c*")).content)
    assert text.split("\n\n") == [
        "# name",
        "**best x\\_y.**",
        "## Title",
        "#### A chart",
        "| name | first | \\<i\\>second\\</i\\> |\n| --- | ---: | ---: |\n| **Group (of rows)** |  |  |\n"
        "| a\\|b | **1.0** (0.5 to 1.5) | 2 |\n| c\\_d |  | 3 |",
        "- Rows: 1 \\* 2",
        "```\na_b  *c*\n```\n",
    ]
