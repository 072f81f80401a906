"""report.html of a sweep: answer, grid, cells, pairs and how to reproduce it; charts are in `charts` and `search`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format, render
from pipelines.io.retry import shown
from pipelines.program import yaml_text
from tuning.reporting import charts, conclusion, grid
from tuning.reporting.search import search
from tuning.reporting.sweep_data import Sweep, records

_TILES = 4  # in a row


def render_page(sweep: Sweep) -> str:
    """The whole file."""
    info = sweep.info
    lead = [
        _tiles(sweep),
        *(html.fill("<p>{}</p>", told) for told in conclusion.certainty(sweep)),
        html.facts(conclusion.facts(sweep)),
    ]
    credits = [f" Images and captions of {dataset['name']}: {_credit(dataset)}." for dataset in info["datasets"]]
    return render.page(
        info["name"],
        html.fill("Sweep <b>{}</b>{}", info["name"], ", still running" if sweep.running else ""),
        conclusion.answer(sweep),
        lead,
        [
            charts.scaling(sweep),
            _grid(sweep),
            _cells(sweep),
            _pairs(sweep),
            charts.learning(sweep),
            search(sweep),
            charts.cost(sweep),
            _failures(sweep),
            _reproduce(sweep),
        ],
        html.fill("Written by raylign {}.{}", info["versions"]["raylign"], "".join(credits)),
    )


def failures(sweep: Sweep) -> list[tuple[str, list[str]]]:
    """Reason and names of the trials that failed for it, the most frequent first."""
    groups: dict[str, list[str]] = {}
    for trial in records(sweep.with_status("failed")):
        groups.setdefault(trial["reason"], []).append(trial["trial"])
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def commands(sweep: Sweep) -> dict[str, str]:
    """How to resume, extend, and write this page again, as somebody in this folder would type it."""
    here, folder = Path.cwd(), sweep.folder
    if folder.absolute().is_relative_to(here):  # no path of one machine
        folder = folder.absolute().relative_to(here)
    report = shlex.join(["python", "-m", "tuning", "report", str(folder)])
    return {"resume": sweep.info["command"], "extend": conclusion.more_seeds(sweep.info), "report": report}


def _credit(dataset: Mapping[str, Any]) -> str:
    licence, attribution = dataset["licence"], dataset["attribution"]
    return attribution if licence in attribution else f"{attribution} (licence: {licence})"


def _tiles(sweep: Sweep) -> Markup:
    """The leader's figures: the score, what it is the mean of, and other metrics where there is room."""
    leader = sweep.verdict.leader
    if leader is None:
        return Markup("")
    *columns, score = grid.paper_columns(sweep)  # those of the score come first
    tiles = []
    for column in [score, *columns][: max(_TILES, 1 + len(sweep.info["score"]["metrics"]))]:
        figures, percent = sweep.figures[leader, column["metric"]], sweep.is_percent(column["metric"])
        spread = (
            f"sd {number_format.value(figures['sd'], percent)} over {int(figures['n'])} seeds" if figures["n"] > 1 else "one seed"
        )
        value = number_format.value(figures["mean"], percent)
        tiles.append(html.tile(column["title"], value, "%" if percent else "", column["path"], html.paragraph("{}", spread)))
    return html.div("tiles", *tiles)


def _grid(sweep: Sweep) -> html.Section | None:
    maps = [_heat_map(heat) for heat in grid.heat_maps(sweep)]
    if not maps:
        return None
    chosen = "; no cell was searched, so nothing was selected before"
    if sweep.parameters:
        chosen = f", of the point of each cell that was best on the {sweep.validation_split} split"
    about = html.paragraph(
        "Mean over seeds on the {} split{}. The stronger the colour, the better a cell is within its map. Small print: "
        "bootstrap interval of the mean <b>over seeds, on the same test items</b> (nominally 95 %; with three seeds it is the "
        "span of all three, and covers less; none where all seeds score the same) and n, the number of seeds. Another draw of "
        'test items is not in it, but in the <a href="#pairs">comparison of pairs</a>{}. &#9733; marks the best mean, &asymp; '
        "a cell level with it: not distinguishable from the leader.",
        sweep.test_split,
        chosen,
        "" if sweep.verdict.over_items else " only where runs kept their items, which these did not",
    )
    return html.section("grid", "Grid", about, maps[0], html.div("maps", *maps[1:]))


def _heat_map(heat: Mapping[str, Any]) -> Markup:
    columns, above = heat["columns"], ""
    if heat["across"] and len(columns) > 1:
        words = '<tr><td></td><th class="axis" scope="colgroup" colspan="{}">{}</th></tr>'
        above = html.fill(words, len(columns), heat["across"])
    width = round(85 / len(columns), 1)
    heads = (html.fill('<th scope="col" style="width:{}%">{}</th>', width, column) for column in columns)
    titles = html.fill('<tr><th class="axis" scope="col">{}</th>{}</tr>', heat["down"], html.join(*heads))
    lines = [html.row(line["head"], *map(_heat_cell, line["cells"])) for line in heat["rows"]]
    content = html.fill("<table>\n<thead>{}{}</thead>\n<tbody>\n{}\n</tbody>\n</table>", above, titles, html.join(*lines))
    caption = html.fill('<figcaption title="{}">{}{}</figcaption>', heat["path"], heat["title"], ", %" if heat["percent"] else "")
    around = html.scroll(f"{heat['title']} over the grid", content)
    return html.fill('<figure class="heat{}">{}{}</figure>', " main" if heat["score"] else "", caption, around)


