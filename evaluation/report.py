"""The page that compares all models of a folder of results: report.html and report.md for people, results.csv for programs.

Made from the result files alone, without Ray and without embedding anything, at any time. Each task brings its own block.
"""

import argparse
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation import wise_ft
from evaluation.class_sets import average_of_eleven
from evaluation.plan import own_task
from evaluation.reporting import html, number_format, render
from evaluation.reporting.chart import Chart, Plot, Scale, figure
from evaluation.reporting.comparison import Cell, Comparison, Row, compare, number, score_table
from evaluation.reporting.markdown import markdown
from evaluation.results import read_results, to_table
from evaluation.task_info import TaskInfo
from evaluation.tasks import TASKS
from evaluation.tasks.base import Task
from pipelines.program.cli import Parser, run_page
from pipelines.program.csv_text import to_csv

_AVERAGED = ("zeroshot_classification", "linear_probe")
_DIGITS = 12  # of a fingerprint
_BARS = 360.0  # pixels wide


def write_report(output: Path, own: Iterable[type[Task]] = ()) -> None:
    """Write the three files into a folder of results. `own`: classes of tasks beside those of `evaluation.tasks.TASKS`.

    Raises `UserError` where there is no result, or one is not readable.
    """
    tasks = {task.info.name: task for task in (*TASKS, *own)}
    results = read_results(output)
    comparison = Comparison(results, [task.info for task in tasks.values()])
    headline, scores, name = _headline(comparison), _scores(comparison), output.name or str(output)
    scored = [info.name for info in comparison.tasks()]
    blocks = [_block(comparison, task, tasks.get(task)) for task in scored]
    others = [tasks[task] for task in scored if tasks.get(task, TASKS[0]) not in TASKS]
    arguments = [str(output), *(f"--task={task.__module__}:{task.__qualname__}" for task in others)]
    counted = number_format.count(len(results), "result")
    page = render.page(
        name,
        html.fill("Evaluation <b>{}</b>", name),
        headline,
        [html.tag("ul", *(html.tag("li", html.named(model)) for model in comparison.models), style="legend")],
        [scores, *wise_ft.blocks(comparison), _bars(comparison), *blocks, _about(comparison, arguments)],
        html.fill("Written by raylign from {}. Images and captions belong to their owners, named above.", counted),
    )
    report = markdown("Evaluation", headline, scores.content)
    render.write_files(output, {"results.csv": to_csv(to_table(results)), "report.md": report, "report.html": page})


def _block(comparison: Comparison, name: str, task: type[Task] | None) -> html.Section:
    """The task's own, or a table of all its scores."""
    if task is not None and hasattr(task, "block"):
        return task.block(comparison)
    groups = {}
    for dataset in comparison.datasets(name):
        scores = dict.fromkeys(score for result in comparison.of(name, dataset).values() for score in result.scores)
        groups[dataset] = [comparison.row(name, dataset, score) for score in scores]
    return html.section(name, comparison.info(name).title, score_table(comparison, groups))


def _main_rows(comparison: Comparison) -> Iterator[tuple[TaskInfo, list[Row]]]:
    """Each task's main score on each set."""
    for info in comparison.tasks():
        yield info, [comparison.main_row(info.name, dataset) for dataset in comparison.datasets(info.name)]


def _average(rows: Sequence[Row]) -> list[Row]:
    """The mean that papers report of their eleven sets, for models that have them all; no row where none has."""
    cells = []
    for of_model in zip(*(row.cells for row in rows), strict=True):
        values = {row.title: cell.value for row, cell in zip(rows, of_model, strict=True) if cell.value is not None}
        cells.append(Cell(of_model[0].model, value=average_of_eleven(values)))
    known = any(cell.value is not None for cell in cells)
    return [Row("average of eleven sets", compare(cells), about="main scores, unweighted")] if known else []


