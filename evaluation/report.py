"""The page that compares all models of a folder of results: report.html and report.md for people, results.csv for programs.

Made from the result files alone, without Ray and without embedding anything, at any time. Each task brings its own block.
"""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from evaluation.class_sets import ELEVEN, average_of_eleven
from evaluation.reporting import html, number_format, render
from evaluation.reporting.chart import Chart, Plot, Scale, figure
from evaluation.reporting.comparison import Cell, Comparison, Row, compare, number, score_table
from evaluation.reporting.markdown import markdown
from evaluation.results import read_results
from evaluation.tasks import TASKS
from evaluation.tasks.base import Task
from pipelines.program.csv_text import to_csv

_COLUMNS = ["model", "dataset", "task", "score", "main", "value", "low", "high", "chance", "largest_class", "n"]
_AVERAGED = ("zeroshot_classification", "linear_probe")
_AVERAGE = "average of eleven sets"
_DIGITS = 12  # of a fingerprint
_BARS = 360.0  # pixels wide


def write_report(output: Path, own: Iterable[type[Task]] = ()) -> None:
    """Write the three files into a folder of results. `own`: classes of tasks beside those of `evaluation.tasks.TASKS`.

    Raises `UserError` where there is no result, or one is not readable.
    """
    tasks = {task.info.name: task for task in (*TASKS, *own)}
    comparison = Comparison(read_results(output), [task.info for task in tasks.values()])
    report = markdown("Evaluation", _headline(comparison), _scores(comparison).content)
    files = {"results.csv": to_csv(_table(comparison)), "report.md": report}
    render.write_files(output, files | {"report.html": _page(comparison, output, tasks)})


def _page(comparison: Comparison, output: Path, tasks: dict[str, type[Task]]) -> str:
    scored = [info.name for info in comparison.tasks()]
    blocks = [_block(comparison, name, tasks.get(name)) for name in scored]
    own = [
        f"--task={tasks[name].__module__}:{tasks[name].__qualname__}" for name in scored if tasks.get(name, TASKS[0]) not in TASKS
    ]
    command = shlex.join(["python", "-m", "evaluation.reporting", str(output), *own])
    models = (html.tag("li", html.named(model)) for model in comparison.models)
    results = number_format.count(len(comparison.results), "result")
    return render.page(
        output.name or str(output),
        html.fill("Evaluation <b>{}</b>", output.name or str(output)),
        _headline(comparison),
        [html.tag("ul", *models, style="legend")],
        [_scores(comparison), _bars(comparison), *blocks, _models_and_data(comparison, command)],
        html.fill("Written by raylign from {}. Images and captions belong to their owners, named above.", results),
    )


def _block(comparison: Comparison, name: str, task: type[Task] | None) -> html.Section:
    """The task's own, or a table of all its scores."""
    if task is not None and hasattr(task, "block"):
        return task.block(comparison)
    groups = {}
    for dataset in comparison.datasets(name):
        scores = dict.fromkeys(score for result in comparison.of(name, dataset).values() for score in result.scores)
        groups[dataset] = [comparison.row(name, dataset, score) for score in scores]
    return html.section(name, comparison.info(name).title, score_table(comparison, groups))


def _main_rows(comparison: Comparison) -> Iterator[tuple[str, str, list[Row]]]:
    """Title, unit and rows of each task: its main score on each set."""
    for info in comparison.tasks():
        rows = [comparison.main_row(info.name, dataset) for dataset in comparison.datasets(info.name)]
        if info.name in _AVERAGED and (average := _average(comparison, info.name)) is not None:
            rows.append(average)
        yield info.title, info.unit, rows


def _average(comparison: Comparison, task: str) -> Row | None:
    """The mean that papers report of their eleven sets, for models that have them all."""
    cells = []
    for model in comparison.models:
        results = {dataset: comparison.of(task, dataset).get(model) for dataset in ELEVEN}
        values = {name: number(result.scores.get(result.main)) for name, result in results.items() if result is not None}
        cells.append(Cell(model, value=average_of_eleven({name: v for name, v in values.items() if v is not None})))
    known = any(cell.value is not None for cell in cells)
    return Row(_AVERAGE, compare(cells), about="main scores, unweighted") if known else None


def _headline(comparison: Comparison) -> str:
    """Which model is ahead how often, and how often by more than noise."""
    every = [row for *_, rows in _main_rows(comparison) for row in rows if row.title != _AVERAGE]
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
    groups = {f"{title}, {unit}": rows for title, unit, rows in _main_rows(comparison)}
    intervals = (
        "Intervals are over the items of a set (Wilson's of a share, else a bootstrap's): how far another draw of items would "
        "move a score. How far another training seed would is not in them. n: items."
    )
    table = score_table(comparison, groups, first_column="set", style="main")
    return html.section("scores", "Scores", html.paragraph(about), table, html.soft(intervals + rule))


