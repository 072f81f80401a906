"""The tables of a sweep's page: heat maps over the grid, every cell in the style of a paper, and comparisons of pairs."""

import math
from itertools import product

from markupsafe import Markup

from evaluation.reporting import html, number_format
from tuning.reporting.sweep_data import Measure, Sweep, records

_MANY_COLUMNS = 8
_PAIR = ("difference", "sd", "seeds", "se of items", "p", "p Holm", "verdict")


def grid(sweep: Sweep) -> html.Section | None:
    """A heat map of the score, and one of each metric beside it."""
    if not sweep.axes:
        return None
    chosen = "; no cell was searched, so nothing was selected before"
    if sweep.parameters:
        chosen = f", of the point of each cell that was best on the {sweep.validation_split} split"
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
    others = [_heat_map(sweep, measure) for measure in sweep.measures]
    return html.section("grid", "Grid", about, _heat_map(sweep, sweep.score), html.div("maps", *others))


def _heat_map(sweep: Sweep, measure: Measure) -> Markup:
    first, rest = sweep.axes[0], sweep.axes[1:]
    by_labels = {tuple(labels): cell for cell, labels in sweep.cells.items()}
    columns, rows = list(first["labels"]), list(product(*(axis["labels"] for axis in rest)))
    cells = [[_heat_cell(sweep, by_labels.get((label, *row)), measure) for label in columns] for row in rows]
    heads, across, down = [", ".join(row) for row in rows], first["title"], " x ".join(axis["title"] for axis in rest)
    if len(columns) > _MANY_COLUMNS and len(rows) < len(columns):
        cells = [list(column) for column in zip(*cells, strict=True)]
        columns, heads, across, down = heads, columns, down, across
    above = ""
    if across and len(columns) > 1:
        words = '<tr><td></td><th class="axis" scope="colgroup" colspan="{}">{}</th></tr>'
        above = html.fill(words, len(columns), across)
    width = round(85 / len(columns), 1)
    titles = (html.fill('<th scope="col" style="width:{}%">{}</th>', width, column) for column in columns)
    words = '<thead>{}<tr><th class="axis" scope="col">{}</th>{}</tr></thead>'
    lines = [html.row(name, *line) for name, line in zip(heads, cells, strict=True)]
    table = html.table(f"{measure.title} over the grid", html.fill(words, above, down, html.join(*titles)), lines)
    caption = html.fill('<figcaption title="{}">{}{}</figcaption>', measure.path, measure.title, ", %" if measure.percent else "")
    return html.fill('<figure class="heat{}">{}{}</figure>', " main" if measure == sweep.score else "", caption, table)


def _heat_cell(sweep: Sweep, cell: str | None, measure: Measure) -> Markup:
    if cell is None or not sweep.figures[cell, measure.key]["n"]:
        state = "not planned" if cell is None else sweep.state(cell)
        words = '<td class="none" title="{}">{}</td>'
        return html.fill(words, cell or "", html.small("not measured" if state == "results" else state))
    row, known = sweep.figures[cell, measure.key], sweep.means(measure)
    best, interval = measure.better(known), (row["low"], row["high"])
    heat = round(0.5 - 0.46 * abs(row["mean"] - best) / ((max(known) - min(known)) or 1.0), 3)
    name, marked = "", ""
    if row["mean"] == best:
        name, marked = "best", "\N{BLACK STAR} best"
    elif measure == sweep.score and cell in sweep.verdict.level_with and sweep.verdict.resolution is not None:
        name, marked = "level", "\N{ALMOST EQUAL TO} level"
    ends = html.small(html.NDASH.join(map(measure.shown, interval)) if number_format.is_number(row["low"]) else "")
    words = '<td class="{}" title="{}" style="background:rgb(var(--heat) / {})"><span>{}</span>\n{}</td>'
    details = html.join(ends, html.small(f"n {int(row['n'])}"), html.small(marked, "mark"))
    return html.fill(words, name, cell, heat, measure.shown(row["mean"]), details)


