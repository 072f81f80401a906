"""The tables of a sweep's page: heat maps over the grid, every cell in the style of a paper, and comparisons of pairs."""

import math
from itertools import product
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format
from tuning.reporting.sweep_data import Measure, Sweep, records

_MANY_COLUMNS = 8
_PAIR = ("difference", "sd", "seeds", "se of items", "p", "p Holm", "verdict")


def grid(sweep: Sweep) -> html.Section | None:
    """A heat map of the score, and one of each metric beside it."""
    if not sweep.info["axes"]:
        return None
    chosen = f", of the point of each cell that was best on the {sweep.words['validation']} split"
    if not sweep.parameters:
        chosen = "; no cell was searched, so nothing was selected before"
    about = html.paragraph(
        "Mean over seeds on the {test} split{}. The stronger the colour, the better a cell is within its map. Small print: "
        "bootstrap interval of the mean <b>over seeds, on the same test items</b> (nominally 95 %; with three seeds it is the "
        "span of all three, and covers less; none where all seeds score the same) and n, the number of seeds. Another draw of "
        'test items is not in it, but in the <a href="#pairs">comparison of pairs</a>{}. &#9733; marks the best mean, &asymp; '
        "a cell level with it: not distinguishable from the leader.",
        chosen,
        "" if sweep.verdict.over_items else " only where runs kept their items, which these did not",
        **sweep.words,
    )
    main, *others = (_heat_map(sweep, measure) for measure in (sweep.score, *sweep.measures))
    return html.section("grid", "Grid", about, main, html.div("maps", *others))


def _heat_map(sweep: Sweep, measure: Measure) -> Markup:
    """The first axis across and the others down, or the other way round where a grid is wide."""
    first, rest = sweep.info["axes"][0], sweep.info["axes"][1:]
    by_labels = {tuple(labels): cell for cell, labels in sweep.cells.items()}
    columns, rows = list(first["labels"]), list(product(*(axis["labels"] for axis in rest)))
    cells = [[_heat_cell(sweep, by_labels.get((label, *row)), measure) for label in columns] for row in rows]
    heads, across, down = [", ".join(row) for row in rows], first["title"], " x ".join(axis["title"] for axis in rest)
    if len(columns) > _MANY_COLUMNS and len(rows) < len(columns):
        cells = [list(column) for column in zip(*cells, strict=True)]
        columns, heads, across, down = heads, columns, down, across
    above = html.tag("th", across, style="axis", scope="colgroup", colspan=len(columns)) if across and len(columns) > 1 else ""
    titles = [html.tag("th", down, style="axis", scope="col")]
    titles += [html.tag("th", column, scope="col", width=f"{85 / len(columns):.1f}%") for column in columns]
    lines = [html.tag("tr", html.tag("th", name, scope="row"), *line) for name, line in zip(heads, cells, strict=True)]
    head = html.tag("thead", html.tag("tr", html.tag("td"), above) if above else "", html.tag("tr", *titles))
    table = html.table(f"{measure.title} over the grid", head, lines)
    caption = html.tag("figcaption", measure.title + (", %" if measure.percent else ""), title=measure.path)
    return html.tag("figure", caption, table, style="heat" + " main" * (measure == sweep.score))


def _heat_cell(sweep: Sweep, cell: str | None, measure: Measure) -> Markup:
    if cell is None or not sweep.figures[cell, measure.key]["n"]:
        state = "not planned" if cell is None else sweep.state(cell)
        why = html.small("not measured" if state == "results" else state)
        return html.tag("td", why, style="none", title=cell or "")
    row, known = sweep.figures[cell, measure.key], sweep.means(measure)
    best = measure.better(known)
    heat = round(0.5 - 0.46 * abs(row["mean"] - best) / ((max(known) - min(known)) or 1.0), 3)
    style, marked = "", ""
    if row["mean"] == best:
        style, marked = "best", "\N{BLACK STAR} best"
    elif measure == sweep.score and cell in sweep.verdict.level_with and sweep.verdict.resolution is not None:
        style, marked = "level", "\N{ALMOST EQUAL TO} level"
    ends = html.NDASH.join(map(measure.shown, (row["low"], row["high"]))) if number_format.is_number(row["low"]) else ""
    details = html.small(ends), html.small(f"n {int(row['n'])}"), html.small(marked, "mark")
    words = '<td class="{}" title="{}" style="background:rgb(var(--heat) / {})"><span>{}</span>\n{}</td>'
    return html.fill(words, style, cell, heat, measure.shown(row["mean"]), html.join(*details))