def _bars(comparison: Comparison) -> html.Section:
    figures = []
    for title, unit, rows in _main_rows(comparison):
        # Averages are of other bars.
        shown = [row for row in rows if row.title != _AVERAGE and any(cell.value is not None for cell in row.cells)]
        figures += [figure(_bar_chart(shown, unit), title, unit)] if shown else []
    about = html.paragraph(
        "The same scores, models in one order and colour throughout. Whiskers: 95&nbsp;% intervals. Dashed: chance."
    )
    return html.section("bars", "Scores by task", about, html.div("stacks", *figures), link="Bars")


def _bar_chart(rows: Sequence[Row], unit: str) -> Chart:
    """A group of bars a set, one a model, with whiskers for the interval and a tick across the group for chance."""
    ends = [end for row in rows for cell in row.cells for end in (cell.value, cell.low, cell.high) if end is not None]
    low, high = min(0.0, *ends), max(1.0, *ends, *(row.chance or 0.0 for row in rows))
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


def _models_and_data(comparison: Comparison, command: str) -> html.Section:
    return html.section(
        "scored",
        "Models and data",
        html.tag("h3", "Models"),
        html.div("columns", *_models(comparison)),
        html.tag("h3", "Data"),
        html.div("columns", *_data(comparison)),
        html.tag("h3", "Write this page again"),
        html.paragraph(
            "From the saved results alone, without embedding anything; <code>results.csv</code> beside it has every score:"
        ),
        html.tag("pre", command),
    )


def _models(comparison: Comparison) -> list[Markup]:
    """What made the models, and how long they took."""
    blocks = []
    for model in comparison.models:
        mine = [result for result in comparison.results if result.model == model.name]
        seconds = sum(result.about["seconds"] for result in mine if number_format.is_number(result.about.get("seconds")))
        keys = ("embedder", "pretrained", "arguments", "fingerprint")
        pairs = [(key, _distinct([result.about.get(key) for result in mine])) for key in keys]
        pairs += [("time", number_format.duration(seconds) if seconds else ""), ("results", f"{len(mine):,}")]
        blocks.append(html.tag("div", html.tag("h4", html.named(model)), html.facts(pairs)))
    return blocks


def _data(comparison: Comparison) -> list[Markup]:
    """The sets: whose images they are, how much of them was found, and whether all models saw the same."""
    blocks = []
    for dataset in sorted({result.dataset for result in comparison.results}):
        mine = [result for result in comparison.results if result.dataset == dataset]
        abouts = [(result.task, result.about["data"]) for result in mine if isinstance(result.about.get("data"), dict)]
        # A task has a fingerprint of its own: each is of the rows that it needs.
        known = [(task, str(about["fingerprint"])[:_DIGITS]) for task, about in abouts if about.get("fingerprint")]
        prints = {task: list(dict.fromkeys(value for other, value in known if other == task)) for task, _ in known}
        shown = "; ".join(f"{comparison.info(task).title} {' or '.join(values)}" for task, values in prints.items())
        if any(len(values) > 1 for values in prints.values()):
            shown = html.fill('{} <span class="flag">not the same for all models</span>', shown)
        pairs = [("tasks", ", ".join(dict.fromkeys(comparison.info(result.task).title for result in mine)))]
        for key in dict.fromkeys(key for _, about in abouts for key in about if key != "fingerprint"):
            pairs.append((str(key).replace("_", " "), _distinct([about.get(key) for _, about in abouts])))
        blocks.append(html.tag("div", html.tag("h4", dataset), html.facts([*pairs, ("fingerprints", shown)])))
    return blocks


def _distinct(values: list[Any]) -> str:
    """Each value once, as text; what is missing or empty is left out."""
    return "; ".join(dict.fromkeys(_plain(value) for value in values if value is not None and value not in ("", {}, [])))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry not in (None, "", {}, []))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(comparison: Comparison) -> pd.DataFrame:
    """A row for every model, set, task and score."""
    rows = []
    for result in comparison.results:
        for score, value in result.scores.items():
            baselines, ends = result.baselines.get(score, {}), result.intervals.get(score, (None, None))
            figures = map(number, (value, *ends, baselines.get("chance"), baselines.get("largest_class")))
            row = [result.model, result.dataset, result.task, score, score == result.main, *figures]
            rows.append([*row, result.sample_sizes.get(score)])
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"n": "Int64"})
