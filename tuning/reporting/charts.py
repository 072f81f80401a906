"""The report's charts: score against data, learning curves, sensitivity, parallel coordinates, and quality against cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from evaluation.reporting import number_format
from evaluation.reporting.chart import LARGE, Chart, Plot, Scale, Series, Table, lines, mark, score_range
from tuning import statistics
from tuning.reporting import space
from tuning.reporting.sweep_data import Sweep, records

SHADES = 6  # classes of the sequential scale, from worst to best
_SMALL = (230.0, 160.0)  # small multiples
_WIDE = (900.0, 400.0)
_COST = (420.0, 330.0)
_FRACTION = "data.fraction"


def scaling(sweep: Sweep) -> dict[str, Any] | None:
    """Score against training samples, a line for each of the other cells; None where fewer than two shares have results."""
    shares = next((i for i, axis in enumerate(sweep.axes) if axis["key"] == _FRACTION and len(axis["labels"]) > 1), None)
    if shares is None:
        return None
    found: dict[str, list[dict[str, Any]]] = {}
    for cell, labels in sweep.cells.items():
        figures = sweep.figures[cell, "score"]
        samples = sweep.results.loc[sweep.results["cell"] == cell, "train_samples"].mean()
        if figures["n"] and number_format.is_number(samples):
            name = ", ".join(labels[:shares] + labels[shares + 1 :]) or "all"
            found.setdefault(name, []).append({**figures, "samples": samples, "share": labels[shares].split("=")[-1]})
    places = {row["share"]: row["samples"] for rows in found.values() for row in rows}
    if len(places) < 2:
        return None
    series, table, spans = [], [], []
    columns = sorted(places, key=lambda share: places[share])
    for i, (name, rows) in enumerate(found.items()):
        rows.sort(key=lambda row: row["samples"])
        spread = {row["samples"]: (row["low"], row["high"]) for row in rows if number_format.is_number(row["low"])}
        means = {row["samples"]: row["mean"] for row in rows}
        titles = {row["samples"]: f"{name}, {row['samples']:,.0f} samples: {_mean_and_sd(sweep, row)}" for row in rows}
        titles = {row["samples"]: f"{titles[row['samples']]}{sweep.unit}, n {int(row['n'])}" for row in rows}
        aside = 3.0 * (i - (len(found) - 1) / 2)
        series.append(Series(name, means, mark(i), "scaling", spread, aside=aside, titles=titles))
        by_share = {row["share"]: _mean_and_sd(sweep, row) for row in rows}
        table.append([name, *(by_share.get(share, "") for share in columns)])
        spans.append(f"{name} from {_mean_and_sd(sweep, rows[0])} to {_mean_and_sd(sweep, rows[-1])}")
    chance = sweep.chances["score"]
    heads = [f"{places[share]:,.0f}" for share in columns]
    chart = lines(
        series,
        f"{sweep.title} against {heads[0]} to {heads[-1]} training samples: {'; '.join(spans)}",
        "training samples",
        names={places[share]: f"{head}\nfraction {share}" for share, head in zip(columns, heads, strict=True)},
        from_zero=sweep.percent,
        log=True,
        levels={"chance": chance} if number_format.is_number(chance) else {},
        labelled=150.0,
        percent=sweep.percent,
        size=LARGE,
    )
    head = [f"{samples} samples, fraction {share}" for samples, share in zip(heads, columns, strict=True)]
    return {"chart": chart, "head": head, "rows": table, "chance": number_format.value(chance, sweep.percent)}


def _mean_and_sd(sweep: Sweep, row: dict[str, Any]) -> str:
    spread = number_format.value(row["sd"], sweep.percent)
    return number_format.value(row["mean"], sweep.percent) + (f" ({spread})" if spread else "")


def learning(sweep: Sweep) -> list[dict[str, Any]]:
    """A chart a cell of score against epoch; all have the same axes."""
    curves = sweep.curves
    if curves.empty or not {"trial", "epoch", "score"} <= set(curves.columns):
        return []
    curves = curves[curves["score"].notna() & curves["epoch"].notna()]
    found = {cell: _curves_of(sweep, cell, curves) for cell in sweep.cells}
    limits = score_range((y for _, drawn in found.values() for row in drawn for y in row.values()), sweep.percent)
    if limits is None:
        return []
    means = {cell: _mean(drawn) for cell, (note, drawn) in found.items() if sweep.state(cell) == "results" and drawn}
    leader = means.get(sweep.verdict.leader or "")
    charts = []
    for cell, (note, drawn) in found.items():
        if not drawn:
            continue
        series = [Series(f"mean of {sweep.verdict.leader}", leader, kind="reference", background=True)] if leader else []
        series = [] if cell == sweep.verdict.leader else series
        about = f"{cell}: {note}"
        if mean := means.get(cell):
            spread = {x: (min(row[x] for row in drawn), max(row[x] for row in drawn)) for x in mean} if len(drawn) > 1 else {}
            ends = [number_format.value(mean[epoch], sweep.percent) for epoch in (min(mean), max(mean))]
            about = f"{sweep.title} of {cell} over {max(mean):g} epochs: from {ends[0]} to {ends[1]}, mean of {note}"
            series.append(Series("mean", mean, "m0", "mean", spread, band=bool(spread)))
        elif cell not in means:
            series += [Series(f"run {i + 1}", row, kind="thin") for i, row in enumerate(drawn)]
        chart = lines(series, about, "epoch", limits=limits, percent=sweep.percent, size=_SMALL)
        charts.append({"cell": cell, "note": note, "edge": "", "chart": chart})
    return charts


def _curves_of(sweep: Sweep, cell: str, curves: pd.DataFrame) -> tuple[str, list[dict[float, float]]]:
    """Epoch -> score of the runs that the results are of, or of whatever has begun; and a note of what these are."""
    results = _series(curves, sweep.results.loc[sweep.results["cell"] == cell, "trial"])
    if results:
        return number_format.count(len(results), "seed"), results
    begun = sweep.final[sweep.final["cell"] == cell]
    noun = "search trial" if begun.empty else "final run"
    begun = sweep.search[sweep.search["cell"] == cell] if begun.empty else begun
    drawn = _series(curves, begun["trial"])
    return f"{number_format.count(len(drawn), noun)}, {sweep.state(cell)}", drawn


def _series(curves: pd.DataFrame, trials: pd.Series) -> list[dict[float, float]]:
    found = curves[curves["trial"].isin(set(trials))].sort_values("epoch")
    pairs = [zip(rows["epoch"].astype(float), rows["score"].astype(float), strict=True) for _, rows in found.groupby("trial")]
    return [dict(pair) for pair in pairs]


def _mean(drawn: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Over the epochs that all have."""
    shared = set.intersection(*(set(row) for row in drawn))
    return {epoch: math.fsum(row[epoch] for row in drawn) / len(drawn) for epoch in sorted(shared)}


