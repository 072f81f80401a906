"""Heat maps over the grid, the table in the style of a paper, and the pairs: rows and columns for HTML and Markdown alike."""

import math
from itertools import product
from typing import Any

from evaluation import metrics
from pipelines.program import number_format
from tuning.reporting.sweep_data import Sweep, records

_MANY_COLUMNS = 8


def heat_maps(sweep: Sweep) -> list[dict[str, Any]]:
    """One a metric, the score first: title, path, columns, rows of cells. None where there is no grid to lay out."""
    if not sweep.axes:
        return []
    # Where one metric is the score, its map is the score's.
    shown = ["score", *(metric for metric in sweep.metrics if [metric] != sweep.info["score"]["metrics"])]
    return [_heat_map(sweep, metric) for metric in shown]


def _heat_map(sweep: Sweep, metric: str) -> dict[str, Any]:
    score = metric == "score"
    percent = sweep.percent if score else metrics.metric(metric).percent
    first, rest = sweep.axes[0], sweep.axes[1:]
    rows = list(product(*(axis["labels"] for axis in rest)))
    by_labels = {tuple(labels): cell for cell, labels in sweep.cells.items()}
    means = [sweep.figures[cell, metric]["mean"] for cell in sweep.cells]
    known = [mean for mean in means if number_format.is_number(mean)]
    low_is_better = _low(sweep, metric)
    table = [
        [_heat_cell(sweep, by_labels.get((label, *row)), metric, known, low_is_better) for label in first["labels"]]
        for row in rows
    ]
    columns, heads = list(first["labels"]), [", ".join(row) for row in rows]
    across, down = first["title"], " x ".join(axis["title"] for axis in rest)
    if len(columns) > _MANY_COLUMNS and len(rows) < len(columns):
        table = [list(column) for column in zip(*table, strict=True)]
        columns, heads, across, down = heads, columns, down, across
    return {
        "title": sweep.title if score else sweep.names[metric],
        "path": " + ".join(sweep.info["score"]["metrics"]) if score else metric,
        "percent": percent,
        "score": score,
        "across": across,
        "down": down,
        "columns": columns,
        "rows": [{"head": head, "cells": cells} for head, cells in zip(heads, table, strict=True)],
    }


def _low(sweep: Sweep, metric: str) -> bool:
    if metric == "score":
        return sweep.mode == "min"
    # As the sweep's mode says for what it ranks by.
    return (sweep.mode if metric in sweep.info["score"]["metrics"] else metrics.metric(metric).better) == "min"


def _heat_cell(sweep: Sweep, cell: str | None, metric: str, known: list[float], low_is_better: bool) -> dict[str, Any]:
    if cell is None:
        return {"cell": "", "value": "", "word": "not planned", "heat": 0.0, "best": False, "level": False, "small": []}
    row = sweep.figures[cell, metric]
    percent = sweep.percent if metric == "score" else metrics.metric(metric).percent
    if not row["n"]:
        state = sweep.state(cell)
        word = "not measured" if state == "results" else state
        return {"cell": cell, "value": "", "word": word, "heat": 0.0, "best": False, "level": False, "small": []}
    low, high = min(known), max(known)
    share = 1.0 if low == high else (row["mean"] - low) / (high - low)
    best = min(known) if low_is_better else max(known)
    interval = (
        f"{number_format.value(row['low'], percent)}\u2013{number_format.value(row['high'], percent)}"
        if number_format.is_number(row["low"])
        else ""
    )
    return {
        "cell": cell,
        "value": number_format.value(row["mean"], percent),
        "word": "",
        "heat": round(0.04 + 0.46 * (1 - share if low_is_better else share), 3),
        "best": row["mean"] == best,
        "level": metric == "score" and cell in sweep.verdict.level_with and sweep.verdict.resolution is not None,
        "small": [part for part in (interval, f"n {int(row['n'])}") if part],
    }


def paper_columns(sweep: Sweep) -> list[dict[str, str]]:
    """Metrics in the order of the table's columns, the score last."""
    single = sweep.info["score"]["metrics"] if len(sweep.info["score"]["metrics"]) == 1 else []
    columns = [{"metric": m, "title": sweep.names[m], "path": m} for m in sweep.metrics if m not in single]
    return [*columns, {"metric": "score", "title": sweep.title, "path": " + ".join(sweep.info["score"]["metrics"])}]


def paper_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a cell: labels, best point, mean and sd of every metric, n, rank and seconds; `word` where it has no result."""
    columns = paper_columns(sweep)
    best = {}
    for column in columns:
        means = [sweep.figures[cell, column["metric"]]["mean"] for cell in sweep.cells]
        known = [mean for mean in means if number_format.is_number(mean)]
        best[column["metric"]] = (min(known) if _low(sweep, column["metric"]) else max(known)) if known else math.nan
    rows = []
    for cell, labels in sweep.cells.items():
        point, score, state = sweep.point(cell), sweep.figures[cell, "score"], sweep.state(cell)
        values = []
        for column in columns:
            row = sweep.figures[cell, column["metric"]]
            percent = sweep.percent if column["metric"] == "score" else metrics.metric(column["metric"]).percent
            values.append(
                {
                    "mean": number_format.value(row["mean"], percent),
                    "sd": number_format.value(row["sd"], percent),
                    "best": row["mean"] == best[column["metric"]],
                }
            )
        rows.append(
            {
                "cell": cell,
                "labels": labels or [cell],
                "point": [number_format.parameter(point.get(p["key"])) for p in sweep.parameters],
                "values": values,
                "word": "" if state == "results" else state,
                "n": int(score["n"]),
                "rank": int(score["rank"]) if number_format.is_number(score["rank"]) else "",
                "seconds": number_format.duration(score["seconds"]),
            }
        )
    return rows


def chance_row(sweep: Sweep) -> list[str]:
    """What guessing scores, by column of the paper's table; empty where it is not known of any metric."""
    base = metrics.chances(sweep.info["baselines"])
    score = [base.get(metric, math.nan) for metric in sweep.info["score"]["metrics"]]
    base["score"] = math.fsum(score) / len(score) if score else math.nan
    row = [number_format.value(base.get(column["metric"], math.nan)) for column in paper_columns(sweep)]
    return row if any(row) else []


def pairs(sweep: Sweep) -> list[dict[str, Any]]:
    """Every comparison with its verdict in words; where the leader is in it, `other` is the cell that it is compared with."""
    found, leader = [], sweep.verdict.leader
    for row in records(sweep.comparisons):
        if math.isnan(row["p"]):
            word = "not testable" if row["n"] > 1 else "too few seeds"
        else:
            word = "better" if row["distinguishable"] else "within noise"
        found.append(
            {
                "better": row["better"],
                "worse": row["worse"],
                "other": {row["better"]: row["worse"], row["worse"]: row["better"]}.get(leader, ""),
                # On the seeds that both have, the leader may be behind.
                "behind": row["worse"] == leader,
                "n": int(row["n"]),
                "difference": number_format.value(row["difference"], sweep.percent),
                "sd": number_format.value(row["sd"], sweep.percent),
                "se_items": number_format.value(row["se_items"], sweep.percent),
                "p": number_format.probability(row["p"]),
                "p_adjusted": number_format.probability(row["p_adjusted"]),
                "word": word,
            }
        )
    return found