def _heat_cell(entry: Mapping[str, Any]) -> Markup:
    if not entry["value"]:
        return html.fill('<td class="none" title="{}">{}</td>', entry["cell"], html.small(entry["word"]))
    name, marked = ("best", "\N{BLACK STAR} best") if entry["best"] else ("level", "\N{ALMOST EQUAL TO} level")
    if not (entry["best"] or entry["level"]):
        name, marked = "", ""
    words = '<td class="{}" title="{}" style="background:rgb(var(--heat) / {})"><b>{}</b>\n{}</td>'
    details = html.join(*map(html.small, entry["small"]), html.small(marked, "mark"))
    return html.fill(words, name, entry["cell"], entry["heat"], entry["value"], details)


def _cells(sweep: Sweep) -> html.Section:
    """The table in the style of a paper."""
    columns, axes = grid.paper_columns(sweep), sweep.axes or [{"title": "cell", "key": "cell"}]
    titled = [*((axis["title"], axis["key"]) for axis in axes), *((p["title"], p["key"]) for p in sweep.parameters)]
    titled += [(column["title"], column["path"]) for column in columns]
    titles = [html.fill('<span title="{}">{}</span>', path, title) for title, path in titled]
    lines = []
    for line in grid.paper_rows(sweep):
        first, *labels = line["labels"]
        others = [html.fill('<th scope="row">{}</th>', label) for label in labels] + [html.cell(value) for value in line["point"]]
        if line["word"]:
            others.append(html.fill('<td class="number word" colspan="{}">{}</td>', len(columns), line["word"]))
        else:
            for value in line["values"]:
                mean = html.fill("<b>{}</b>" if value["best"] else "{}", value["mean"])
                others.append(html.cell(html.fill("{} {}", mean, html.small(f"({value['sd']})" if value["sd"] else ""))))
        name = "leader" if line["cell"] == sweep.verdict.leader else ""
        lines.append(
            html.row(first, *others, html.cell(line["n"]), html.cell(line["rank"]), html.cell(line["seconds"]), name=name)
        )
    foot = Markup("")
    if chance := grid.chance_row(sweep):
        words = '<tbody class="foot"><tr><th scope="row" colspan="{}">chance</th>{}<td colspan="3"></td></tr></tbody>'
        foot = html.fill(words, len(axes) + len(sweep.parameters), html.join(*map(html.cell, chance)))
    content = html.fill(
        '<table class="paper">\n{}\n<tbody>\n{}\n</tbody>\n{}</table>',
        html.head([*titles, "n", "rank", "time"], len(axes)),
        html.join(*lines),
        foot,
    )
    sizes: dict[int, list[str]] = {}
    for path, size in sweep.info["sample_sizes"].items():
        if path in sweep.names:
            sizes.setdefault(size, []).append(sweep.names[path])
    counts = "; ".join(f"{n:,} ({', '.join(names)})" if len(sizes) > 1 else f"{n:,}" for n, names in sizes.items())
    about = html.paragraph(
        "{} on the {} split: mean and, in brackets, standard deviation over n seeds; percentages unless the name says otherwise. "
        "Bold: the best mean of a column. Time is that of one final run.",
        "The best point of every cell" if sweep.parameters else "Every cell",
        sweep.test_split,
    )
    items = html.soft("Items of the {} split that a metric is of: {}.", sweep.test_split, counts) if sizes else ""
    return html.section("cells", "Cells", about, html.scroll("Cells", content), items)


def _pairs(sweep: Sweep) -> html.Section:
    pairs, verdict = grid.pairs(sweep), sweep.verdict
    if not pairs:
        words = "There are no two cells with results to compare{}."
        return html.section("pairs", "Pairs", html.paragraph(words, " yet" if sweep.running else ""))
    pooled = "the spread of all pairs together, or the pair's own where that is larger"
    if verdict.over_items:
        spread = f" ({pooled})" if verdict.comparisons > 1 else ""
        test = (
            '"Se of items" is the standard error of a difference over test items, each of which stands for its group. p is '
            f"against the chance of both, of seeds{spread} and of items;"
        )
    else:
        spread = f" against {pooled}" if verdict.comparisons > 1 else ""
        test = f"p is of a paired t-test{spread}: of another run on the same test items, and not of other items;"
    about = html.paragraph(
        "Differences are means over shared seeds of the difference seed by seed, in points of {}; sd is their standard "
        'deviation. {} p Holm is corrected for {}. "Within noise" does not mean equal: {} cannot tell.',
        sweep.title,
        test,
        number_format.count(verdict.comparisons, "comparison"),
        "these seeds and items" if verdict.over_items else "these seeds",
    )
    of_leader = [pair["of_leader"] for pair in pairs if pair["other"]]
    every = [[pair["better"], pair["worse"], *pair["figures"]] for pair in pairs]
    leading = html.table("Pairs with the leader", [f"{verdict.leader} against", *grid.PAIR_HEAD], of_leader)
    others = Markup("")
    if len(pairs) > len(of_leader):
        all_pairs = html.table("All pairs", ["better mean", "than", *grid.PAIR_HEAD], every, text=2)
        others = html.more(f"All {number_format.count(len(pairs), 'pair')}", all_pairs)
    return html.section("pairs", "Pairs", about, leading, others)


