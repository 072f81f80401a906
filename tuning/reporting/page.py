"""report.html: everything that the page shows, gathered for its template."""

import shlex
from pathlib import Path
from typing import Any

from evaluation.reporting import number_format, render
from pipelines.io.retry import shown
from pipelines.program import yaml_text
from tuning.reporting import charts, conclusion, grid, space
from tuning.reporting.sweep_data import Sweep, records

_TILES = 4  # in a row


def render_page(sweep: Sweep) -> str:
    """The whole file."""
    values = {
        "sweep": sweep,
        "info": sweep.info,
        "answer": conclusion.answer(sweep),
        "certainty": conclusion.certainty(sweep),
        "facts_told": conclusion.facts(sweep),
        "tiles": _tiles(sweep),
        "heat_maps": grid.heat_maps(sweep),
        "columns": grid.paper_columns(sweep),
        "rows": grid.paper_rows(sweep),
        "chance": grid.chance_row(sweep),
        "sizes": _sizes(sweep),
        "pairs": grid.pairs(sweep),
        "pair_head": grid.PAIR_HEAD,
        "scaling": charts.scaling(sweep),
        "learning": charts.learning(sweep),
        "sensitivity": charts.sensitivity(sweep),
        "edges": space.edges(sweep),
        "parallel": charts.parallel(sweep),
        "shades": range(charts.SHADES),
        "importances": space.importances(sweep),
        "min_trials": space.MIN_TRIALS,
        "cost": charts.cost(sweep),
        "failures": failures(sweep),
        "stopped": len(sweep.with_status("stopped")),
        "trials": _trials(sweep),
        "again": commands(sweep),
        "settings": shown(yaml_text.dump(sweep.info["settings"])),
    }
    return render.page(Path(__file__).parent, "report.html.j2", values)


def failures(sweep: Sweep) -> list[tuple[str, list[str]]]:
    """What went wrong, the most frequent first: reason, and the names of the trials that it befell."""
    groups: dict[str, list[str]] = {}
    for row in records(sweep.with_status("failed")):
        groups.setdefault(row["reason"], []).append(row["trial"])
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def commands(sweep: Sweep) -> dict[str, str]:
    """How to resume, extend, and write this page again, as somebody in this folder would type it."""
    here, folder = Path.cwd(), sweep.folder
    if folder.absolute().is_relative_to(here):  # no path of one machine
        folder = folder.absolute().relative_to(here)
    report = shlex.join(["python", "-m", "tuning", "report", str(folder)])
    return {"resume": sweep.info["command"], "extend": conclusion.more_seeds(sweep.info), "report": report}


def _tiles(sweep: Sweep) -> list[dict[str, str]]:
    """The leader's figures: the score, what it is the mean of, and other metrics where there is room."""
    leader = sweep.verdict.leader
    if leader is None:
        return []
    *columns, score = grid.paper_columns(sweep)  # those of the score come first
    tiles = []
    for column in [score, *columns][: max(_TILES, 1 + len(sweep.info["score"]["metrics"]))]:
        row, percent = sweep.figures[leader, column["metric"]], sweep.is_percent(column["metric"])
        spread = f"sd {number_format.value(row['sd'], percent)} over {int(row['n'])} seeds" if row["n"] > 1 else "one seed"
        value = number_format.value(row["mean"], percent)
        tiles.append(column | {"value": value, "unit": "%" if percent else "", "about": spread})
    return tiles


def _sizes(sweep: Sweep) -> dict[int, list[str]]:
    """Number of items of the test split -> names of the metrics that are of so many."""
    sizes: dict[int, list[str]] = {}
    for path, size in sweep.info["sample_sizes"].items():
        if path in sweep.names:
            sizes.setdefault(size, []).append(sweep.names[path])
    return sizes


def _trials(sweep: Sweep) -> list[dict[str, Any]]:
    """Every trial as a row of strings, in the order of the table."""
    rows = []
    for row in records(sweep.trials):
        point = [(p["title"], number_format.parameter(row[p["key"]])) for p in sweep.parameters]
        figures = [number_format.value(row["score"], sweep.percent), row["split"], number_format.parameter(row["epochs"])]
        about = {"trial": row["trial"], "status": row["status"], "command": row["command"]}
        about["point"] = [f"{title} {value}" for title, value in point if value]
        rows.append(about | {"figures": [*figures, number_format.duration(row["seconds"])]})
    return rows