def cells(sweep: Sweep) -> html.Section:
    """A row a cell: its best point, mean and sd of every measure, n, rank and seconds."""
    measures, axes = [*sweep.measures, sweep.score], sweep.info["axes"] or [{"title": "cell", "key": "cell"}]
    titled = [(entry["title"], entry["key"]) for entry in (*axes, *sweep.parameters)]
    titled += [(measure.title, measure.path) for measure in measures]
    titles = [*(html.tag("span", title, title=key) for title, key in titled), "n", "rank", "time"]
    lines = []
    for cell, labels in sweep.cells.items():
        point, figures, state = sweep.point(cell), sweep.figures[cell, "score"], sweep.state(cell)
        line: list[Any] = [
            *(labels or [cell]),
            *(number_format.parameter(point.get(parameter["key"])) for parameter in sweep.parameters),
        ]
        means = [html.tag("span", state, style="word"), *[""] * (len(measures) - 1)]
        line += [_mean(sweep, measure, cell) for measure in measures] if state == "results" else means
        rank = int(figures["rank"]) if number_format.is_number(figures["rank"]) else ""
        line += [int(figures["n"]), rank, number_format.duration(figures["seconds"])]
        lines.append(html.row(line, len(axes), "leader" if cell == sweep.verdict.leader else ""))
    chances = [number_format.value(measure.chance) for measure in measures]
    before = [""] * (len(titled) - len(measures) - 1)
    lines += [html.row(["chance", *before, *chances, "", "", ""], len(axes), "foot")] if any(chances) else []
    sizes: dict[int, list[str]] = {}
    for path, size in sweep.info["sample_sizes"].items():
        if path in sweep.names:
            sizes.setdefault(size, []).append(sweep.names[path])
    counts = "; ".join(f"{n:,} ({', '.join(names)})" if len(sizes) > 1 else f"{n:,}" for n, names in sizes.items())
    about = html.paragraph(
        "{} on the {test} split: mean and, in brackets, standard deviation over n seeds; percentages unless the name says "
        "otherwise. Bold: the best mean of a column. Time is that of one final run.",
        "The best point of every cell" if sweep.parameters else "Every cell",
        **sweep.words,
    )
    items = html.soft("Items of the {test} split that a metric is of: {}.", counts, **sweep.words) if sizes else ""
    return html.section("cells", "Cells", about, html.table("Cells", titles, lines, len(axes), "paper"), items)


def _mean(sweep: Sweep, measure: Measure, cell: str) -> Markup:
    row = sweep.figures[cell, measure.key]
    best = row["mean"] == measure.better(sweep.means(measure), default=math.nan)
    spread = measure.shown(row["sd"])
    return html.join(html.tag("b" if best else "span", measure.shown(row["mean"])), html.small(f"({spread})" if spread else ""))


def pairs(sweep: Sweep) -> html.Section:
    """The leader against every other cell, and all comparisons."""
    verdict, every, of_leader = sweep.verdict, [], []
    for row in records(sweep.comparisons):
        word = "better" if row["distinguishable"] else "within noise"
        if math.isnan(row["p"]):
            word = "not testable" if row["n"] > 1 else "too few seeds"
        difference, sd, se = map(sweep.score.shown, (row["difference"], row["sd"], row["se_items"]))
        p, adjusted = map(number_format.probability, (row["p"], row["p_adjusted"]))
        figures = [sd, str(int(row["n"])), se, p, adjusted, word]
        every.append([row["better"], row["worse"], difference, *figures])
        if row["better"] == verdict.leader:
            of_leader.append([row["worse"], difference, *figures])
        elif row["worse"] == verdict.leader:  # behind on the seeds that both have
            of_leader.append([row["better"], f"\N{MINUS SIGN}{difference}", *figures])
    if not every:
        return html.section("pairs", "Pairs", html.paragraph("There are no two cells with results to compare{}.", sweep.yet))
    compared = number_format.count(verdict.comparisons, "comparison")
    se = '"Se of items" is the standard error of a difference over test items, each of which stands for its group. '
    p = f"p is of the test that the head of this page describes, p Holm corrected for {compared}. "
    about = html.paragraph(
        "Differences are means over shared seeds of the difference seed by seed, in points of {score}; sd is their standard "
        'deviation. {}{}"Within noise" does not mean equal: {} cannot tell.',
        se if verdict.over_items else "",
        p if verdict.comparisons else "",
        "these seeds and items" if verdict.over_items else "these seeds",
        **sweep.words,
    )
    leading = html.table("Pairs with the leader", [f"{verdict.leader} against", *_PAIR], of_leader)
    table = html.table("All pairs", ["better mean", "than", *_PAIR], every, text=2)
    others = html.more(f"All {number_format.count(len(every), 'pair')}", table) if len(every) > len(of_leader) else ""
    return html.section("pairs", "Pairs", about, leading, others)
