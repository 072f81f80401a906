"""The answer first: a sentence, the table of main scores, and the same as csv and markdown."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from evaluation.class_sets import ELEVEN, average_of_eleven
from evaluation.metrics import TASKS, score_title, task_title
from evaluation.reporting.comparison import Cell, Comparison, Row, compare, number
from pipelines.program import number_format

_COLUMNS = ["model", "dataset", "task", "score", "main", "value", "low", "high", "chance", "largest_class", "n"]
_AVERAGED = ("zeroshot_classification", "linear_probe")


def groups(comparison: Comparison) -> list[dict[str, Any]]:
    """Tasks with a row a set: its name, what the main score is called, and the scores of the models."""
    found = []
    for task in comparison.tasks():
        rows = []
        for dataset in comparison.datasets(task):
            mains = dict.fromkeys(result.main for result in comparison.of(task, dataset).values())
            metric = ", ".join(score_title(task, main) for main in mains)
            rows.append({"row": comparison.main_row(task, dataset), "metric": metric, "average": False})
        if task in _AVERAGED and (average := _average(comparison, task)) is not None:
            rows.append({"row": average, "metric": "main scores, unweighted", "average": True})
        unit = TASKS[task].unit if task in TASKS else "%"
        found.append({"task": task, "title": task_title(task), "unit": unit, "rows": rows})
    return found


def _average(comparison: Comparison, task: str) -> Row | None:
    """The mean that papers report of their eleven sets, for models that have them all."""
    cells = {}
    for model in comparison.models:
        values = {}
        for dataset in ELEVEN:
            result = comparison.of(task, dataset).get(model)
            value = None if result is None else number(result.scores.get(result.main))
            if value is not None:
                values[dataset] = value
        cells[model] = Cell(model, average_of_eleven(values))
    return None if all(cell.value is None for cell in cells.values()) else Row("average of eleven sets", compare(cells))


def headline(comparison: Comparison) -> str:
    """Who is ahead how often, and how often that is more than noise."""
    every = [entry["row"] for group in groups(comparison) for entry in group["rows"] if not entry["average"]]
    rows = [row for row in every if any(cell.best for cell in row.cells)]
    if len(comparison.models) == 1:
        sets = len({result.dataset for result in comparison.results})
        return (
            f"{comparison.models[0].name}: {number_format.count(len(every), 'main score')} on {number_format.count(sets, 'set')}"
        )
    if not rows:
        return f"{len(comparison.models)} models, and no score that two of them share"
    wins = {model: sum(any(c.best and c.model == model for c in row.cells) for row in rows) for model in comparison.models}
    most = max(wins.values())
    ahead = [model.name for model in comparison.models if wins[model] == most]
    clear = sum(any(c.best and c.model.name in ahead for c in row.cells) and _clear(row) for row in rows)
    if len(ahead) > 1:
        return f"No model is ahead: {_and(ahead)} are each best in {most} of {number_format.count(len(rows), 'comparison')}"
    if not clear:
        noise = "all within noise"
    else:
        noise = "all beyond noise" if clear == most else f"{clear} of these beyond noise"
    return f"{ahead[0]} is best in {most} of {number_format.count(len(rows), 'comparison')}, {noise}"


def _clear(row: Row) -> bool:
    """One best, all compared by intervals, and none of the others level with it."""
    known = [cell for cell in row.cells if cell.value is not None]
    return sum(c.best for c in known) == 1 and not any(c.level for c in known) and all(c.interval for c in known)


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def table(comparison: Comparison) -> pd.DataFrame:
    """A row for every model, set, task and score."""
    rows = []
    for result in comparison.results:
        for score, value in result.scores.items():
            low, high = result.intervals.get(score, (None, None))
            base = result.baselines.get(score, {})
            row = [result.model, result.dataset, result.task, score, score == result.main]
            row += [number(value), number(low), number(high), number(base.get("chance")), number(base.get("largest_class"))]
            rows.append([*row, result.sample_sizes.get(score)])
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"n": "Int64"})


def markdown(comparison: Comparison) -> str:
    """The table of main scores, for a readme or an issue."""
    head = ["task", "set", "score", *(model.name for model in comparison.models), "chance", "n"]
    lines = ["# Evaluation", "", f"{headline(comparison)}.", ""]
    lines += [_line(head), "|" + "---|" * 3 + "---:|" * (len(head) - 3)]
    for group in groups(comparison):
        for entry in group["rows"]:
            row = entry["row"]
            cells = [_cell(cell) for cell in row.cells]
            end = ["" if row.chance is None else number_format.value(row.chance), "" if row.n is None else f"{row.n:,}"]
            name = f"{row.title} ({row.note})" if row.note else row.title
            lines.append(_line([group["title"], name, entry["metric"], *cells, *end]))
    lines += ["", "Percent, of effective robustness percentage points; in brackets 95 % intervals, over items."]
    lines += [
        "Bold: best of the row. ~: its interval overlaps that of the best, so it is within noise of it by this cautious rule."
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    if cell.value is None:
        return "-"
    value = (
        f"**{number_format.value(cell.value)}**" if cell.best else ("~" if cell.level else "") + number_format.value(cell.value)
    )
    return (
        value
        if cell.interval is None
        else f"{value} [{number_format.value(cell.interval[0])}, {number_format.value(cell.interval[1])}]"
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"
