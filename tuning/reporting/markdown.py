"""report.md: the answer, the tables, failures and how to do it again, for a terminal or a repository."""

from collections.abc import Iterable
from typing import Any

from evaluation.reporting import number_format
from evaluation.reporting.render import markdown_table, plain
from tuning.reporting import conclusion, grid, page, space
from tuning.reporting.sweep_data import Sweep


def render(sweep: Sweep) -> str:
    """The whole file."""
    parts = [
        f"# {plain(sweep.info['name'])}",
        f"**{plain(conclusion.answer(sweep).striptags())}.**",
        *_certainty(sweep),
        _bullets(f"{name}: {plain(said)}" for name, said in conclusion.facts(sweep)),
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


def _code(text: str) -> str:
    return f"```\n{text}\n```"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _certainty(sweep: Sweep) -> list[str]:
    """The paragraphs; the command that follows the last is kept as it is typed."""
    paragraphs = [paragraph.striptags() for paragraph in conclusion.certainty(sweep)]
    if not paragraphs:
        return []
    command = conclusion.more_seeds(sweep.info)
    return [*map(plain, [*paragraphs[:-1], paragraphs[-1].removesuffix(command)]), _code(command)]


def _grid(sweep: Sweep) -> list[str]:
    """The score over the grid."""
    maps = grid.heat_maps(sweep)
    if not maps:
        return []
    heat = maps[0]
    rows = [
        [plain(row["head"]) or plain(heat["title"]), *(_marked(cell) if cell["value"] else cell["word"] for cell in row["cells"])]
        for row in heat["rows"]
    ]
    return [
        f"## {plain(heat['title'])} over the grid",
        markdown_table([plain(heat["down"]) or " ", *map(plain, heat["columns"])], rows),
        "Mean over seeds, bold the best, `=` level with it. In brackets an interval of the mean over seeds, on "
        "the same test items, and the number of seeds.",
    ]


def _marked(cell: dict[str, Any]) -> str:
    value = f"**{cell['value']}**" if cell["best"] else f"{cell['value']} `=`" if cell["level"] else cell["value"]
    return f"{value} ({', '.join(cell['small'])})"


def _cells(sweep: Sweep) -> list[str]:
    """The table in the style of a paper."""
    axes = [axis["title"] for axis in sweep.axes] or ["cell"]
    titles = [entry["title"] for entry in [*sweep.parameters, *grid.paper_columns(sweep)]]
    rows = []
    for row in grid.paper_rows(sweep):
        values = []
        for value in row["values"]:
            mean = f"**{value['mean']}**" if value["best"] else value["mean"]
            values.append(f"{mean} ({value['sd']})" if value["sd"] else mean)
        if row["word"]:
            values[-1] = row["word"]
        rows.append([*map(plain, (*row["labels"], *row["point"])), *values, str(row["n"]), str(row["rank"]), row["seconds"]])
    if chance := grid.chance_row(sweep):
        rows.append(["chance", *[""] * (len(axes) - 1 + len(sweep.parameters)), *chance, "", "", ""])
    chosen = f"Best point of each cell, selected on the {plain(sweep.validation_split)} split"
    what = f"{chosen if len(sweep.search) else 'Every cell'}, measured on the {plain(sweep.test_split)} split"
    return [
        "## Cells",
        markdown_table([*map(plain, [*axes, *titles]), "n", "rank", "time"], rows, len(axes)),
        f"{what}: mean (standard deviation) over n seeds; time is that of one final run.",
    ]


def _pairs(sweep: Sweep) -> list[str]:
    """The leader against every other."""
    rows = [[plain(pair["other"]), *pair["of_leader"][1:]] for pair in grid.pairs(sweep) if pair["other"]]
    if not rows:
        return []
    table = markdown_table(["against", *grid.PAIR_HEAD], rows)
    return [f"## {plain(sweep.verdict.leader)} against every other", table, "All pairs are in `pairwise.csv`."]


def _edges(sweep: Sweep) -> list[str]:
    found = space.edges(sweep)
    return ["## Ranges to widen", _bullets(f"{plain(cell)}: {plain(said)}" for cell, said in found)] if found else []


def _failures(sweep: Sweep) -> list[str]:
    rows = [[plain(reason), plain(", ".join(trials))] for reason, trials in page.failures(sweep)]
    parts = ["## Failures", markdown_table(["reason", "trials"], rows, 2) if rows else "No trial failed."]
    if stopped := len(sweep.with_status("stopped")):
        parts.append(f"{number_format.count(stopped, 'search trial')} ended early by the scheduler; that is no failure.")
    return parts


def _again(sweep: Sweep) -> list[str]:
    """Data, commands and versions."""
    info, commands = sweep.info, page.commands(sweep)
    data = []
    for dataset in info["datasets"]:
        counts = dataset["counts"]
        data.append(
            f"{plain(dataset['name'])}: {counts['kept']:,} of {counts['listed']:,} rows kept, {counts['found']:,} found, "
            f"{sum(counts['rejected'].values()):,} rejected; fingerprint `{dataset['fingerprint']}`; "
            f"{plain(dataset['attribution'])} (licence: {plain(dataset['licence'])})"
        )
    machine = [f"{info['machine'].get('cpus', '?')} CPUs, {info['machine'].get('processor', '?')}", info["resources"]]
    return [
        "## Reproduce",
        "The same command goes on where the sweep stands, or says that it is done; with more seeds it extends it:",
        _code(f"{commands['resume']}\n{commands['extend']}"),
        "These files are written again by",
        _code(commands["report"]),
        "## Data",
        _bullets(data) or "No dataset is known yet.",
        "## Versions",
        _bullets(f"{plain(name)} {plain(version)}" for name, version in info["versions"].items()),
        plain(f"{'; '.join(machine)}; sampler {info['sampler']}, scheduler {info['scheduler']}, budget {info['budget']}."),
    ]
