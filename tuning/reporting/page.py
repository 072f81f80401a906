"""The files of a sweep's report: answer, tables, charts, failures and how to reproduce it."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format, render
from evaluation.reporting.markdown import markdown
from pipelines.io.retry import shown
from pipelines.program import yaml_text
from pipelines.program.csv_text import to_csv
from training.run_store import place_of
from tuning.reporting import charts, conclusion, grid, sweep_data
from tuning.reporting.findings import findings
from tuning.reporting.search import ranges_to_widen, search
from tuning.reporting.sweep_data import Sweep, records

_TILES = 4  # in a row
_RELOAD = 30  # seconds after which a browser reads the page of a running sweep again: `tuning.progress` writes it no oftener


def write_report(folder: Path) -> str:
    """Write the four files into a sweep's folder; the Markdown has the page's tables and no charts. Returns the answer.

    Raises `UserError` where the folder, or a file that it should hold, is missing or not readable.
    """
    sweep = sweep_data.read(folder)
    name, versions = sweep.info["name"], sweep.info["versions"]
    answer, told = conclusion.answer(sweep), [html.fill("<p>{}</p>", said) for said in conclusion.certainty(sweep)]
    facts = html.facts(conclusion.facts(sweep))
    tables, failures, again = [grid.grid(sweep), grid.cells(sweep), grid.pairs(sweep)], _failures(sweep), _reproduce(sweep)
    drawn = [charts.learning(sweep), search(sweep), charts.cost(sweep), findings(sweep)]
    credits = [f" Images and captions of {dataset['name']}: {html.credit(dataset)}." for dataset in sweep.info["datasets"]]
    page = render.page(
        name,
        html.fill("Sweep <b>{}</b>{}", name, ", still running" if sweep.yet else ""),
        answer,
        [_as_of(sweep), _tiles(sweep), *told, facts],
        [charts.scaling(sweep), *tables, *drawn, failures, again],
        html.fill("Written by raylign {}.{}", versions["raylign"], "".join(credits)),
        reload=_RELOAD if sweep.yet else None,
    )
    files = html.paragraph(
        "Charts, every trial and its command are in <code>report.html</code>; tables for programs are <code>summary.csv</code>, "
        "<code>pairwise.csv</code> and <code>trials.csv</code>."
    )
    shown = [table.content for table in tables if table]
    report = markdown(name, answer, *told, facts, files, *shown, ranges_to_widen(sweep), failures.content, again.content)
    csv = {"summary.csv": to_csv(sweep.summary), "pairwise.csv": to_csv(sweep.comparisons)}
    render.write_files(folder, csv | {"report.html": page, "report.md": report})
    return f"{answer.striptags()}."


def _as_of(sweep: Sweep) -> Markup:
    """Of a sweep that runs, of which moment the page is."""
    if not sweep.yet:
        return Markup("")
    ended, since = int((sweep.trials["status"] != "running").sum()), number_format.duration(sweep.info.get("seconds", math.nan))
    words = "As of {} trials that have ended, after {}: still running; the page is written anew as it goes on."
    return html.paragraph(words, f"{ended:,}", since, style="soft")


def _tiles(sweep: Sweep) -> Markup:
    """The leader's figures: the score, what it is the mean of, and other metrics where there is room."""
    if sweep.verdict.leader is None:
        return Markup("")
    tiles = []
    for measure in [sweep.score, *sweep.measures][: max(_TILES, 1 + len(sweep.info["score"]["metrics"]))]:
        row = sweep.figures[sweep.verdict.leader, measure.key]
        spread = f"sd {measure.shown(row['sd'])} over {int(row['n'])} seeds" if row["n"] > 1 else "one seed"
        shown, unit = measure.shown(row["mean"]), measure.unit.strip()
        tiles.append(html.tile(measure.title, shown, unit, measure.path, html.tag("p", spread)))
    return html.div("tiles", *tiles)


