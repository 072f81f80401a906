"""The report's charts: learning curves, sensitivity, parallel coordinates, and quality against cost."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from evaluation.reporting.svg import Scale, cross, dot, frame, image, line, path, score_range, text
from pipelines.program import number_format
from tuning import statistics
from tuning.reporting import space
from tuning.reporting.sweep_data import Sweep, records

SHADES = 6  # classes of the sequential scale, from worst to best
_MOST_POINTS = 200
_SMALL = (230.0, 160.0)  # small multiples
_WIDE = (900.0, 400.0)
_COST = (420.0, 330.0)


def learning(sweep: Sweep) -> list[dict[str, Any]]:
    """A chart a cell of score against epoch; all have the same axes."""
    curves = sweep.curves
    if curves.empty or not {"trial", "epoch", "score"} <= set(curves.columns):
        return []
    curves = curves[curves["score"].notna() & curves["epoch"].notna()]
    shown = {cell: _curves_of(sweep, cell, curves) for cell in sweep.cells}
    rows = [row for found in shown.values() for series in (found["thick"], found["thin"]) for row in series.values()]
    limits = score_range([value for series in rows for value in series.values()], sweep.percent)
    if limits is None:
        return []
    last = max(epoch for series in rows for epoch in series)
    leader = shown[sweep.verdict.leader]["mean"] if sweep.verdict.leader else {}
    return [
        {"cell": cell, "note": found["note"], "edge": "", "svg": _learning_chart(sweep, cell, found, leader, limits, last)}
        for cell, found in shown.items()
        if found["thick"] or found["thin"]
    ]


def _curves_of(sweep: Sweep, cell: str, curves: pd.DataFrame) -> dict[str, Any]:
    """Series (epoch -> score) by trial: of the runs that the results are of, or thin, of whatever has begun."""
    results = sweep.results[sweep.results["cell"] == cell]
    thick = _series(curves, results["trial"])
    begun = sweep.final[sweep.final["cell"] == cell]
    if begun.empty:
        begun = sweep.search[sweep.search["cell"] == cell]
    thin = {} if thick else _series(curves, begun["trial"])
    shared = set.intersection(*(set(series) for series in thick.values())) if thick else set()
    mean = {epoch: math.fsum(s[epoch] for s in thick.values()) / len(thick) for epoch in sorted(shared)}
    if thick:
        note = number_format.count(len(thick), "seed")
    else:
        note = number_format.count(len(thin), "final run" if begun["phase"].eq("final").any() else "search trial")
        note += ", " + sweep.state(cell)
    return {"thick": thick, "thin": thin, "mean": mean, "note": note}


def _series(curves: pd.DataFrame, trials: pd.Series) -> dict[str, dict[float, float]]:
    found = curves[curves["trial"].isin(set(trials))].sort_values("epoch")
    return {
        str(trial): dict(zip(rows["epoch"].astype(float), rows["score"].astype(float), strict=True))
        for trial, rows in found.groupby("trial")
    }


def _learning_chart(
    sweep: Sweep,
    cell: str,
    found: Mapping[str, Any],
    leader: Mapping[float, float],
    limits: tuple[float, float],
    last: float,
) -> Markup:
    width, height = _SMALL
    x, y = Scale(0, last, 34, width - 8), Scale(*limits, height - 34, 8)

    def pixels(series: Mapping[float, float]) -> list[tuple[float, float]]:
        return [(x(epoch), y(value)) for epoch, value in _thinned(list(series.items()))]

    parts = [frame(x, y, "epoch")]
    if leader and cell != sweep.verdict.leader:
        parts.append(path(pixels(leader), "reference", f"mean of {sweep.verdict.leader}"))
    parts += [path(pixels(series), "thin", trial) for trial, series in found["thin"].items()]
    mean, about = found["mean"], f"{cell}: {found['note']}"
    if mean:
        if len(found["thick"]) > 1:
            low = {epoch: min(series[epoch] for series in found["thick"].values()) for epoch in mean}
            high = {epoch: max(series[epoch] for series in found["thick"].values()) for epoch in mean}
            parts.append(path([*pixels(low), *reversed(pixels(high))], "band", closed=True))
        ends = [number_format.value(mean[epoch], sweep.percent) for epoch in (min(mean), max(mean))]
        about = f"{sweep.title} of {cell} over {max(mean):g} epochs: from {ends[0]} to {ends[1]}, mean of {found['note']}"
        parts.append(path(pixels(mean), "mean", about))
        parts.append(dot(x(max(mean)), y(mean[max(mean)]), 2.5, "point"))
    return image(width, height, about, parts)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most so many, the last always."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def sensitivity(sweep: Sweep) -> list[dict[str, Any]]:
    """For every searched parameter a chart a cell: score on the validation split against the value."""
    ended = sweep.search[sweep.search["status"].isin(["finished", "failed"])]
    limits = score_range(ended["score"].tolist(), from_zero=False)
    found = []
    for parameter in sweep.parameters:
        charts = []
        for cell in sweep.cells:
            rows = ended[(ended["cell"] == cell) & ended[parameter["key"]].notna()]
            if len(rows) and limits is not None:
                charts.append({"cell": cell, **_sensitivity_chart(sweep, cell, parameter, rows, limits)})
        if charts:
            log = any(chart["log"] for chart in charts)
            found.append({"title": parameter["title"], "key": parameter["key"], "log": log, "charts": charts})
    return found


def _sensitivity_chart(
    sweep: Sweep, cell: str, parameter: Mapping[str, Any], rows: pd.DataFrame, limits: tuple[float, float]
) -> dict[str, Any]:
    width, height = _SMALL
    searched = space.range_of(sweep, cell, parameter)
    values = rows[parameter["key"]].tolist()
    choices: list[Any] = sorted(set(values), key=str) if searched is None else []
    y = Scale(*limits, height - 26, 8)
    if searched is None:
        x = Scale(-0.5, len(choices) - 0.5, 34, width - 8)
        parts = [frame(x, y, x_ticks=0)]
        parts += [text(x(i), y.start + 14, number_format.parameter(choice)) for i, choice in enumerate(choices)]
        places = [x(choices.index(value)) for value in values]
    else:
        x = Scale(searched.low, searched.high, 42, width - 14, searched.log)
        parts = [frame(x, y)]
        places = [x(value) for value in values]
    chosen, failed, best = sweep.best_points.get(cell), 0, ""
    marks: list[Markup] = []
    for place, value, row in zip(places, values, records(rows), strict=True):
        title = f"{row['trial']}: {parameter['title']} {number_format.parameter(value)}"
        if row["status"] == "failed":
            failed += 1
            parts.append(cross(place, y.start, "failed", f"{title}, failed: {row['reason']}"))
        elif number_format.is_number(row["score"]):
            title = f"{title}, {number_format.value(row['score'], sweep.percent)}{sweep.unit}"
            if row["point"] == chosen:
                best = number_format.parameter(value)
                marks.append(dot(place, y(row["score"]), 4.5, "chosen", f"{title}, chosen"))
            else:
                parts.append(dot(place, y(row["score"]), 2.6, "point", title))
    note = f"chosen: {best}" if best else "none chosen"
    side = searched.edge(sweep.point(cell)[parameter["key"]]) if searched and best else ""
    trials = number_format.count(len(rows), "trial")
    about = f"{sweep.title} of {cell} against {parameter['title']}: {trials}, {failed} failed, {note}"
    log = searched is not None and searched.log
    return {"note": note, "edge": side, "log": log, "svg": image(width, height, about, [*parts, *marks])}


def parallel(sweep: Sweep) -> Markup | None:
    """Every finished search trial as a line over the grid's axes, the searched parameters and the score."""
    rows = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].notna()]
    axes = [*(axis for axis in sweep.axes if len(axis["labels"]) > 1), *sweep.parameters]
    if rows.empty or not axes:
        return None
    width, height = _WIDE
    low, high = float(rows["score"].min()), float(rows["score"].max())
    ladders = [_ladder(rows[axis["key"]], axis) for axis in axes] + [Scale(low, high, height - 44, 34)]
    step = (width - 170) / (len(ladders) - 1)
    lines: list[Markup] = []
    best_lines: list[Markup] = []
    ordered = rows.sort_values("score", ascending=sweep.mode == "max")  # the best on top
    for row in records(ordered):
        cells = [row[axis["key"]] for axis in axes] + [row["score"]]
        points = [
            (80 + step * i, _height(ladder, cell, height)) for i, (ladder, cell) in enumerate(zip(ladders, cells, strict=True))
        ]
        best = row["point"] == sweep.best_points.get(row["cell"])
        share = 0.5 if low == high else (row["score"] - low) / (high - low)
        shade = min(SHADES - 1, int(SHADES * (share if sweep.mode == "max" else 1 - share)))
        title = f"{row['trial']}: {number_format.value(row['score'], sweep.percent)}{sweep.unit}" + (
            ", best of its cell" if best else ""
        )
        (best_lines if best else lines).append(path(points, f"shade-{shade}{' best' if best else ''}", title))
    parts = [*lines, *best_lines]
    titles = [*(axis["title"] for axis in axes), sweep.title]
    for i, (ladder, title) in enumerate(zip(ladders, titles, strict=True)):
        parts += _ladder_marks(80 + step * i, ladder, title, height)
    for i, parameter in enumerate(axes):
        if rows[parameter["key"]].isna().any():
            parts.append(text(80 + step * i + 6, height - 14.5, "none", "start", "halo"))
    trials = number_format.count(len(rows), "search trial")
    about = f"{trials} over {', '.join(titles[:-1])} and {sweep.title} on the validation split"
    return image(width, height, about, parts, "parallel")


