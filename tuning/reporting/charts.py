"""Charts of a sweep's results: score against data, learning curves, and quality against cost."""

from typing import Any

import pandas as pd

from evaluation.reporting import html, number_format
from evaluation.reporting.chart import LARGE, Chart, Plot, Scale, Series, figure, lines, mark, score_range
from tuning import statistics
from tuning.reporting.sweep_data import Sweep

MULTIPLE = (230.0, 160.0)  # size of small multiples
_COST = (400.0, 300.0)
_FRACTION = "data.fraction"


def scaling(sweep: Sweep) -> html.Section | None:
    """Score against training samples, a line for each of the other cells; None where fewer than two shares have results."""
    shares = next((i for i, axis in enumerate(sweep.info["axes"]) if axis["key"] == _FRACTION and len(axis["labels"]) > 1), None)
    if shares is None:
        return None
    score, by_name = sweep.score, dict[str, list[dict[str, Any]]]()
    samples_of = sweep.results.groupby("cell")["train_samples"].mean()
    for cell, labels in sweep.cells.items():
        row, samples = sweep.figures[cell, "score"], samples_of.get(cell)
        if row["n"] and number_format.is_number(samples):
            name, share = ", ".join(labels[:shares] + labels[shares + 1 :]) or "all", labels[shares].split("=")[-1]
            told = {"samples": samples, "share": share, "said": score.mean_and_sd(row)}
            by_name.setdefault(name, []).append(row | told)
    places = {row["share"]: row["samples"] for rows in by_name.values() for row in rows}
    if len(places) < 2:
        return None
    series, table, spans = [], [], []
    heads = {share: f"{places[share]:,.0f}" for share in sorted(places, key=lambda share: places[share])}
    for i, (name, rows) in enumerate(by_name.items()):
        rows.sort(key=lambda row: row["samples"])
        line = {row["samples"]: row for row in rows}
        said = {row["share"]: row["said"] for row in rows}
        means = {at: row["mean"] for at, row in line.items()}
        spread = {at: (row["low"], row["high"]) for at, row in line.items() if number_format.is_number(row["low"])}
        aside = 3.0 * (i - (len(by_name) - 1) / 2)
        series.append(Series(name, means, mark(i), "scaling", spread, aside=aside))
        table.append([name, *(said.get(share, "") for share in heads)])
        spans.append(f"{name} from {rows[0]['said']} to {rows[-1]['said']}")
    first, *_, last = heads.values()
    known = number_format.is_number(score.chance)
    chart = lines(
        series,
        f"{score.title} against {first} to {last} training samples: {'; '.join(spans)}",
        "training samples",
        names={places[share]: f"{head}\nfraction {share}" for share, head in heads.items()},
        from_zero=score.percent,
        log=True,
        levels={"chance": score.chance} if known else {},
        labelled=150.0,
        percent=score.percent,
        size=LARGE,
    )
    titles_shown = [f"{score.title}{score.unit and ', %'}", *(f"{n} samples, fraction {share}" for share, n in heads.items())]
    return html.section(
        "scaling",
        "Score against data",
        html.paragraph(
            "{Score} on the {test} split against the number of training samples, on a logarithmic axis. Mean over seeds, each of "
            "which draws another share of the training groups, the same for every line; bar: bootstrap interval of the mean.",
            **sweep.words,
        ),
        html.scroll("Score against data", figure(Chart(chart.svg)), "wide"),
        html.table("Score against data", titles_shown, table, style="paper"),
        html.soft(
            'Mean (standard deviation over seeds){}. Budget: {}. <a href="#pairs">Pairs</a> tells which differences are more '
            "than noise.",
            f"; by chance {score.shown(score.chance)}" if known else "",
            sweep.info["budget"],
        ),
    )