def _failures(sweep: Sweep) -> html.Section:
    """Trials by the reason that they failed for, the most frequent first."""
    status = sweep.trials["status"]
    failed = sweep.trials[status == "failed"].groupby("reason", sort=False, dropna=False)["trial"].agg(list).to_dict()
    rows = [(str(why), f"{len(names)}: {', '.join(names)}") for why, names in sorted(failed.items(), key=lambda e: -len(e[1]))]
    shown = html.table("Failures", ("reason", "trials"), rows, 2, "trials") if rows else html.paragraph("No trial failed.")
    stopped = number_format.count((status == "stopped").sum(), "search trial")
    early = html.paragraph("{} ended early by the scheduler ({}); that is no failure.", stopped, sweep.info["scheduler"])
    return html.section("failures", "Failures", shown, early if "stopped" in set(status) else "")


def _reproduce(sweep: Sweep) -> html.Section:
    """Commands as somebody in this folder would type them, data, machine, versions, and every trial."""
    info, here, folder = sweep.info, Path.cwd(), place_of(sweep.folder)
    if isinstance(folder, Path) and folder.absolute().is_relative_to(here):  # no path of one machine
        folder = folder.absolute().relative_to(here)
    data = [_dataset(dataset) for dataset in info["datasets"]]
    setup = {
        "Machine": f"{info['machine'].get('cpus', '?')} CPUs, {info['machine'].get('processor', '?')}",
        **{name.capitalize(): info[name] for name in ("resources", "sampler", "scheduler", "budget")},
        "Seeds": f"{', '.join(map(str, info['seeds']))} ({', '.join(info['seed_keys'])})",
    }
    return html.section(
        "again",
        "Reproduce",
        html.paragraph("The same command resumes the sweep{}:", "" if sweep.yet else ", or says that it is done"),
        html.tag("pre", info["command"]),
        html.paragraph("More seeds extend it; finished trials are kept:"),
        html.tag("pre", conclusion.more_seeds(info)),
        html.paragraph("This page is written again, without training, by"),
        html.tag("pre", shlex.join(["python", "-m", "tuning", "report", str(folder)])),
        html.div(
            "columns",
            html.div("", *(data or [html.soft("The data is not known before the first trial ends.")])),
            html.div("", html.tag("h3", "Setup"), html.facts(setup.items())),
            html.div("", html.tag("h3", "Versions"), html.facts(info["versions"].items())),
        ),
        html.more("The sweep file, resolved", html.tag("pre", shown(yaml_text.dump(info["settings"])))),
        _trials(sweep),
    )


def _dataset(dataset: Mapping[str, Any]) -> Markup:
    counts = dataset["counts"]
    splits = ", ".join(f"{split} {dataset[f'{split}_samples'] or 0:,}" for split in ("train", "validation", "test"))
    facts = {
        "Rows": f"{counts['listed']:,} listed, {counts['found']:,} found, {counts['kept']:,} kept",
        "Rejected": ", ".join(f"{why.replace('_', ' ')} {n:,}" for why, n in counts["rejected"].items()) or "0",
        "Splits": splits,
        "Shuffled": dataset["shuffled"] and f"{dataset['shuffled']:,} training rows have another row's captions, on purpose",
        **{name.capitalize(): dataset[name] for name in ("fingerprint", "licence", "attribution")},
    }
    return html.join(html.tag("h3", f"Data: {dataset['name']}"), html.facts((k, v) for k, v in facts.items() if v))


def _trials(sweep: Sweep) -> Markup:
    """Every trial, with the command that repeats it."""
    lines = []
    for trial in records(sweep.trials):
        point = [(p["title"], number_format.parameter(trial[p["key"]])) for p in sweep.parameters]
        settings = (html.fill('<span class="whole">{} {}</span>', title, value) for title, value in point if value)
        line = [trial["trial"], trial["status"], trial["split"], Markup("<br>").join(settings)]
        line += [html.fill("<code>{}</code>", trial["command"]), sweep.score.shown(trial["score"])]
        lines.append([*line, number_format.parameter(trial["epochs"]), number_format.duration(trial["seconds"])])
    titles = ("trial", "status", "split", "point", "command", sweep.score.title, "epochs", "time")
    title = f"All {number_format.count(len(lines), 'trial')}, each with the command that repeats it"
    return html.more(title, html.table("All trials", titles, lines, text=5, style="trials")) if lines else Markup("")
