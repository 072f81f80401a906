"""The search on a sweep's page: sensitivity to each parameter, all trials at once, and which parameters mattered."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.chart import SHADES, Chart, Plot, Scale, Table, score_range
from tuning.reporting import space
from tuning.reporting.charts import MULTIPLE
from tuning.reporting.sweep_data import Sweep, records

_WIDE = (900.0, 400.0)


def search(sweep: Sweep) -> html.Section | None:
    if not sweep.parameters:
        return None
    edges = [
        html.fill('<li><span class="cell">{}</span>: {}. A better point may lie beyond.</li>', *edge)
        for edge in space.edges(sweep)
    ]
    return html.section(
        "search",
        "Search",
        html.paragraph(
            "{} on the {} split, one seed a point: the best point of a cell was selected by it. It is not comparable with the "
            "figures above, which are of the {} split and several seeds.",
            sweep.heading,
            sweep.validation_split,
            sweep.test_split,
        ),
        html.join(html.heading("Ranges to widen"), html.fill("<ul>\n{}</ul>", html.join(*edges))) if edges else "",
        *(_sensitivity(sweep) or [html.paragraph("No search trial has ended yet.")]),
        *_parallel_coordinates(sweep),
        html.heading("Parameter importance"),
        *_importances(sweep),
        link="Search",
    )


def _importances(sweep: Sweep) -> list[Markup]:
    groups = space.importances(sweep)
    if not groups:
        words = "To tell which parameters mattered takes at least {} finished search trials that differ in two of them."
        return [html.paragraph(words, space.MIN_TRIALS)]
    figures = []
    for group in groups:
        words = '<span>{}</span>{}<span class="share">{:.0f}&nbsp;%</span>'
        bars = [html.fill(words, entry["title"], html.bar(100 * entry["share"]), 100 * entry["share"]) for entry in group["bars"]]
        about = html.small(f"best {group['top']} of {number_format.count(group['trials'], 'trial')}")
        figures.append(
            html.fill("<figure><figcaption>{}{}</figcaption>{}</figure>", group["label"], about, html.div("bars", *bars))
        )
    about = html.soft(
        "Share of each parameter in what distinguishes the best trials of a search from the rest (PED-ANOVA on finished "
        "trials; those that failed or were stopped do not count). From few trials it is a hint and no measurement. Cells with "
        "fewer than {} finished trials, or with one parameter, have none.",
        space.MIN_TRIALS,
    )
    return [about, html.div("charts", *figures)]


def _sensitivity(sweep: Sweep) -> list[Markup]:
    """For every searched parameter a chart a cell: score on the validation split against the value."""
    ended = sweep.search[sweep.search["status"].isin(["finished", "failed"])]
    limits = score_range(ended["score"].tolist())
    elements = []
    for parameter in sweep.parameters:
        figures, log = [], False
        for cell in sweep.cells:
            rows = ended[(ended["cell"] == cell) & ended[parameter["key"]].notna()]
            if len(rows) and limits is not None:
                drawn, on_log = _sensitivity_chart(sweep, cell, parameter, rows, limits)
                figures.append(drawn)
                log = log or on_log
        if figures:
            title = html.fill(
                '<span title="{}">Sensitivity to {}{}</span>', parameter["key"], parameter["title"], ", log scale" if log else ""
            )
            words = (
                '{}, upwards, against {}. Large, ringed dot: the chosen point. <b class="flag">&times;</b> at the bottom: a '
                "trial that failed. Trials that were stopped early are left out."
            )
            elements += [
                html.heading(title),
                html.soft(words, sweep.heading, parameter["title"]),
                html.div("charts small", *figures),
            ]
    return elements


def _sensitivity_chart(
    sweep: Sweep, cell: str, parameter: Mapping[str, Any], rows: pd.DataFrame, limits: tuple[float, float]
) -> tuple[Markup, bool]:
    width, height = MULTIPLE
    searched = space.range_of(sweep, cell, parameter)
    values = rows[parameter["key"]].tolist()
    y = Scale(*limits, height - 26, 8)
    if searched is None:
        choices: list[Any] = sorted(set(values), key=str)
        names: Any = {i: number_format.parameter(choice) for i, choice in enumerate(choices)}
        x, places = Scale(-0.5, len(choices) - 0.5, 34, width - 8), [choices.index(value) for value in values]
    else:
        x, places, names = Scale(searched.low, searched.high, 42, width - 14, searched.log), values, 4
    plot = Plot(width, height, x, y)
    plot.frame("", names, 4)
    chosen, failed, best, table = sweep.best_points.get(cell), 0, "", []
    for place, value, row in sorted(zip(places, values, records(rows), strict=True), key=lambda entry: entry[0]):
        shown, score = number_format.parameter(value), number_format.value(row["score"], sweep.percent)
        title = f"{row['trial']}: {parameter['title']} {shown}"
        if row["status"] == "failed":
            failed += 1
            plot.cross(place, "failed", f"{title}, failed: {row['reason']}")
        elif score:
            mine = row["point"] == chosen
            best = shown if mine else best
            name, after = ("dot m0 chosen", ", chosen") if mine else ("dot m0 point", "")
            plot.dot(place, row["score"], 4.5 if mine else 2.6, name, f"{title}, {score}{sweep.unit}{after}")
        table.append((row["trial"], shown, score or row["status"]))
    note = f"chosen: {best}" if best else "none chosen"
    side = searched.edge(sweep.point(cell)[parameter["key"]]) if searched and best else ""
    trials = number_format.count(len(rows), "trial")
    about = f"{sweep.title} of {cell} against {parameter['title']}: {trials}, {failed} failed, {note}"
    chart = Chart(plot.svg(about), Table(("trial", parameter["title"], sweep.title), table))
    note = html.fill("{}{}", note, html.fill(' <b class="flag">at the {} edge</b>', side) if side else "")
    return html.figure(chart, cell, note), searched is not None and searched.log


def _parallel_coordinates(sweep: Sweep) -> list[Markup]:
    """Every finished search trial as a line over the grid's axes, the searched parameters and the score."""
    rows = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].notna()]
    axes = [*(axis for axis in sweep.axes if len(axis["labels"]) > 1), *sweep.parameters]
    if rows.empty or not axes:
        return []
    width, height = _WIDE
    low, high = float(rows["score"].min()), float(rows["score"].max())
    ladders = [_ladder(rows[axis["key"]], axis) for axis in axes] + [Scale(low, high, height - 44, 34)]
    titles = [*(axis["title"] for axis in axes), sweep.title]
    plot = Plot(width, height, Scale(0, len(axes), 80, width - 90), Scale(0, height, 0, height))
    table = []
    ordered = records(rows.sort_values("score", ascending=sweep.mode == "max"))
    best = {row["trial"] for row in ordered if row["point"] == sweep.best_points.get(row["cell"])}
    for row in sorted(ordered, key=lambda row: row["trial"] in best):  # the best on top
        values, score = [row[axis["key"]] for axis in axes], number_format.value(row["score"], sweep.percent)
        points = [(i, _height(ladder, v)) for i, (ladder, v) in enumerate(zip(ladders, [*values, row["score"]], strict=True))]
        share = 0.5 if low == high else (row["score"] - low) / (high - low)
        shade = min(SHADES - 1, int(SHADES * (share if sweep.mode == "max" else 1 - share)))
        title, name = f"{row['trial']}: {score}{sweep.unit}", f"shade-{shade}"
        if row["trial"] in best:
            title, name = f"{title}, best of its cell", f"{name} best"
        plot.line(points, name, title)
        table.append([row["trial"], *(number_format.parameter(value) for value in values), score])
    for i, (ladder, title) in enumerate(zip(ladders, titles, strict=True)):
        x = plot.x(i)
        plot.line([(i, 34), (i, height - 44)], "base")
        plot.text(x, 16, title, name="title")
        for value in ladder.ticks(5) if isinstance(ladder, Scale) else ladder:
            plot.text(x + 6, _height(ladder, value) + 3.5, number_format.parameter(value), "start", "halo")
        if i < len(axes) and rows[axes[i]["key"]].isna().any():
            plot.text(x + 6, height - 14.5, "none", "start", "halo")
    trials = number_format.count(len(rows), "search trial")
    about = f"{trials} over {', '.join(titles[:-1])} and {sweep.title} on the validation split"
    chart = Chart(plot.svg(about, "parallel"), Table(["trial", *titles], table[::-1]))
    key = html.join(*(html.fill('<i style="background:var(--shade-{})"></i>', shade) for shade in range(SHADES)))
    return [
        html.heading("All finished search trials"),
        html.soft("A line a trial. Thick: the best of its cell. A line that leaves an axis at the bottom has no such parameter."),
        html.paragraph("worst{}best {} on the {} split", key, sweep.title, sweep.validation_split, style="key"),
        html.scroll("All finished search trials", html.figure(chart, "", "Settings and scores"), "wide"),
    ]


def _ladder(values: pd.Series, axis: Mapping[str, Any]) -> Scale | list[Any]:
    """Heights of one vertical axis: a scale for numbers, a list for labels and choices."""
    known = [value for value in values if number_format.parameter(value)]
    if "labels" in axis:
        return axis["labels"]
    if not known or not all(number_format.is_number(value) for value in known):
        return sorted(set(known), key=str)
    return Scale(min(known), max(known), _WIDE[1] - 44, 34, bool(axis.get("log")) and min(known) > 0)


def _height(ladder: Scale | list[Any], value: Any) -> float:
    """Where a line crosses; what does not apply to a trial crosses below the axis."""
    height = _WIDE[1]
    if isinstance(ladder, Scale):
        return ladder(value) if number_format.is_number(value) else height - 18
    return 34 + (height - 78) * (ladder.index(value) + 0.5) / len(ladder) if value in ladder else height - 18
