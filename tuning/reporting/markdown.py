"""report.md: the answer, the tables, failures and how to do it again, for a terminal or a repository."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pipelines.program import number_format
from tuning.reporting import conclusion, grid, page, space
from tuning.reporting.sweep_data import Sweep

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


def render(sweep: Sweep) -> str:
    """The whole file."""
    parts = [
        f"# {_plain(sweep.info['name'])}",
        f"**{_plain(conclusion.answer(sweep).striptags())}.**",
        *_certainty(sweep),
        _bullets(f"{name}: {_plain(said)}" for name, said in conclusion.facts(sweep)),
        "Charts, every trial and its command are in `report.html`; tables for programs are `summary.csv`, `pairwise.csv` and "
        "`trials.csv`.",
        *_grid(sweep),
        *_cells(sweep),
        *_pairs(sweep),
        *_edges(sweep),
        *_failures(sweep),
        *_again(sweep),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _plain(text: Any) -> str:
    """Text that stays text: on one line, nothing of it is markup."""
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    return f"```\n{text}\n```"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Cells are Markdown already; all but the first columns are of numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *rows])


def _certainty(sweep: Sweep) -> list[str]:
    """The paragraphs; the command that follows the last is kept as it is typed."""
    paragraphs = conclusion.certainty(sweep)
    if not paragraphs:
        return []
    *told, last = [paragraph.striptags() for paragraph in paragraphs]
    command = conclusion.more_seeds(sweep.info)
    return [*(_plain(paragraph) for paragraph in told), _plain(last.removesuffix(command)), _code(command)]


def _grid(sweep: Sweep) -> list[str]:
    """The score over the grid."""
    maps = grid.heat_maps(sweep)
    if not maps:
        return []
    heat = maps[0]
    rows = []
    for row in heat["rows"]:
        cells = [_marked(cell) if cell["value"] else cell["word"] for cell in row["cells"]]
        rows.append([_plain(row["head"]) or _plain(heat["title"]), *cells])
    return [
        f"## {_plain(heat['title'])} over the grid",
        _table([_plain(heat["down"]) or " ", *(_plain(column) for column in heat["columns"])], rows),
        "Mean over seeds, bold the best, `=` level with it. In brackets an interval of the mean over seeds, on "
        "the same test items, and the number of seeds.",
    ]


def _marked(cell: dict[str, Any]) -> str:
    value = f"**{cell['value']}**" if cell["best"] else f"{cell['value']} `=`" if cell["level"] else cell["value"]
    return f"{value} ({', '.join(cell['small'])})"


def _cells(sweep: Sweep) -> list[str]:
    """The table in the style of a paper."""
    columns = grid.paper_columns(sweep)
    axes = [axis["title"] for axis in sweep.axes] or ["cell"]
    head = [*axes, *(p["title"] for p in sweep.parameters), *(column["title"] for column in columns), "n", "rank", "time"]
    rows = []
    for row in grid.paper_rows(sweep):
        values = []
        for value in row["values"]:
            mean = f"**{value['mean']}**" if value["best"] else value["mean"]
            values.append(f"{mean} ({value['sd']})" if value["sd"] else mean)
        if row["word"]:
            values[-1] = row["word"]
        texts = [_plain(text) for text in (*row["labels"], *row["point"])]
        rows.append([*texts, *values, str(row["n"]), str(row["rank"]), row["seconds"]])
    chance = grid.chance_row(sweep)
    if chance:
        rows.append(["chance", *[""] * (len(axes) - 1 + len(sweep.parameters)), *chance, "", "", ""])
    measured = f"measured on the {_plain(sweep.test_split)} split"
    what = (
        f"Best point of each cell, selected on the {_plain(sweep.validation_split)} split, "
        if len(sweep.search)
        else "Every cell, "
    )
    return [
        "## Cells",
        _table([_plain(title) for title in head], rows, len(axes)),
        f"{what}{measured}: mean (standard deviation) over n seeds; time is that of one final run.",
    ]


def _pairs(sweep: Sweep) -> list[str]:
    """The leader against every other."""
    rows = []
    for pair in grid.pairs(sweep):
        if pair["other"]:
            sign = "-" if pair["behind"] else ""
            figures = [f"{sign}{pair['difference']}", pair["sd"], str(pair["n"]), pair["se_items"], pair["p"], pair["p_adjusted"]]
            rows.append([_plain(pair["other"]), *figures, pair["word"]])
    if not rows:
        return []
    head = ["against", "difference", "sd", "seeds", "se of items", "p", "p, Holm", "verdict"]
    return [f"## {_plain(sweep.verdict.leader)} against every other", _table(head, rows), "All pairs are in `pairwise.csv`."]


def _edges(sweep: Sweep) -> list[str]:
    found = space.edges(sweep)
    if not found:
        return []
    lines = [
        f"{_plain(e['cell'])}: {_plain(e['title'])} {e['value']} is at the edge of its range (its {e['side']} end is "
        f"{e['end']}): widen it"
        for e in found
    ]
    return ["## Ranges to widen", _bullets(lines)]


def _failures(sweep: Sweep) -> list[str]:
    failed, stopped = sweep.with_status("failed"), len(sweep.with_status("stopped"))
    parts = ["## Failures"]
    if len(failed):
        rows = [[_plain(group["reason"]), _plain(", ".join(group["trials"]))] for group in page.failures(sweep)]
        parts.append(_table(["reason", "trials"], rows, 2))
    else:
        parts.append("No trial failed.")
    if stopped:
        parts.append(f"{number_format.count(stopped, 'search trial')} ended early by the scheduler; that is no failure.")
    return parts


def _again(sweep: Sweep) -> list[str]:
    """Data, commands and versions."""
    info, commands = sweep.info, page.commands(sweep)
    data = []
    for dataset in info["datasets"]:
        counts = dataset["counts"]
        rejected = sum(counts["rejected"].values())
        data.append(
            f"{_plain(dataset['name'])}: {counts['kept']:,} of {counts['listed']:,} rows kept, {counts['found']:,} found, "
            f"{rejected:,} rejected; fingerprint `{dataset['fingerprint']}`; {_plain(dataset['attribution'])} "
            f"(licence: {_plain(dataset['licence'])})"
        )
    return [
        "## Do it again",
        "The same command goes on where the sweep stands, or says that it is done; with more seeds it extends it:",
        _code(f"{commands['resume']}\n{commands['extend']}"),
        "These files are written again by",
        _code(commands["report"]),
        "## Data",
        _bullets(data) or "No dataset is known yet.",
        "## Versions",
        _bullets(f"{_plain(name)} {_plain(version)}" for name, version in info["versions"].items()),
        f"{_plain(info['machine'].get('cpus', '?'))} CPUs, {_plain(info['machine'].get('processor', '?'))}; "
        f"{_plain(info['resources'])}; sampler {_plain(info['sampler'])}, scheduler {_plain(info['scheduler'])}, "
        f"budget {_plain(info['budget'])}.",
    ]