def _headline(comparison: Comparison) -> str:
    """Which model is ahead how often, and how often by more than noise."""
    every = [row for _, rows in _main_rows(comparison) for row in rows]
    rows = [row for row in every if any(cell.best for cell in row.cells)]
    if len(comparison.models) == 1:
        sets = number_format.count(len({result.dataset for result in comparison.results}), "set")
        return f"{comparison.models[0].name}: {number_format.count(len(every), 'main score')} on {sets}"
    if not rows:
        return f"{len(comparison.models)} models, and no score that two of them share"
    wins = Counter(cell.model for row in rows for cell in row.cells if cell.best)
    most, compared = max(wins.values()), number_format.count(len(rows), "comparison")
    ahead = [model for model in comparison.models if wins[model] == most]
    if len(ahead) > 1:
        *names, last = [model.name for model in ahead]
        return f"No model is ahead: {', '.join(names)} and {last} are each best in {most} of {compared}"
    clear = sum(_clear(row) and any(cell.best and cell.model == ahead[0] for cell in row.cells) for row in rows)
    noise = "all within noise" if not clear else "all beyond noise" if clear == most else f"{clear} of these beyond noise"
    return f"{ahead[0].name} is best in {most} of {compared}, {noise}"


def _clear(row: Row) -> bool:
    """One best, all compared by intervals, and none of the others level with it."""
    known = [cell for cell in row.cells if cell.value is not None]
    return sum(c.best for c in known) == 1 and not any(c.level for c in known) and all(c.interval for c in known)


def _scores(comparison: Comparison) -> html.Section:
    about, rule = "The main score of every set, with its 95&nbsp;% interval and the score of chance.", ""
    if len(comparison.models) > 1:
        about = (
            "The main score of every set. <b>Bold</b>: the best. &asymp;: within noise of the best, its 95&nbsp;% interval "
            "overlapping the best's; &ndash;: not measured."
        )
        rule = (
            " That intervals overlap is a cautious rule of thumb and no test: all models see the same items, and the interval of "
            "their paired difference would be narrower, but it takes scores item by item, which saved results do not hold. So "
            "&asymp; means that this rule cannot tell two models apart, not that they are equal; nothing is corrected for the "
            "number of comparisons."
        )
    groups = {
        f"{info.title}, {info.unit}": [*rows, *(_average(rows) if info.name in _AVERAGED else [])]
        for info, rows in _main_rows(comparison)
    }
    intervals = (
        "Intervals are over the items of a set (Wilson's of a share, else a bootstrap's): how far another draw of items would "
        "move a score. How far another training seed would is not in them. n: items."
    )
    table = score_table(comparison, groups, first_column="set")
    return html.section("scores", "Scores", html.paragraph(about), table, html.soft(intervals + rule))


def _bars(comparison: Comparison) -> html.Section:
    figures = []
    for info, rows in _main_rows(comparison):
        if any(cell.value is not None for row in rows for cell in row.cells):
            figures.append(figure(_bar_chart(rows, info.unit), info.title, info.unit))
    about = html.paragraph(
        "The same scores, models in one order and colour throughout. Whiskers: 95&nbsp;% intervals. Dashed: chance."
    )
    return html.section("bars", "Scores by task", about, html.div("charts", *figures))


def _bar_chart(rows: Sequence[Row], unit: str) -> Chart:
    """A group of bars a set, one a model, with whiskers for the interval and a tick across the group for chance."""
    ends = [end for row in rows for cell in row.cells for end in (cell.value, *(cell.interval or ())) if end is not None]
    low, high = min([0.0, *ends]), max([1.0, *ends, *(row.chance or 0.0 for row in rows)])
    high = min(100.0, 10 * math.ceil(high / 10)) if unit == "%" else high
    height = 22.0 + sum(21 + 12 * sum(cell.value is not None for cell in row.cells) for row in rows)
    x = Scale(low, high, 2, _BARS - 44)
    plot = Plot(_BARS, height, x, Scale(0, height, 0, height))
    plot.columns(0, height - 18, 4)
    y = 4.0
    for row in rows:
        plot.text(x.start - 2, y + 9, row.title, "start", "name")
        y = top = y + 15
        for cell in row.cells:
            if cell.value is None:
                continue
            shown, whisker = number_format.value(cell.value), cell.interval or ()
            title = f"{cell.model.name}, {row.title}: {shown} {unit}" + (f" ({number_format.span(*whisker)})" if whisker else "")
            corners = [(0.0, y), (cell.value, y), (cell.value, y + 9), (0.0, y + 9)]
            plot.line(corners, f"bar {cell.model.mark}", title, closed=True)
            plot.line([(end, y + 4.5) for end in whisker], "whisker")
            plot.text(x(max(0.0, cell.value, *whisker)) + 4, y + 8.5, shown, "start", "value")
            y += 12
        if row.chance is not None:
            plot.line([(row.chance, top - 2), (row.chance, y - 1)], "chance", f"chance: {number_format.chance(row.chance)}")
        y += 6
    plot.line([(0.0, 0), (0.0, height - 18)], "base")
    about = f"Bars in {unit} of {number_format.count(len(rows), 'set')}: " + ", ".join(row.title for row in rows)
    return Chart(plot.svg(about))