def _failures(sweep: Sweep) -> html.Section:
    rows = [(reason, f"{len(names)}: {', '.join(names)}") for reason, names in failures(sweep)]
    listed = (
        html.table("Failures", ("reason", "trials"), rows, text=2, name="trials") if rows else html.paragraph("No trial failed.")
    )
    stopped, noun = len(sweep.with_status("stopped")), "search trial"
    words = "{} ended early by the scheduler ({}); that is no failure."
    early = html.paragraph(words, number_format.count(stopped, noun), sweep.info["scheduler"]) if stopped else ""
    return html.section("failures", "Failures", listed, early)


def _reproduce(sweep: Sweep) -> html.Section:
    info, typed = sweep.info, commands(sweep)
    data = [_dataset(dataset) for dataset in info["datasets"]]
    data = data or [html.soft("The data is not known before the first trial ends.")]
    setup = [
        ("Machine", f"{info['machine'].get('cpus', '?')} CPUs, {info['machine'].get('processor', '?')}"),
        *((name.capitalize(), info[name]) for name in ("resources", "sampler", "scheduler", "budget")),
        ("Seeds", f"{', '.join(map(str, info['seeds']))} ({', '.join(info['seed_keys'])})"),
    ]
    trials = _trials(sweep)
    return html.section(
        "again",
        "Reproduce",
        html.paragraph("The same command resumes the sweep{}:", "" if sweep.running else ", or says that it is done"),
        html.code(typed["resume"]),
        html.paragraph("More seeds extend it; finished trials are kept:"),
        html.code(typed["extend"]),
        html.paragraph("This page is written again, without training, by"),
        html.code(typed["report"]),
        html.div(
            "columns",
            html.div("", *data),
            html.div("", html.heading("Setup"), html.facts(setup)),
            html.div("", html.heading("Versions"), html.facts(info["versions"].items())),
        ),
        html.more("The sweep file, resolved", html.code(shown(yaml_text.dump(info["settings"])))),
        trials,
    )


def _dataset(dataset: Mapping[str, Any]) -> Markup:
    counts = dataset["counts"]
    rejected = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in counts["rejected"].items()) or "0"
    sizes = [f"{split} {dataset[f'{split}_samples'] or 0:,}" for split in ("train", "validation", "test")]
    shuffled = f"{dataset['shuffled']:,} training rows have another row's captions, on purpose" if dataset["shuffled"] else ""
    pairs = [
        ("Rows", f"{counts['listed']:,} listed, {counts['found']:,} found, {counts['kept']:,} kept"),
        ("Rejected", rejected),
        ("Splits", ", ".join(sizes)),
        ("Shuffled", shuffled),
        *((name.capitalize(), dataset[name]) for name in ("fingerprint", "licence", "attribution")),
    ]
    return html.join(html.heading(f"Data: {dataset['name']}"), html.facts(pairs))


def _trials(sweep: Sweep) -> Markup:
    """Every trial, with the command that repeats it."""
    lines = []
    for trial in records(sweep.trials):
        point = [(p["title"], number_format.parameter(trial[p["key"]])) for p in sweep.parameters]
        settings = (html.fill('<span class="whole">{} {}</span>', title, value) for title, value in point if value)
        lines.append(
            html.row(
                trial["trial"],
                html.cell(trial["status"], ""),
                html.cell(Markup("<br>").join(settings), ""),
                html.cell(number_format.value(trial["score"], sweep.percent)),
                html.cell(trial["split"], ""),
                html.cell(number_format.parameter(trial["epochs"])),
                html.cell(number_format.duration(trial["seconds"])),
                html.cell(html.fill("<code>{}</code>", trial["command"]), ""),
            )
        )
    titles = ("trial", "status", "point", sweep.title, "split", "epochs", "time", "command")
    content = html.fill(
        '<table class="trials">\n{}\n<tbody>\n{}\n</tbody>\n</table>', html.head(titles, len(titles)), html.join(*lines)
    )
    title = f"All {number_format.count(len(lines), 'trial')}, each with the command that repeats it"
    return html.more(title, html.scroll("All trials", content)) if lines else Markup("")
