"""Score against training samples, where a sweep crosses shares of the training data: one line for each of its other cells."""

from typing import Any

from evaluation.metrics import chances
from evaluation.reporting.svg import Scale, dot, frame, image, line, path, score_range, text
from pipelines.program import number_format
from tuning.reporting.sweep_data import Sweep

COLOURS = 6  # of the page's style; further lines have them again, dashed
_KEY = "data.fraction"
_SIZE = (760.0, 400.0)
_NAMES = 150.0  # pixels to the right of the lines, for their names
_APART = 14.0  # pixels between two names


def scaling(sweep: Sweep) -> dict[str, Any] | None:
    """The chart and its figures as rows; None where the grid has no shares, or fewer than two of them have results."""
    shares = next((i for i, axis in enumerate(sweep.axes) if axis["key"] == _KEY and len(axis["labels"]) > 1), None)
    if shares is None:
        return None
    lines: dict[str, list[dict[str, Any]]] = {}
    for cell, labels in sweep.cells.items():
        figures = sweep.figures[cell, "score"]
        samples = sweep.results.loc[sweep.results["cell"] == cell, "train_samples"].mean()
        if figures["n"] and number_format.is_number(samples):
            name = ", ".join(labels[:shares] + labels[shares + 1 :]) or "all"
            lines.setdefault(name, []).append({**figures, "samples": samples, "share": labels[shares].split("=")[-1]})
    for rows in lines.values():
        rows.sort(key=lambda row: row["samples"])
    places = {row["share"]: row["samples"] for rows in lines.values() for row in rows}
    if len(places) < 2:
        return None
    columns = sorted(places, key=lambda share: places[share])
    table = []
    for name, rows in lines.items():
        by_share = {row["share"]: _figure(sweep, row) for row in rows}
        table.append({"name": name, "cells": [by_share.get(share, "") for share in columns]})
    return {
        "svg": _chart(sweep, lines, places),
        "columns": [{"share": share, "samples": f"{places[share]:,.0f}"} for share in columns],
        "rows": table,
        "chance": number_format.value(_chance(sweep), sweep.percent),
    }


def _chart(sweep: Sweep, lines: dict[str, list[dict[str, Any]]], places: dict[str, float]) -> Any:
    """Samples are spread over the axis as their logarithms; bars are the intervals of the means."""
    width, height = _SIZE
    rows = [row for found in lines.values() for row in found]
    chance = _chance(sweep)
    ends = [row[key] for row in rows for key in ("mean", "low", "high") if number_format.is_number(row[key])]
    limits = score_range([*ends, *([chance] if number_format.is_number(chance) else [])], from_zero=sweep.percent)
    assert limits is not None  # there are means
    x = Scale(min(places.values()), max(places.values()), 60, width - _NAMES, log=True)
    y = Scale(*limits, height - 60, 10)
    parts = [frame(x, y, x_ticks=0, y_ticks=6), text(x.end, y.start + 48, "training samples, mean over seeds", "end")]
    for fraction, samples in places.items():
        parts.append(line(x(samples), y.start, x(samples), y.start + 3, "base"))
        parts.append(text(x(samples), y.start + 15, f"{samples:,.0f}"))
        parts.append(text(x(samples), y.start + 29, f"fraction {fraction}"))
    if number_format.is_number(chance):
        parts.append(path([(x.start, y(chance)), (x.end, y(chance))], "reference", "chance"))
        parts.append(text(x.start + 4, y(chance) - 4, "chance", "start", "halo"))
    names: list[tuple[float, int, str]] = []
    for number, (name, found) in enumerate(lines.items()):
        style = f"line-{number % COLOURS}" + (" again" if number >= COLOURS else "")
        aside = 3.0 * (number - (len(lines) - 1) / 2)  # so that bars of two lines do not hide one another
        points = [(x(row["samples"]) + aside, y(row["mean"])) for row in found]
        for (place, _), row in zip(points, found, strict=True):
            if number_format.is_number(row["low"]):
                parts.append(line(place, y(row["low"]), place, y(row["high"]), style))
        parts.append(path(points, f"{style} scaling", name))
        for (place, level), row in zip(points, found, strict=True):
            title = f"{name}, {row['samples']:,.0f} samples: {_figure(sweep, row)}{sweep.unit}, n {int(row['n'])}"
            parts.append(dot(place, level, 3.2, style, title))
        names.append((points[-1][1], number, name))
    level = -_APART
    for wanted, number, name in sorted(names):
        level = max(wanted, level + _APART)
        parts.append(text(width - _NAMES + 14, level + 4, name, "start", f"name line-{number % COLOURS}"))
    spans = [f"{name} from {_figure(sweep, r[0])} to {_figure(sweep, r[-1])}" for name, r in lines.items()]
    about = (
        f"{sweep.title} against {min(places.values()):,.0f} to {max(places.values()):,.0f} training samples: {'; '.join(spans)}"
    )
    return image(width, height, about, parts)


def _figure(sweep: Sweep, row: dict[str, Any]) -> str:
    """Mean, and in brackets the standard deviation over seeds."""
    spread = number_format.value(row["sd"], sweep.percent)
    return number_format.value(row["mean"], sweep.percent) + (f" ({spread})" if spread else "")


def _chance(sweep: Sweep) -> float:
    """Of the score; NaN where it is not known of all that it is the mean of."""
    base = chances(sweep.info["baselines"])
    found = [base.get(metric, float("nan")) for metric in sweep.info["score"]["metrics"]]
    return sum(found) / len(found)
