"""Charts of a sweep's results: score against data, learning curves, and quality against cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.chart import LARGE, Chart, Plot, Scale, Series, Table, lines, mark, score_range
from tuning import statistics
from tuning.reporting.sweep_data import Sweep

MULTIPLE = (230.0, 160.0)  # size of small multiples
_COST = (420.0, 330.0)
_FRACTION = "data.fraction"


def scaling(sweep: Sweep) -> html.Section | None:
    """Score against training samples, a line for each of the other cells; None where fewer than two shares have results."""
    shares = next((i for i, axis in enumerate(sweep.axes) if axis["key"] == _FRACTION and len(axis["labels"]) > 1), None)
    if shares is None:
        return None
    by_name: dict[str, list[dict[str, Any]]] = {}
    for cell, labels in sweep.cells.items():
        figures = sweep.figures[cell, "score"]
        samples = sweep.results.loc[sweep.results["cell"] == cell, "train_samples"].mean()
        if figures["n"] and number_format.is_number(samples):
            name = ", ".join(labels[:shares] + labels[shares + 1 :]) or "all"
            by_name.setdefault(name, []).append({**figures, "samples": samples, "share": labels[shares].split("=")[-1]})
    places = {row["share"]: row["samples"] for rows in by_name.values() for row in rows}
    if len(places) < 2:
        return None
    series, rows_of_table, spans = [], [], []
    columns = sorted(places, key=lambda share: places[share])
    for i, (name, rows) in enumerate(by_name.items()):
        rows.sort(key=lambda row: row["samples"])
        spread = {row["samples"]: (row["low"], row["high"]) for row in rows if number_format.is_number(row["low"])}
        means = {row["samples"]: row["mean"] for row in rows}
        titles = {row["samples"]: f"{name}, {row['samples']:,.0f} samples: {_mean_and_sd(sweep, row)}" for row in rows}
        titles = {row["samples"]: f"{titles[row['samples']]}{sweep.unit}, n {int(row['n'])}" for row in rows}
        aside = 3.0 * (i - (len(by_name) - 1) / 2)
        series.append(Series(name, means, mark(i), "scaling", spread, aside=aside, titles=titles))
        by_share = {row["share"]: _mean_and_sd(sweep, row) for row in rows}
        rows_of_table.append([name, *(by_share.get(share, "") for share in columns)])
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
    columns_shown = [
        f"{sweep.title}{sweep.unit and ', %'}",
        *(f"{n} samples, fraction {share}" for n, share in zip(heads, columns, strict=True)),
    ]
    by_chance = f"; by chance {number_format.value(chance, sweep.percent)}" if number_format.is_number(chance) else ""
    return html.section(
        "scaling",
        "Score against data",
        html.paragraph(
            "{} on the {} split against the number of training samples, on a logarithmic axis. Mean over seeds, each of which "
            "draws another share of the training groups, the same for every line; bar: bootstrap interval of the mean.",
            sweep.heading,
            sweep.test_split,
        ),
        html.scroll("Score against data", html.figure(chart, own=False), "wide"),
        html.table("Score against data", columns_shown, rows_of_table, name="paper"),
        html.soft(
            'Mean (standard deviation over seeds){}. Budget: {}. <a href="#pairs">Pairs</a> tells which differences are more '
            "than noise.",
            by_chance,
            sweep.info["budget"],
        ),
        link="Data",
    )


def _mean_and_sd(sweep: Sweep, row: dict[str, Any]) -> str:
    spread = number_format.value(row["sd"], sweep.percent)
    return number_format.value(row["mean"], sweep.percent) + (f" ({spread})" if spread else "")


def learning(sweep: Sweep) -> html.Section:
    figures = _learning(sweep)
    about = html.paragraph("No run has been evaluated during training{}.", " yet" if sweep.running else "")
    if figures:
        about = html.paragraph(
            "{}, upwards, over epochs, with the same axes everywhere. Line: mean over the seeds of the final runs; band: from "
            "the lowest to the highest of them; dotted: the leader's mean. Cells without results show single runs as thin "
            "lines: of the search, these are scored on the {} split.",
            sweep.heading,
            sweep.validation_split,
        )
    return html.section("curves", "Learning curves", about, html.div("charts small", *figures) if figures else "", link="Curves")


def _learning(sweep: Sweep) -> list[Markup]:
    """A chart a cell of score against epoch; all have the same axes."""
    curves = sweep.curves
    if curves.empty or not {"trial", "epoch", "score"} <= set(curves.columns):
        return []
    curves = curves[curves["score"].notna() & curves["epoch"].notna()]
    curves_of = {cell: _curves_of(sweep, cell, curves) for cell in sweep.cells}
    limits = score_range((y for _, drawn in curves_of.values() for row in drawn for y in row.values()), sweep.percent)
    if limits is None:
        return []
    means = {cell: _mean(drawn) for cell, (note, drawn) in curves_of.items() if sweep.state(cell) == "results" and drawn}
    leader = means.get(sweep.verdict.leader or "")
    figures = []
    for cell, (note, drawn) in curves_of.items():
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
        chart = lines(series, about, "epoch", limits=limits, percent=sweep.percent, size=MULTIPLE)
        figures.append(html.figure(chart, cell, note))
    return figures


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
    of_trials = curves[curves["trial"].isin(set(trials))].sort_values("epoch")
    pairs = [zip(rows["epoch"].astype(float), rows["score"].astype(float), strict=True) for _, rows in of_trials.groupby("trial")]
    return [dict(pair) for pair in pairs]


def _mean(drawn: Sequence[Mapping[float, float]]) -> dict[float, float]:
    """Over the epochs that all have."""
    shared = set.intersection(*(set(row) for row in drawn))
    return {epoch: math.fsum(row[epoch] for row in drawn) / len(drawn) for epoch in sorted(shared)}


def cost(sweep: Sweep) -> html.Section:
    """Cells by mean seconds of a final run and score; those that no other beats in both are joined and named."""
    rows = [row for (_, metric), row in sweep.figures.items() if metric == "score" and row["n"]]
    rows = [row for row in rows if number_format.is_number(row["seconds"])]
    if not rows:
        return html.section(
            "cost",
            "Quality against cost",
            html.paragraph("No final run is finished{}.", " yet" if sweep.running else ""),
            link="Cost",
        )
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
    figures = []
    for row, on in zip(rows, front, strict=True):
        cells = [row["cell"], number_format.duration(row["seconds"]), number_format.value(row["mean"], sweep.percent)]
        title = f"{cells[0]}: {cells[2]}{sweep.unit}, {cells[1]}"
        plot.dot(row["seconds"], row["mean"], 4 if on else 3, f"dot m0 {'chosen' if on else 'point'}", title)
        figures.append(cells)
    _name(plot, best, [(plot.x(row["seconds"]) - 5, plot.y(row["mean"]) - 5, 10.0, 10.0) for row in rows])
    said = number_format.count(len(rows), "cell")
    about = f"{sweep.title} against seconds of {said}; not beaten in both: {'; '.join(row['cell'] for row in best)}"
    chart = Chart(plot.svg(about), Table(("cell", "time", sweep.title), figures))
    unbeaten = [next(cells for cells in figures if cells[0] == row["cell"]) for row in best]
    return html.section(
        "cost",
        "Quality against cost",
        html.paragraph(
            "{} on the {} split against training time of one final run, means over seeds, with bootstrap intervals. Joined and "
            "named: cells that no other one beats in both. Trials shared the machine: {}.",
            sweep.heading,
            sweep.test_split,
            sweep.info["resources"],
        ),
        html.div(
            "pair",
            html.figure(chart, "", f"{sweep.heading} against seconds"),
            html.table("Cells that none beats in both", ("not beaten in both", "time", sweep.title), unbeaten, name="front"),
        ),
        link="Cost",
    )


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
