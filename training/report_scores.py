"""The scores on a run's page: the headline, the tiles below it, and every score beside chance and the number of queries."""

import math
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


def headline(result: dict[str, Any], data: HeldOut) -> Markup:
    """The mean recall at the smallest k beside chance, and directions that may be chance by their 95 % intervals."""
    result = _reported(result)
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
    rows, made = {row.path: row for row in _rows(_reported(result), data)}, []
    recalls = [rows[f"retrieval/{data.dataset}/mean_recall@{k}"] for k in sorted({*data.settings.recall_at})]
    shown = [(row, row.title, f"{row.about}, mean of both directions") for row in dict.fromkeys((recalls[0], recalls[-1]))]
    for label, classes in sorted(data.classes.items(), key=lambda entry: -len(entry[1]))[:2]:
        about = f"right class of {len(classes)} on the first guess"
        shown.append((rows[f"zero_shot/{data.dataset}_{label}/top1"], f"Zero-shot {label}", about))
    for row, title, about in shown:
        largest = "" if row.largest is None else f", always the largest class {row.largest:.1f}\u00a0%"
        beside = html.paragraph("chance {}\u00a0%{}", _percent(row.chance), largest)
        below = html.bar(row.value, row.chance), html.paragraph("{}", about), beside
        made.append(html.tile(title, _percent(row.value), "%", row.path, *below))
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
    test, reported = result.get("test"), _reported(result)
    of_split = "Scores, images and curves below are of split {}, on which the checkpoint was chosen, and of the last step."
    k, first = _first(reported, data)
    queries = reported["sample_sizes"][f"retrieval/{data.dataset}/image_to_text_recall@{k}"]
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


def _reported(result: dict[str, Any]) -> dict[str, Any]:
    """With the scores on the test split, where the run has one."""
    return result | (result.get("test") or {})


def _first(result: dict[str, Any], data: HeldOut) -> tuple[int, Score]:
    """The smallest k, and the mean recall at it."""
    k = min(data.settings.recall_at)
    return k, next(row for row in _rows(result, data) if row.path == f"retrieval/{data.dataset}/mean_recall@{k}")


def _table(result: dict[str, Any], data: HeldOut) -> Markup:
    """All scores by direction of retrieval and by label; unknown kinds of scores come last."""
    marked = Markup('<span class="hidden">value as a bar; </span>mark: chance')
    titles = ("score", "value, %", marked, "chance", "largest class", "n")
    retrieval, sentences = f"retrieval/{data.dataset}/", number_format.count(len(data.settings.templates), "sentence")
    groups = {}
    for way, title in DIRECTIONS.items():
        query, answer, other = ("image", "caption", "text_to_image")
        if way == "text_to_image":
            query, answer, other = ("caption", "image", "image_to_text")
        candidates = result["sample_sizes"][f"{retrieval}{other}_recall@{min(data.settings.recall_at)}"]
        groups[retrieval + way] = (title.capitalize(), f"the {answer} of a held-out {query} among {candidates:,}")
    groups[f"{retrieval}mean"] = ("Mean of both directions", "")
    for label, names in data.classes.items():
        about = f"the class of a held-out image among {len(names)}, by the classes' names in {sentences}"
        groups[f"zero_shot/{data.dataset}_{label}/"] = (f"Zero-shot: {label}", about)
    bodies: dict[str, list[Markup]] = {prefix: [] for prefix in (*groups, "")}
    for row in _rows(result, data):
        values = [html.cell(_percent(row.value), "number value"), html.cell(html.bar(row.value, row.chance))]
        values += map(html.cell, (_percent(row.chance), _percent(row.largest), row.n))
        line = html.row(html.fill("{}{}", row.title, html.small(row.about)), *values, tooltip=row.path)
        bodies[next(prefix for prefix in bodies if row.path.startswith(prefix))].append(line)
    groups[""] = ("Other scores", "")
    made = ([html.group(*groups[prefix], len(titles)), *lines] for prefix, lines in bodies.items() if lines)
    return html.table("Scores", titles, *made, style="run")


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