def cells(sweep: Sweep) -> html.Section:
    """A row a cell: its best point, mean and sd of every measure, n, rank and seconds."""
    measures, axes = [*sweep.measures, sweep.score], sweep.axes or [{"title": "cell", "key": "cell"}]
    titled = [(entry["title"], entry["key"]) for entry in (*axes, *sweep.parameters)]
    titled += [(measure.title, measure.path) for measure in measures]
    titles = [html.fill('<span title="{}">{}</span>', key, title) for title, key in titled]
    lines = []
    for cell, labels in sweep.cells.items():
        first, *others = labels or [cell]
        point, figures, state = sweep.point(cell), sweep.figures[cell, "score"], sweep.state(cell)
        line = [html.fill('<th scope="row">{}</th>', label) for label in others]
        line += [html.cell(number_format.parameter(point.get(parameter["key"]))) for parameter in sweep.parameters]
        if state == "results":
            line += [html.cell(_mean(sweep, measure, cell)) for measure in measures]
        else:
            line.append(html.fill('<td class="number word" colspan="{}">{}</td>', len(measures), state))
        rank = int(figures["rank"]) if number_format.is_number(figures["rank"]) else ""
        line += map(html.cell, (int(figures["n"]), rank, number_format.duration(figures["seconds"])))
        lines.append(html.row(first, *line, style="leader" if cell == sweep.verdict.leader else ""))
    foot, chances = [], [number_format.value(measure.chance) for measure in measures]
    if any(chances):
        words = '<tr class="foot"><th scope="row" colspan="{}">chance</th>{}<td colspan="3"></td></tr>'
        foot = [html.fill(words, len(axes) + len(sweep.parameters), html.join(*map(html.cell, chances)))]
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
    table = html.table("Cells", [*titles, "n", "rank", "time"], lines, foot, text=len(axes), style="paper")
    return html.section("cells", "Cells", about, table, items)


def _mean(sweep: Sweep, measure: Measure, cell: str) -> Markup:
    row = sweep.figures[cell, measure.key]
    best = row["mean"] == measure.better(sweep.means(measure), default=math.nan)
    mean = html.fill("<b>{}</b>" if best else "{}", measure.shown(row["mean"]))
    return html.fill("{} {}", mean, html.small(f"({spread})" if (spread := measure.shown(row["sd"])) else ""))


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
        words = "There are no two cells with results to compare{}."
        return html.section("pairs", "Pairs", html.paragraph(words, " yet" if sweep.running else ""))
    pooled = "the spread of all pairs together, or the pair's own where that is larger"
    if verdict.over_items:
        spread = f" ({pooled})" if verdict.comparisons > 1 else ""
        test = (
            '"Se of items" is the standard error of a difference over test items, each of which stands for its group. p is '
            f"against the chance of both, of seeds{spread} and of items;"
        )
    else:
        spread = f" against {pooled}" if verdict.comparisons > 1 else ""
        test = f"p is of a paired t-test{spread}: of another run on the same test items, and not of other items;"
    about = html.paragraph(
        "Differences are means over shared seeds of the difference seed by seed, in points of {score}; sd is their standard "
        'deviation. {} p Holm is corrected for {}. "Within noise" does not mean equal: {} cannot tell.',
        test,
        number_format.count(verdict.comparisons, "comparison"),
        "these seeds and items" if verdict.over_items else "these seeds",
        **sweep.words,
    )
    leading, others = html.table("Pairs with the leader", [f"{verdict.leader} against", *_PAIR], of_leader), Markup("")
    if len(every) > len(of_leader):
        table = html.table("All pairs", ["better mean", "than", *_PAIR], every, text=2)
        others = html.more(f"All {number_format.count(len(every), 'pair')}", table)
    return html.section("pairs", "Pairs", about, leading, others)