def sensitivity(sweep: Sweep) -> list[dict[str, Any]]:
    """For every searched parameter a chart a cell: score on the validation split against the value."""
    ended = sweep.search[sweep.search["status"].isin(["finished", "failed"])]
    limits = score_range(ended["score"].tolist())
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
    return {"note": note, "edge": side, "log": searched is not None and searched.log, "chart": chart}


def parallel(sweep: Sweep) -> Chart | None:
    """Every finished search trial as a line over the grid's axes, the searched parameters and the score."""
    rows = sweep.search[(sweep.search["status"] == "finished") & sweep.search["score"].notna()]
    axes = [*(axis for axis in sweep.axes if len(axis["labels"]) > 1), *sweep.parameters]
    if rows.empty or not axes:
        return None
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
    return Chart(plot.svg(about, "parallel"), Table(["trial", *titles], table[::-1]))


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


def cost(sweep: Sweep) -> dict[str, Any] | None:
    """Cells by mean seconds of a final run and score; those that no other beats in both are joined and named."""
    rows = [row for (_, metric), row in sweep.figures.items() if metric == "score" and row["n"]]
    rows = [row for row in rows if number_format.is_number(row["seconds"])]
    if not rows:
        return None
    width, height = _COST
    ends = [value for row in rows for value in (row["mean"], row["low"], row["high"]) if number_format.is_number(value)]
    margin = 0.12 * (max(ends) - min(ends)) or 0.1 * abs(max(ends)) or 1.0
    least, most = min(row["seconds"] for row in rows), max(row["seconds"] for row in rows)
    spare = 0.1 * (most - least) or 0.1 * most or 1.0
    x = Scale(max(0.0, least - spare), most + spare, 36, width - 12)
    plot = Plot(width, height, x, Scale(min(ends) - margin, max(ends) + margin, height - 38, 12))
    front = statistics.pareto([row["mean"] for row in rows], [row["seconds"] for row in rows], sweep.mode)
    best = sorted((row for row, on in zip(rows, front, strict=True) if on), key=lambda row: row["seconds"])
    plot.frame("seconds of a final run", 6)
    plot.line([(row["seconds"], row["mean"]) for row in best], "front")
    for row in rows:
        if number_format.is_number(row["low"]):
            plot.line([(row["seconds"], row["low"]), (row["seconds"], row["high"])], "error m0 bar")
    table = []
    for row, on in zip(rows, front, strict=True):
        cells = [row["cell"], number_format.duration(row["seconds"]), number_format.value(row["mean"], sweep.percent)]
        title = f"{cells[0]}: {cells[2]}{sweep.unit}, {cells[1]}"
        plot.dot(row["seconds"], row["mean"], 4 if on else 3, f"dot m0 {'chosen' if on else 'point'}", title)
        table.append(cells)
    _name(plot, best, [(plot.x(row["seconds"]) - 5, plot.y(row["mean"]) - 5, 10.0, 10.0) for row in rows])
    said = number_format.count(len(rows), "cell")
    about = f"{sweep.title} against seconds of {said}; not beaten in both: {'; '.join(row['cell'] for row in best)}"
    return {
        "chart": Chart(plot.svg(about), Table(("cell", "time", sweep.title), table)),
        "best": [next(cells for cells in table if cells[0] == row["cell"]) for row in best],
    }


def _name(plot: Plot, rows: Iterable[dict[str, Any]], taken: list[tuple[float, float, float, float]]) -> None:
    """Names beside their points, where they cover no other name or point; boxes taken are x, y, width and height.

    One without a free place is named in the list beside the chart.
    """
    for row in rows:
        x, y, width = plot.x(row["seconds"]), plot.y(row["mean"]), 7.0 * len(row["cell"])
        for away in (0.0, 14.0, 28.0, 42.0):
            sides = [(x + 8, x + 8, -away, "start"), (x - 8, x - 8 - width, -away, "end")]
            sides += [(x, x - width / 2, -14 - away, "middle"), (x, x - width / 2, 14 + away, "middle")]
            free = [
                (at, down, anchor, (left, y + down - 6, width, 12.0))
                for at, left, down, anchor in sides
                if plot.x.start <= left and left + width <= plot.x.end
            ]
            free = [entry for entry in free if not any(_overlap(entry[3], other) for other in taken)]
            if free:
                at, down, anchor, box = free[0]
                taken.append(box)
                plot.text(at, y + down + 4, row["cell"], anchor, "halo name")
                break


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