def _ladder(values: pd.Series, axis: Mapping[str, Any]) -> Scale | list[Any]:
    """Heights of one vertical axis: a scale for numbers, a list for labels and choices."""
    known = [value for value in values if number_format.parameter(value)]
    if "labels" in axis:
        return axis["labels"]
    if not all(number_format.is_number(value) for value in known):
        return sorted(set(known), key=str)
    if not known:
        return []
    return Scale(min(known), max(known), _WIDE[1] - 44, 34, bool(axis.get("log")) and min(known) > 0)


def _height(ladder: Scale | list[Any], value: Any, height: float) -> float:
    """Where a line crosses; what does not apply to a trial crosses below the axis."""
    if isinstance(ladder, Scale):
        return ladder(value) if number_format.is_number(value) else height - 18
    if value not in ladder:
        return height - 18
    return 34 + (height - 78) * (ladder.index(value) + 0.5) / len(ladder)


def _ladder_marks(x: float, ladder: Scale | list[Any], title: str, height: float) -> list[Markup]:
    parts = [line(x, 34, x, height - 44, "base"), text(x, 16, title, name="title")]
    if isinstance(ladder, Scale):
        marks = [(ladder(value), number_format.parameter(value)) for value in ladder.ticks(5)]
    else:
        marks = [(_height(ladder, value, height), number_format.parameter(value)) for value in ladder]
    return parts + [text(x + 6, y + 3.5, label, "start", "halo") for y, label in marks]


