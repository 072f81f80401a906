"""report.html: everything that the page shows, gathered for its template."""

import shlex
from pathlib import Path
from typing import Any

import jinja2

from evaluation import metrics
from pipelines.io.retry import shown
from pipelines.program import number_format, yaml_text
from tuning.reporting import charts, conclusion, grid, scaling, space
from tuning.reporting.sweep_data import Sweep, records

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_TILES = 4  # in a row


def render(sweep: Sweep) -> str:
    """The whole file: one that needs nothing else, and has no script."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"duration": number_format.duration, "parameter": number_format.parameter}
    environment.globals |= {"count": number_format.count}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        sweep=sweep,
        info=sweep.info,
        answer=conclusion.answer(sweep),
        certainty=conclusion.certainty(sweep),
        facts=conclusion.facts(sweep),
        tiles=_tiles(sweep),
        heat_maps=grid.heat_maps(sweep),
        columns=grid.paper_columns(sweep),
        rows=grid.paper_rows(sweep),
        chance=grid.chance_row(sweep),
        sizes=_sizes(sweep),
        pairs=grid.pairs(sweep),
        scaling=scaling.scaling(sweep),
        colours=range(scaling.COLOURS),
        learning=charts.learning(sweep),
        sensitivity=charts.sensitivity(sweep),
        edges=space.edges(sweep),
        parallel=charts.parallel(sweep),
        shades=range(charts.SHADES),
        importances=space.importances(sweep),
        min_trials=space.MIN_TRIALS,
        cost=charts.cost(sweep),
        failures=failures(sweep),
        stopped=len(sweep.with_status("stopped")),
        trials=_trials(sweep),
        again=commands(sweep),
        settings=shown(yaml_text.dump(sweep.info["settings"])),
    )


def failures(sweep: Sweep) -> list[dict[str, Any]]:
    """What went wrong, the most frequent first: reason, and the names of the trials that it befell."""
    groups: dict[str, list[str]] = {}
    for row in records(sweep.with_status("failed")):
        groups.setdefault(row["reason"], []).append(row["trial"])
    return [{"reason": reason, "trials": groups[reason]} for reason in sorted(groups, key=lambda reason: -len(groups[reason]))]


def commands(sweep: Sweep) -> dict[str, str]:
    """How to resume, extend, and write this page again."""
    return {
        "resume": sweep.info["command"],
        "extend": conclusion.more_seeds(sweep.info),
        "report": shlex.join(["python", "-m", "tuning", "report", _from_here(sweep.folder)]),
    }


def _tiles(sweep: Sweep) -> list[dict[str, str]]:
    """The leader's figures: the score, what it is the mean of, and other metrics where there is room."""
    leader = sweep.verdict.leader
    if leader is None:
        return []
    *columns, score = grid.paper_columns(sweep)  # those of the score come first
    tiles = []
    for column in [score, *columns][: max(_TILES, 1 + len(sweep.info["score"]["metrics"]))]:
        row = sweep.figures[leader, column["metric"]]
        percent = sweep.percent if column["metric"] == "score" else metrics.metric(column["metric"]).percent
        spread = f"sd {number_format.value(row['sd'], percent)} over {int(row['n'])} seeds" if row["n"] > 1 else "one seed"
        tile = {"title": column["title"], "path": column["path"], "value": number_format.value(row["mean"], percent)}
        tiles.append(tile | {"unit": "%" if percent else "", "about": spread})
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
    return [
        {
            "trial": row["trial"],
            "status": row["status"],
            "point": [
                (p["title"], number_format.parameter(row[p["key"]]))
                for p in sweep.parameters
                if number_format.parameter(row[p["key"]])
            ],
            "score": number_format.value(row["score"], sweep.percent),
            "split": row["split"],
            "epochs": number_format.parameter(row["epochs"]),
            "seconds": number_format.duration(row["seconds"]),
            "command": row["command"],
        }
        for row in records(sweep.trials)
    ]


def _from_here(folder: Path) -> str:
    """As somebody in this folder would type it: no path of one machine where a relative one does."""
    here = Path.cwd()
    return str(folder.absolute().relative_to(here)) if folder.absolute().is_relative_to(here) else str(folder)
