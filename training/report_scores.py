"""The scores on a run's page: the headline, the tiles below it, and every score beside chance and the number of queries."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation.metrics import DIRECTIONS, chances, metric
from evaluation.reporting import html, number_format
from evaluation.suite import HeldOut
from pipelines.program.wilson import wilson


@dataclass(frozen=True)
class Score:
    """A score of the run, with its baselines; those of unknown kinds are titled by their paths."""

    path: str
    title: str
    about: str
    value: float
    chance: float | None
    largest: float | None  # of always naming the largest class
    n: str
    k: int  # of a recall; 0: of none, or of all

    @property
    def bar(self) -> Markup:
        return html.bar(self.value, self.chance)


def headline(result: dict[str, Any], data: HeldOut) -> Markup:
    """The mean recall at the smallest k beside chance, and directions that may be chance by their 95 % intervals."""
    result = result | (result.get("test") or {})
    k, first = _first(result, data)
    hollow = []
    for direction, title in DIRECTIONS.items():
        path = f"retrieval/{data.dataset}/{direction}_recall@{k}"
        value, chance, n = result["metrics"][path], result["baselines"][path]["chance"], result["sample_sizes"][path]
        if wilson(n * value / 100, n)[0] <= chance / 100:
            hollow.append(f"{title}, {value:.1f}\u00a0% by {chance:.1f}\u00a0%")
    return html.fill(
        '{} in {:.1f}\u00a0% of <span class="whole">held-out</span> searches; by chance it would be in {}\u00a0%{}',
        "The right match comes first" if k == 1 else f"A right match is among the first {k}",
        first.value,
        _percent(first.chance),
        f"; not distinguishable from chance: {' and '.join(hollow)}" if hollow else "",
    )


def tiles(result: dict[str, Any], data: HeldOut) -> Markup:
    """R@k of both directions, and top-1 of the two labels with most classes."""
    rows = {row.path: row for row in _rows(result | (result.get("test") or {}), data)}
    ks = sorted({min(data.settings.recall_at), max(data.settings.recall_at)})
    recalls = [rows[f"retrieval/{data.dataset}/mean_recall@{k}"] for k in ks]
    shown = [(row, row.title, f"{row.about}, mean of both directions") for row in recalls]
    for label in sorted(data.classes, key=lambda label: -len(data.classes[label]))[:2]:
        about = f"right class of {len(data.classes[label])} on the first guess"
        shown.append((rows[f"zero_shot/{data.dataset}_{label}/top1"], f"Zero-shot {label}", about))
    made = []
    for row, title, about in shown:
        largest = "" if row.largest is None else f", always the largest class {row.largest:.1f}\u00a0%"
        beside = html.paragraph("chance {}\u00a0%{}", _percent(row.chance), largest)
        made.append(html.tile(title, _percent(row.value), "%", row.path, row.bar, html.paragraph("{}", about), beside))
    return html.div("tiles", *made)


def test(result: dict[str, Any], data: HeldOut) -> html.Section | None:
    """The chosen checkpoint's scores on the test split, where the run has one: `data` is the split that it was chosen on."""
    test = result.get("test")
    if test is None:
        return None
    about = html.paragraph(
        "Of the run's evaluations on split <b>{t[chosen_on]}</b> the one at step {t[step]:,} had the best "
        "<code>{t[metric]}</code>: {t[value]:.1f} (at the end: {last:.1f}). That checkpoint, in <code>best/</code>, was then "
        "scored on split <b>{t[split]}</b>, {t[samples]:,} pairs that were part of no choice.",
        t=test,
        last=next(row.value for row in _rows(result, data) if row.path == test["metric"]),
    )
    return html.section("test", "Test of the chosen checkpoint", about, _table(test, data), link="Test")