def _about(comparison: Comparison, arguments: Sequence[str]) -> html.Section:
    """What made the models, whose the images are, and how to write the page again."""
    again = "From the saved results alone, without embedding anything; <code>results.csv</code> beside it has every score:"
    return html.section(
        "scored",
        "Models and data",
        html.tag("h3", "Models"),
        html.div("columns", *_models(comparison)),
        html.tag("h3", "Data"),
        html.div("columns", *_data(comparison)),
        html.tag("h3", "Write this page again"),
        html.paragraph(again),
        html.tag("pre", shlex.join(["python", "-m", "evaluation.reporting", *arguments])),
    )


def _models(comparison: Comparison) -> Iterator[Markup]:
    """What made the models, and how long they took."""
    for model in comparison.models:
        mine = [result for result in comparison.results if result.model == model.name]
        seconds = sum(number(result.about.get("seconds")) or 0.0 for result in mine)
        keys = ("embedder", "pretrained", "arguments", "fingerprint")
        pairs = [(key, _distinct([result.about.get(key) for result in mine])) for key in keys]
        pairs += [("time", number_format.duration(seconds) if seconds else ""), ("results", f"{len(mine):,}")]
        yield html.tag("div", html.tag("h4", html.named(model)), html.facts(pairs))


def _data(comparison: Comparison) -> Iterator[Markup]:
    """The sets: whose images they are, how much of them was found, and whether all models saw the same."""
    for dataset in sorted({result.dataset for result in comparison.results}):
        mine = [result for result in comparison.results if result.dataset == dataset]
        abouts = [(result.task, result.about["data"]) for result in mine if isinstance(result.about.get("data"), dict)]
        prints: dict[str, list[str]] = {}  # a task has a fingerprint of its own, of the rows that it needs
        for task, about in abouts:
            if about.get("fingerprint") and (value := str(about["fingerprint"])[:_DIGITS]) not in prints.setdefault(task, []):
                prints[task].append(value)
        shown = "; ".join(f"{comparison.info(task).title} {' or '.join(values)}" for task, values in prints.items())
        if any(len(values) > 1 for values in prints.values()):
            shown = html.fill('{} <span class="flag">not the same for all models</span>', shown)
        pairs = [("tasks", ", ".join(dict.fromkeys(comparison.info(result.task).title for result in mine)))]
        for key in dict.fromkeys(key for _, about in abouts for key in about if key != "fingerprint"):
            pairs.append((str(key).replace("_", " "), _distinct([about.get(key) for _, about in abouts])))
        yield html.tag("div", html.tag("h4", dataset), html.facts([*pairs, ("fingerprints", shown)]))


def _distinct(values: list[Any]) -> str:
    """Each value once, as text; what is missing or empty is left out."""
    return "; ".join(dict.fromkeys(_plain(value) for value in values if value is not None and value not in ("", {}, [])))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry not in (None, "", {}, []))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page again. Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(
        prog="python -m evaluation.reporting",
        description="Write report.html, report.md and results.csv of a folder of results again, from the result files alone.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output of python -m evaluation, such as runs/evaluation")
    parser.add_argument("--task", action="append", default=[], metavar="MODULE:CLASS", help="a task of your own that has results")
    return run_page(parser, _rewrite, arguments)


def _rewrite(options: argparse.Namespace) -> Path:
    write_report(options.output, [own_task(name, "--task") for name in options.task])
    return options.output / "report.html"
