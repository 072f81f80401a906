"""Heat maps over the grid, the table in the style of a paper, and the pairs: rows and columns for HTML and Markdown alike."""

import math
from itertools import product
from typing import Any

from evaluation.reporting import number_format
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
    first, rest = sweep.axes[0], sweep.axes[1:]
    rows = list(product(*(axis["labels"] for axis in rest)))
    by_labels = {tuple(labels): cell for cell, labels in sweep.cells.items()}
    known = _known(sweep, metric)
    table = [[_heat_cell(sweep, by_labels.get((label, *row)), metric, known) for label in first["labels"]] for row in rows]
    columns, heads = list(first["labels"]), [", ".join(row) for row in rows]
    across, down = first["title"], " x ".join(axis["title"] for axis in rest)
    if len(columns) > _MANY_COLUMNS and len(rows) < len(columns):
        table = [list(column) for column in zip(*table, strict=True)]
        columns, heads, across, down = heads, columns, down, across
    return {
        "title": sweep.title if metric == "score" else sweep.names[metric],
        "path": sweep.score_path if metric == "score" else metric,
        "percent": sweep.is_percent(metric),
        "score": metric == "score",
        "across": across,
        "down": down,
        "columns": columns,
        "rows": [{"head": head, "cells": cells} for head, cells in zip(heads, table, strict=True)],
    }


def _known(sweep: Sweep, metric: str) -> list[float]:
    means = [sweep.figures[cell, metric]["mean"] for cell in sweep.cells]
    return [mean for mean in means if number_format.is_number(mean)]


def _heat_cell(sweep: Sweep, cell: str | None, metric: str, known: list[float]) -> dict[str, Any]:
    empty = {"cell": cell or "", "value": "", "word": "not planned", "heat": 0.0, "best": False, "level": False, "small": []}
    if cell is None:
        return empty
    row, percent = sweep.figures[cell, metric], sweep.is_percent(metric)
    if not row["n"]:
        state = sweep.state(cell)
        return empty | {"word": "not measured" if state == "results" else state}
    best, ends = sweep.better(metric)(known), (row["low"], row["high"])
    share = abs(row["mean"] - best) / ((max(known) - min(known)) or 1.0)
    interval = "\u2013".join(number_format.value(end, percent) for end in ends) if number_format.is_number(row["low"]) else ""
    return {
        "cell": cell,
        "value": number_format.value(row["mean"], percent),
        "word": "",
        "heat": round(0.5 - 0.46 * share, 3),
        "best": row["mean"] == best,
        "level": metric == "score" and cell in sweep.verdict.level_with and sweep.verdict.resolution is not None,
        "small": [part for part in (interval, f"n {int(row['n'])}") if part],
    }


def paper_columns(sweep: Sweep) -> list[dict[str, str]]:
    """Metrics in the order of the table's columns, the score last."""
    single = sweep.info["score"]["metrics"] if len(sweep.info["score"]["metrics"]) == 1 else []
    columns = [{"metric": m, "title": sweep.names[m], "path": m} for m in sweep.metrics if m not in single]
    return [*columns, {"metric": "score", "title": sweep.title, "path": sweep.score_path}]


def paper_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a cell: labels, best point, mean and sd of every metric, n, rank and seconds; `word` where it has no result."""
    metrics = [column["metric"] for column in paper_columns(sweep)]
    best = {metric: sweep.better(metric)(_known(sweep, metric), default=math.nan) for metric in metrics}
    rows = []
    for cell, labels in sweep.cells.items():
        point, score, state = sweep.point(cell), sweep.figures[cell, "score"], sweep.state(cell)
        values = []
        for metric in metrics:
            row, percent = sweep.figures[cell, metric], sweep.is_percent(metric)
            shown = {key: number_format.value(row[key], percent) for key in ("mean", "sd")}
            values.append(shown | {"best": row["mean"] == best[metric]})
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
    row = [number_format.value(sweep.chances.get(column["metric"], math.nan)) for column in paper_columns(sweep)]
    return row if any(row) else []


PAIR_HEAD = ("difference", "sd", "seeds", "se of items", "p", "p Holm", "verdict")


def pairs(sweep: Sweep) -> list[dict[str, Any]]:
    """Every comparison with its figures, as `PAIR_HEAD` says; `other`: the cell that the leader is compared with in it."""
    rows, leader = [], sweep.verdict.leader
    for row in records(sweep.comparisons):
        if math.isnan(row["p"]):
            word = "not testable" if row["n"] > 1 else "too few seeds"
        else:
            word = "better" if row["distinguishable"] else "within noise"
        difference, sd, se = (number_format.value(row[key], sweep.percent) for key in ("difference", "sd", "se_items"))
        figures = [difference, sd, str(int(row["n"])), se]
        figures += [number_format.probability(row["p"]), number_format.probability(row["p_adjusted"]), word]
        other = {row["better"]: row["worse"], row["worse"]: row["better"]}.get(leader, "")
        behind = "\N{MINUS SIGN}" if row["worse"] == leader else ""  # on the seeds that both have, the leader may be behind
        of_leader = [other, behind + figures[0], *figures[1:]]
        rows.append({"better": row["better"], "worse": row["worse"], "other": other, "figures": figures, "of_leader": of_leader})
    return rows