def learning(sweep: Sweep) -> html.Section:
    """A chart a cell of score against epoch; all have the same axes."""
    score, leader, curves = sweep.score, sweep.verdict.leader, sweep.curves
    known = curves.dropna(subset=["score", "epoch"]) if {"trial", "epoch", "score"} <= set(curves) else pd.DataFrame()
    by_trial = known.pivot_table("score", "epoch", "trial", aggfunc="last") if len(known) else known
    runs_of = {cell: _runs_of(sweep, cell, by_trial) for cell in sweep.cells}
    limits = score_range((y for _, runs in runs_of.values() for y in runs.to_numpy().ravel()), score.percent)
    # Of results, over the epochs that all have.
    shared = {cell: runs.dropna() for cell, (_, runs) in runs_of.items() if sweep.state(cell) == "results"}
    means = {cell: _by_epoch(runs.mean(axis=1)) for cell, runs in shared.items() if len(runs)}
    figures = []
    for cell, (note, runs) in runs_of.items():
        series, about = [], f"{cell}: {note}"
        if cell != leader and (best := means.get(leader or "")):
            series.append(Series(f"mean of {leader}", best, kind="reference", background=True))
        if mean := means.get(cell, {}):
            ends = zip(shared[cell].min(axis=1), shared[cell].max(axis=1), strict=True)
            spread = dict(zip(mean, ends, strict=True)) if runs.shape[1] > 1 else {}
            start, end = (score.shown(mean[epoch]) for epoch in (min(mean), max(mean)))
            about = f"{score.title} of {cell} over {max(mean):g} epochs: from {start} to {end}, mean of {note}"
            series.append(Series("mean", mean, "m0", "mean", spread, band=bool(spread)))
        else:
            series += [Series(f"run {i}", _by_epoch(run), kind="thin") for i, (_, run) in enumerate(runs.items(), 1)]
        if len(runs):
            chart = lines(series, about, "epoch", limits=limits, percent=score.percent, size=MULTIPLE)
            figures.append(figure(chart, cell, note))
    words = (
        "{Score}, upwards, over epochs, with the same axes everywhere. Line: mean over the seeds of the final runs; band: from "
        "the lowest to the highest of them; dotted: the leader's mean. Cells without results show single runs as thin lines: of "
        "the search, these are scored on the {validation} split."
    )
    none = html.paragraph("No run has been evaluated during training{}.", sweep.yet)
    shown = [html.paragraph(words, **sweep.words), html.div("charts small", *figures)]
    return html.section("curves", "Learning curves", *(shown if figures else [none]))


def _by_epoch(scores: pd.Series) -> dict[float, float]:
    kept = scores.dropna()
    return dict(zip(kept.index.tolist(), kept.tolist(), strict=True))


def _runs_of(sweep: Sweep, cell: str, by_trial: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Scores by epoch of the runs that the results are of, or of whatever has begun, a column each; and what these are."""
    runs = by_trial
    for noun, trials in {"seed": sweep.results, "final run": sweep.final, "search trial": sweep.search}.items():
        names = trials.loc[trials["cell"] == cell, "trial"]
        runs = by_trial.loc[:, by_trial.columns.isin(names)].dropna(how="all")
        if len(runs) or (noun == "final run" and len(names)):
            break
    state = "" if noun == "seed" else f", {sweep.state(cell)}"
    return number_format.count(runs.shape[1], noun) + state, runs


def cost(sweep: Sweep) -> html.Section:
    """Cells by mean seconds of a final run and score; those that no other beats in both are joined and named."""
    score, rows = sweep.score, [sweep.figures[cell, "score"] for cell in sweep.cells]
    rows = [row for row in rows if row["n"] and number_format.is_number(row["seconds"])]
    if not rows:
        return html.section("cost", "Quality against cost", html.paragraph("No final run is finished{}.", sweep.yet))
    (width, height), seconds = _COST, [row["seconds"] for row in rows]
    ends = [value for row in rows for value in (row["mean"], row["low"], row["high"])]
    least, most = score_range(seconds, margin=0.1)
    front = statistics.pareto([row["mean"] for row in rows], seconds, sweep.mode)
    best = sorted((row for row, on in zip(rows, front, strict=True) if on), key=lambda row: row["seconds"])
    names = min(0.5 * width, 8 + 6.5 * max(len(row["cell"]) for row in best))  # their pixels
    y = Scale(*score_range(ends, margin=0.12), height - 38, 12)
    plot = Plot(width, height, Scale(max(0.0, least), most, 36, width - names), y)
    plot.frame("seconds of a final run", 6)
    plot.line([(row["seconds"], row["mean"]) for row in best], "front")
    figures = {row["cell"]: (row["cell"], number_format.duration(row["seconds"]), score.shown(row["mean"])) for row in rows}
    for row, on in zip(rows, front, strict=True):
        if number_format.is_number(row["low"]):
            plot.line([(row["seconds"], row["low"]), (row["seconds"], row["high"])], "error m0 bar")
        name, time, mean = figures[row["cell"]]
        kind, radius = ("m0 chosen", 4.0) if on else ("m0 point", 3.0)
        plot.dot(row["seconds"], row["mean"], kind, f"{name}: {mean}{score.unit}, {time}", radius)
    plot.end_labels((row["mean"], row["cell"], "name") for row in best)
    unbeaten, titles = [figures[row["cell"]] for row in best], ("time", score.title)
    listed = "; ".join(row["cell"] for row in best)
    about = f"{score.title} against seconds of {number_format.count(len(rows), 'cell')}; not beaten in both: {listed}"
    chart = Chart(plot.svg(about), ("cell", *titles), list(figures.values()))
    return html.section(
        "cost",
        "Quality against cost",
        html.paragraph(
            "{Score} on the {test} split against training time of one final run, means over seeds, with bootstrap intervals. "
            "Joined, and named at the right: cells that no other one beats in both. Trials shared the machine: {}.",
            sweep.info["resources"],
            **sweep.words,
        ),
        html.div(
            "pair",
            figure(chart, "", f"{sweep.words['Score']} against seconds"),
            html.table("Cells that none beats in both", ("not beaten in both", *titles), unbeaten, style="front"),
        ),
    )
