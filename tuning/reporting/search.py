"""The search on a sweep's page: ranges to widen, sensitivity to each parameter, all trials at once, which parameters mattered."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.chart import SHADES, Chart, Plot, Scale, figure, score_range
from tuning.importance import MIN_TRIALS, importances
from tuning.reporting.charts import MULTIPLE
from tuning.reporting.sweep_data import Sweep, records

_EDGE = 0.05  # of a range
_WIDE = (900.0, 400.0)
_TOP, _BOTTOM, _NONE = 34.0, _WIDE[1] - 44, _WIDE[1] - 18  # of the vertical axes; where a trial without the parameter crosses


def search(sweep: Sweep) -> html.Section | None:
    if not sweep.parameters:
        return None
    return html.section(
        "search",
        "Search",
        html.paragraph(
            "{Score} on the {validation} split, one seed a point: the best point of a cell was selected by it. It is not "
            "comparable with the figures above, which are of the {test} split and several seeds.",
            **sweep.words,
        ),
        ranges_to_widen(sweep),
        *(_sensitivity(sweep) or [html.paragraph("No search trial has ended yet.")]),
        *_parallel_coordinates(sweep),
        html.tag("h3", "Parameter importance"),
        *_importances(sweep),
    )


def _searched(sweep: Sweep, cell: str, parameter: Mapping[str, Any]) -> tuple[Scale | None, bool]:
    """The range of a numeric parameter in a cell, onto 0 to 1, and whether it is that of the settings, else of what was tried."""
    key = parameter["key"]
    tried = [value for value in sweep.search.loc[sweep.search["cell"] == cell, key] if number_format.is_number(value)]
    # Sweeps of earlier versions kept no ranges.
    told = next(entry.get("ranges", {}).get(key) for entry in sweep.info["cells"] if entry["cell"] == cell)
    if tried and told is not None and told["low"] <= min(tried) <= max(tried) <= told["high"]:
        return Scale(told["low"], told["high"], 0, 1, told["log"]), True
    return (Scale(min(tried), max(tried), 0, 1, bool(parameter.get("log")) and min(tried) > 0) if tried else None), False


def _edge(sweep: Sweep, cell: str, parameter: Mapping[str, Any], value: Any) -> str:
    """`lower` or `upper` where a value lies within 5 % of an end of a range that the settings say."""
    searched, known = _searched(sweep, cell, parameter)
    if searched is None or not known or searched.low == searched.high or not number_format.is_number(value):
        return ""
    return "lower" if searched(value) <= _EDGE else "upper" if searched(value) >= 1 - _EDGE else ""


def ranges_to_widen(sweep: Sweep) -> Markup:
    """Best points at the edge of the searched range."""
    words = '<span class="cell">{}</span>: {} {} is at the edge of its range (its {} end is {}): widen it.'
    edges = []
    for cell in sweep.cells:
        for parameter in sweep.parameters:
            value, (searched, _) = sweep.point(cell).get(parameter["key"]), _searched(sweep, cell, parameter)
            if searched and (side := _edge(sweep, cell, parameter, value)):
                shown, end = map(number_format.parameter, (value, searched.low if side == "lower" else searched.high))
                edge = html.fill(words, cell, parameter["title"], shown, side, end)
                edges.append(html.tag("li", edge, " A better point may lie beyond."))
    return html.join(html.tag("h3", "Ranges to widen"), html.tag("ul", *edges)) if edges else Markup("")


def _importances(sweep: Sweep) -> list[Markup]:
    """Of the whole search, the axes of the grid being parameters too, and of every cell with enough trials."""
    axes = [axis for axis in sweep.info["axes"] if len(axis["labels"]) > 1]
    groups = [("whole search", sweep.search, [*axes, *sweep.parameters])] if len(sweep.cells) > 1 else []
    groups += [(cell, sweep.search[sweep.search["cell"] == cell], sweep.parameters) for cell in sweep.cells]
    words, figures = '<span>{}</span>{}<span class="number">{:.0f}&nbsp;%</span>', []
    for name, trials, columns in groups:
        if found := importances(trials, {column["key"]: bool(column.get("log")) for column in columns}, sweep.mode):
            titles = {column["key"]: column["title"] for column in columns}
            bars = [html.fill(words, titles[key], html.bar(100 * share), 100 * share) for key, share in found.shares.items()]
            about = html.small(f"best {found.best} of {number_format.count(found.trials, 'trial')}")
            figures.append(html.tag("figure", html.tag("figcaption", name, about), html.div("bars", *bars)))
    if not figures:
        words = "To tell which parameters mattered takes at least {} finished search trials that differ in two of them."
        return [html.paragraph(words, MIN_TRIALS)]
    about = html.soft(
        "Share of each parameter in what distinguishes the best trials of a search from the rest (PED-ANOVA on finished "
        "trials; those that failed or were stopped do not count). From few trials it is a hint and no measurement. Cells with "
        "fewer than {} finished trials, or with one parameter, have none.",
        MIN_TRIALS,
    )
    return [about, html.div("charts", *figures)]


def _sensitivity(sweep: Sweep) -> list[Markup]:
    """For every searched parameter a chart a cell: score on the validation split against the value."""
    ended = sweep.search[sweep.search["status"].isin(["finished", "failed"])]
    limits, elements = score_range(ended["score"].tolist()), list[Markup]()
    words = (
        '{Score}, upwards, against {}. Large, ringed dot: the chosen point. <b class="flag">&times;</b> at the bottom: a trial '
        "that failed. Trials that were stopped early are left out."
    )
    for parameter in sweep.parameters:
        rows_of = {cell: ended[(ended["cell"] == cell) & ended[parameter["key"]].notna()] for cell in sweep.cells}
        tried = [cell for cell, rows in rows_of.items() if len(rows)]
        if tried:
            scales = [_searched(sweep, cell, parameter)[0] for cell in tried]
            log = ", log scale" if any(scale and scale.log for scale in scales) else ""
            title = html.tag("span", f"Sensitivity to {parameter['title']}{log}", title=parameter["key"])
            drawn = [_sensitivity_chart(sweep, cell, parameter, rows_of[cell], limits) for cell in tried]
            about = html.soft(words, parameter["title"], **sweep.words)
            elements += [html.tag("h3", title), about, html.div("charts small", *drawn)]
    return elements


def _sensitivity_chart(
    sweep: Sweep, cell: str, parameter: Mapping[str, Any], rows: pd.DataFrame, limits: tuple[float, float]
) -> Markup:
    (width, height), key, (searched, _) = MULTIPLE, parameter["key"], _searched(sweep, cell, parameter)
    x = Scale(0, 0, 34, width - 8, choices=sorted(set(rows[key]), key=str))
    if searched is not None:
        x = replace(searched, start=42, end=width - 14)
    plot = Plot(width, height, x, Scale(*limits, height - 26, 8))
    plot.frame("", 4, 4)
    note, edge, table = "none chosen", Markup(""), []
    for row in sorted(records(rows), key=lambda row: x(row[key])):
        shown, score = number_format.parameter(row[key]), sweep.score.shown(row["score"])
        title = f"{row['trial']}: {parameter['title']} {shown}"
        if row["status"] == "failed":
            at, base = x(row[key]), plot.y.start
            cross = [(at - 3, base - 3), (at + 3, base + 3), (at, base), (at + 3, base - 3), (at - 3, base + 3)]
            plot.pixels(cross, "failed", f"{title}, failed: {row['reason']}")
        elif score:
            chosen = row["point"] == sweep.best_points.get(cell)
            plot.dot(row[key], row["score"], "m0" if chosen else "m0 point", f"{title}, {score}{sweep.score.unit}", chosen=chosen)
            note = f"chosen: {shown}" if chosen else note
            if chosen and (side := _edge(sweep, cell, parameter, row[key])):
                edge = html.tag("b", f"at the {side} edge", style="flag")
        table.append((row["trial"], shown, score or row["status"]))
    trials, failed = number_format.count(len(rows), "trial"), (rows["status"] == "failed").sum()
    about = f"{sweep.score.title} of {cell} against {parameter['title']}: {trials}, {failed} failed, {note}"
    chart = Chart(plot.svg(about), ("trial", parameter["title"], sweep.score.title), table)
    return figure(chart, cell, html.join(note, edge))


def _parallel_coordinates(sweep: Sweep) -> list[Markup]:
    """Every finished search trial as a line over the grid's axes, the searched parameters and the score."""
    rows = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].notna()]
    axes = [axis for axis in sweep.info["axes"] if len(axis["labels"]) > 1]
    axes += [parameter for parameter in sweep.parameters if rows[parameter["key"]].notna().any()]
    if rows.empty or not axes:
        return []
    (width, height), low, high = _WIDE, float(rows["score"].min()), float(rows["score"].max())
    worst, best = (low, high) if sweep.mode == "max" else (high, low)
    ladders = [_ladder(rows[axis["key"]], axis) for axis in axes] + [Scale(low, high, _BOTTOM, _TOP)]
    titles = [*(axis["title"] for axis in axes), sweep.score.title]
    plot, table = Plot(width, height, Scale(0, len(axes), 80, width - 90), Scale(0, height, 0, height)), []
    rows = rows.assign(best=rows["point"] == rows["cell"].map(sweep.best_points))
    # The best on top.
    for row in records(rows.sort_values("score", ascending=sweep.mode == "max").sort_values("best", kind="stable")):
        values, score = [row[axis["key"]] for axis in axes], sweep.score.shown(row["score"])
        shade = min(SHADES - 1, int(Scale(worst, best, 0, SHADES)(row["score"])))
        heights = map(_height, ladders, [*values, row["score"]])
        name, said = (" best", ", best of its cell") if row["best"] else ("", "")
        plot.line(enumerate(heights), f"shade-{shade}{name}", f"{row['trial']}: {score}{sweep.score.unit}{said}")
        table.append([row["trial"], *map(number_format.parameter, values), score])
    for i, (ladder, title) in enumerate(zip(ladders, titles, strict=True)):
        x = plot.x(i)
        plot.line([(i, _TOP), (i, _BOTTOM)], "base")
        plot.text(x, 16, title, name="title")
        for value in ladder.ticks(5):
            plot.text(x + 6, _height(ladder, value) + 3.5, number_format.parameter(value), "start", "halo")
        if i < len(axes) and rows[axes[i]["key"]].isna().any():
            plot.text(x + 6, _NONE + 3.5, "none", "start", "halo")
    trials = number_format.count(len(rows), "search trial")
    about = f"{trials} over {', '.join(titles[:-1])} and {sweep.score.title} on the validation split"
    chart = Chart(plot.svg(about, "parallel"), ["trial", *titles], table[::-1])
    key = html.join(*(html.fill('<i style="background:var(--shade-{})"></i>', shade) for shade in range(SHADES)))
    return [
        html.tag("h3", "All finished search trials"),
        html.soft("A line a trial. Thick: the best of its cell. A line that leaves an axis at the bottom has no such parameter."),
        html.paragraph("worst{}best {score} on the {validation} split", key, style="key", **sweep.words),
        html.scroll("All finished search trials", figure(chart, "", "Settings and scores"), "wide"),
    ]


def _ladder(values: pd.Series, axis: Mapping[str, Any]) -> Scale:
    """One vertical axis: of numbers, or of labels and choices."""
    known = [value for value in values if number_format.parameter(value)]
    if "labels" in axis or not all(number_format.is_number(value) for value in known):
        return Scale(0, 0, _TOP, _BOTTOM, choices=axis.get("labels") or sorted(set(known), key=str))
    return Scale(min(known), max(known), _BOTTOM, _TOP, bool(axis.get("log")) and min(known) > 0)


def _height(ladder: Scale, value: Any) -> float:
    """Where a line crosses; what does not apply to a trial crosses below the axis."""
    applies = value in ladder.choices if ladder.choices else number_format.is_number(value)
    return ladder(value) if applies else _NONE