def cost(sweep: Sweep) -> dict[str, Any] | None:
    """Cells by mean seconds of a final run and score; those that no other beats in both are joined and named."""
    rows = [row for (_, metric), row in sweep.figures.items() if metric == "score" and row["n"]]
    rows = [row for row in rows if number_format.is_number(row["seconds"])]
    if not rows:
        return None
    width, height = _COST
    ends = [value for row in rows for value in (row["mean"], row["low"], row["high"]) if number_format.is_number(value)]
    low, high = min(ends), max(ends)
    margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    least, most = min(row["seconds"] for row in rows), max(row["seconds"] for row in rows)
    spare = 0.1 * (most - least) or 0.1 * most or 1.0
    x, y = Scale(max(0.0, least - spare), most + spare, 36, width - 12), Scale(low - margin, high + margin, height - 38, 12)
    front = statistics.pareto([row["mean"] for row in rows], [row["seconds"] for row in rows], sweep.mode)
    best = sorted((row for row, on in zip(rows, front, strict=True) if on), key=lambda row: row["seconds"])
    parts = [frame(x, y, "seconds of a final run", x_ticks=6, y_ticks=5)]
    parts.append(path([(x(row["seconds"]), y(row["mean"])) for row in best], "front"))
    for row in rows:
        if number_format.is_number(row["low"]):
            parts.append(line(x(row["seconds"]), y(row["low"]), x(row["seconds"]), y(row["high"]), "bar"))
    for row, on in zip(rows, front, strict=True):
        seconds = number_format.duration(row["seconds"])
        title = f"{row['cell']}: {number_format.value(row['mean'], sweep.percent)}{sweep.unit}, {seconds}"
        parts.append(dot(x(row["seconds"]), y(row["mean"]), 4 if on else 3, "chosen" if on else "point", title))
    taken = [(x(row["seconds"]) - 5, y(row["mean"]) - 5, 10.0, 10.0) for row in rows]
    for row in best:
        parts.append(_label(x(row["seconds"]), y(row["mean"]), row["cell"], taken, (x.start, x.end)))
    about = f"{sweep.title} against seconds of {number_format.count(len(rows), 'cell')}; not beaten in both: " + "; ".join(
        row["cell"] for row in best
    )
    return {"svg": image(width, height, about, parts), "best": best}


def _label(
    x: float, y: float, content: str, taken: list[tuple[float, float, float, float]], bounds: tuple[float, float]
) -> Markup:
    """A name beside its point, where it covers no other name or point; boxes taken are x, y, width and height."""
    width = 7.0 * len(content)
    for away in (0.0, 14.0, 28.0, 42.0):
        for at, left, down, anchor in (
            (x + 8, x + 8, -away, "start"),
            (x - 8, x - 8 - width, -away, "end"),
            (x, x - width / 2, -14 - away, "middle"),
            (x, x - width / 2, 14 + away, "middle"),
        ):
            box = (left, y + down - 6, width, 12.0)
            inside = bounds[0] <= left and left + width <= bounds[1]
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                return text(at, y + down + 4, content, anchor, "halo name")
    return Markup("")  # it is named in the list below the chart


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