def scores(result: dict[str, Any], data: HeldOut) -> html.Section:
    """Every score of the last step, with an interval of the first."""
    test = result.get("test")
    of_split = "Scores, images and curves below are of split {}, on which the checkpoint was chosen, and of the last step."
    k, first = _first(result | (test or {}), data)
    queries = (result | (test or {}))["sample_sizes"][f"retrieval/{data.dataset}/image_to_text_recall@{k}"]
    # Of one direction: the two are about the same pairs, so their mean is hardly surer than either.
    low, high = (100 * end for end in wilson(queries * first.value / 100, queries))
    return html.section(
        "scores",
        f"Scores on split {test['chosen_on']}" if test else "Scores",
        html.paragraph(of_split, test["chosen_on"]) if test else "",
        html.paragraph(
            "Images and captions are embedded in one space. R@k: the percentage of queries with a right answer among the k "
            "nearest. All after the last step of <b>one run with seed {}</b>; n is the number of queries.",
            result["seed"],
        ),
        html.soft(
            "Uncertainty: {:,} queries a direction. The score on all such pairs is {:.1f} to {:.1f}&nbsp;% (95&nbsp;%, Wilson's "
            "interval), where {:.1f}&nbsp;% was measured; another seed changes it too. The more candidates, the lower R@k: "
            "compare only with scores on as many candidates.",
            *(queries, low, high, first.value),
        ),
        _table(result, data),
        html.soft(
            "Chance: a random order, or a random class. Largest class: the best that naming the same class for every image can "
            "reach. A tie counts against the model."
        ),
        link="Scores",
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _first(result: dict[str, Any], data: HeldOut) -> tuple[int, Score]:
    """The smallest k, and the mean recall at it."""
    k = min(data.settings.recall_at)
    return k, next(row for row in _rows(result, data) if row.path == f"retrieval/{data.dataset}/mean_recall@{k}")


def _table(result: dict[str, Any], data: HeldOut) -> Markup:
    """All scores, by group."""
    marked = Markup('<span class="hidden">value as a bar; </span>mark: chance')
    titles = ("score", "value, %", marked, "chance", "largest class", "n")
    bodies = ([html.group(title, about, len(titles)), *map(_line, rows)] for title, about, rows in _groups(result, data))
    return html.table("Scores", titles, *bodies, name="run")


def _line(score: Score) -> Markup:
    baselines = map(html.cell, map(_percent, (score.chance, score.largest)))
    cells = html.cell(_percent(score.value), "number value"), html.cell(score.bar), *baselines, html.cell(score.n)
    return html.row(html.fill("{}{}", score.title, html.small(score.about)), *cells, tooltip=score.path)


def _groups(result: dict[str, Any], data: HeldOut) -> Iterable[tuple[str, str, list[Score]]]:
    """Title, explanation and scores of each direction of retrieval and each label; unknown kinds of scores come last."""
    retrieval, sentences = f"retrieval/{data.dataset}/", number_format.count(len(data.settings.templates), "sentence")
    groups: dict[str, tuple[str, str]] = {}
    for way, other, query, answer in (
        ("image_to_text", "text_to_image", "image", "caption"),
        ("text_to_image", "image_to_text", "caption", "image"),
    ):
        candidates = result["sample_sizes"][f"{retrieval}{other}_recall@{min(data.settings.recall_at)}"]
        groups[f"{retrieval}{way}"] = (DIRECTIONS[way].capitalize(), f"the {answer} of a held-out {query} among {candidates:,}")
    groups[f"{retrieval}mean"] = ("Mean of both directions", "")
    for label, names in data.classes.items():
        about = f"the class of a held-out image among {len(names)}, by the classes' names in {sentences}"
        groups[f"zero_shot/{data.dataset}_{label}/"] = (f"Zero-shot: {label}", about)
    groups[""] = ("Other scores", "")
    rows: dict[str, list[Score]] = {prefix: [] for prefix in groups}
    for row in _rows(result, data):
        rows[next(prefix for prefix in groups if row.path.startswith(prefix))].append(row)
    return ((*groups[prefix], listed) for prefix, listed in rows.items() if listed)


def _rows(result: dict[str, Any], data: HeldOut) -> list[Score]:
    """Every score, recalls by k and that of all k last."""
    chance, largest, sizes = chances(result["baselines"]), result["baselines"], result["sample_sizes"]
    rows = []
    for path, value in result["metrics"].items():
        known, k = metric(path, [data.dataset]), path.partition("_recall@")[2]
        title, about, n = known.title, known.about, f"{sizes[path]:,}" if path in sizes else ""
        if path.endswith("/mean_recall"):
            title = "all of these"
        if k:
            title, about = f"R@{k}", "the right one comes first" if k == "1" else f"a right one is among the first {k}"
            if not n:  # of both directions
                both = [f"{sizes[path.replace('mean_', f'{way}_')]:,}" for way in DIRECTIONS]
                n = f"2 x {both[0]}" if both[0] == both[1] else " + ".join(both)
        rows.append(
            Score(path, title, about, value, chance.get(path), largest.get(path, {}).get("largest_class"), n, int(k or 0))
        )
    return sorted(rows, key=lambda row: row.k or math.inf)
