"""Results side by side: which model is best at a score, and which are level with it because their intervals overlap.

That is a rule of thumb and errs on the side of caution: all models see the same items, so their scores move together, and an
interval of the paired difference would be narrower. It takes scores item by item, which results do not hold.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format
from evaluation.reporting.chart import mark
from evaluation.results import Result
from evaluation.task_info import TaskInfo


@dataclass(frozen=True)
class Cell:
    """One model's score; everything None where it has none."""

    model: html.Model
    text: str = ""  # what is shown instead, of figures that are not compared
    value: float | None = None
    interval: tuple[float, float] | None = None
    best: bool = False  # of two models or more
    level: bool = False  # not the best, and their intervals overlap


@dataclass(frozen=True)
class Row:
    """One score of all models, with what it must be compared with."""

    title: str
    cells: list[Cell]
    chance: float | None = None
    n: int | None = None
    note: str = ""  # why the models may not be comparable
    about: str = ""


class Comparison:
    """All results of a folder, by task, set and model. Models keep one order and one colour over the whole page."""

    def __init__(self, results: Sequence[Result], tasks: Iterable[TaskInfo]):
        """`tasks`: in the order of the page; a task that is not among them has its name for a title, and comes last."""
        self.results = list(results)
        self._infos = {info.name: info for info in tasks}
        names = sorted({result.model for result in results})
        self.models = [html.Model(name, mark(i)) for i, name in enumerate(names)]
        self._by_key = {(result.task, result.dataset, result.model): result for result in results}

    def info(self, task: str) -> TaskInfo:
        return self._infos.get(task) or TaskInfo(task, task, task, ())

    def tasks(self) -> list[TaskInfo]:
        """Those that have results, in the order of the page."""
        order = {name: place for place, name in enumerate(self._infos)}
        scored = dict.fromkeys(result.task for result in self.results)
        return [self.info(task) for task in sorted(scored, key=lambda task: order.get(task, len(order)))]

    def score_title(self, task: str, score: str) -> str:
        """top1 -> top-1, top1@4 -> top-1 at 4, mean_recall@1 -> mean R@1, replace_obj -> replace obj."""
        return self.info(task).measure(score).title

    def datasets(self, task: str) -> list[str]:
        return sorted({result.dataset for result in self.results if result.task == task})

    def of(self, task: str, dataset: str) -> dict[html.Model, Result]:
        """By model, those that have it."""
        results = {model: self._by_key.get((task, dataset, model.name)) for model in self.models}
        return {model: result for model, result in results.items() if result is not None}

    def main_row(self, task: str, dataset: str) -> Row:
        """The score that stands for the task; a model's own where they differ, and then they are not compared."""
        results = self.of(task, dataset)
        mains = {model: result.main for model, result in results.items()}
        about = ", ".join(self.score_title(task, main) for main in dict.fromkeys(mains.values()))
        if len(set(mains.values())) == 1:
            return replace(self.row(task, dataset, next(iter(mains.values())), dataset), about=about)
        cells = [_cell(model, results.get(model), mains.get(model, "")) for model in self.models]
        return Row(dataset, cells, note=f"main scores differ: {about}", about=about)

    def row(self, task: str, dataset: str, score: str, title: str = "") -> Row:
        """One score of a set, under its usual name or `title`."""
        results = self.of(task, dataset)
        sizes = [result.sample_sizes[score] for result in results.values() if score in result.sample_sizes]
        cells = [_cell(model, results.get(model), score) for model in self.models]
        note = _difference(list(results.values()), sizes)
        return Row(
            title or self.score_title(task, score),
            cells if note else compare(cells),
            first(result.baselines.get(score, {}).get("chance") for result in results.values()),
            sizes[0] if sizes and len(set(sizes)) == 1 else None,
            note,
        )

    def section(self, info: TaskInfo, about: str, of_set: Callable[["Comparison", str], Markup]) -> html.Section:
        """A task's block of the page: what it is about, and what there is of each set."""
        blocks = [of_set(self, dataset) for dataset in self.datasets(info.name)]
        return html.section(info.path.replace("_", "-"), info.title, html.paragraph(about), *blocks)

    def not_compared(self, title: str, texts: Mapping[html.Model, str], about: str) -> list[Row]:
        """A row of figures by model, none of which is better; no row where there is no figure."""
        cells = [Cell(model, texts.get(model, "")) for model in self.models]
        return [Row(title, cells, about=about)] if texts else []


def compare(cells: Sequence[Cell]) -> list[Cell]:
    """With the best, and those level with it, marked; more is better. A model alone is not compared with anybody."""
    values = [cell.value for cell in cells if cell.value is not None]
    top = max(values) if len(values) > 1 else None
    intervals = [cell.interval for cell in cells if cell.interval and cell.value == top]

    def level(cell: Cell) -> bool:
        low, high = cell.interval or (math.nan, math.nan)
        return cell.value != top and any(low <= other[1] and other[0] <= high for other in intervals)

    return list(cells) if top is None else [replace(cell, best=cell.value == top, level=level(cell)) for cell in cells]


def first(values: Iterable[Any]) -> float | None:
    """The first that is a number: of a value that is the same for all models, the first known one."""
    return next((known for known in map(number, values) if known is not None), None)


def number(value: Any) -> float | None:
    """A finite number, else None: a missing value and NaN look alike to a reader."""
    return float(value) if number_format.is_number(value) else None


def _cell(model: html.Model, result: Result | None, score: str) -> Cell:
    if result is None or number(result.scores.get(score)) is None:
        return Cell(model)
    low, high = (number(end) for end in result.intervals.get(score, (None, None)))
    return Cell(model, "", number(result.scores[score]), None if low is None or high is None else (low, high))


def _difference(results: Sequence[Result], sizes: Sequence[int]) -> str:
    """Why the models were not scored on the same items, as far as results show; empty where they were."""
    data = [result.about.get("data") for result in results]
    prints = {entry["fingerprint"] for entry in data if isinstance(entry, dict) and entry.get("fingerprint")}
    if len(prints) > 1:
        return "scored on different data: not comparable"
    if len(set(sizes)) > 1:
        return f"scored on different numbers of items ({', '.join(f'{n:,}' for n in sizes)}): not comparable"
    return ""


def score_table(
    comparison: Comparison, groups: Mapping[str, Sequence[Row]], first_column: str = "score", chance: bool = True
) -> Markup:
    """Scores of all models, what chance scores, and the number of items. `groups`: rows by the heading above, "" for none."""
    titles = [first_column, *map(html.named, comparison.models), *(["chance", "n"] if chance else [])]
    rows = {heading: [_texts(line, chance) for line in lines] for heading, lines in groups.items()}
    return html.table("Scores", titles, rows, style="scores")


def _texts(line: Row, chance: bool) -> list[Markup]:
    title = html.join(line.title, html.small(line.about), html.small(line.note, "flag"))
    known = "" if line.chance is None else number_format.chance(line.chance), "" if line.n is None else f"{line.n:,}"
    return [title, *map(_score, line.cells), *(html.tag("span", value, style="soft") for value in known * chance)]


def _score(cell: Cell) -> Markup:
    """The value, marked, with its interval."""
    if cell.value is None:
        return html.fill("{}", cell.text) if cell.text else html.tag("span", html.NDASH, style="soft")
    level = Markup('<i class="mark" title="within noise of the best">\N{ALMOST EQUAL TO}</i>' if cell.level else "")
    value = html.fill("{}<b>{}</b>" if cell.best else "{}{}", level, number_format.value(cell.value))
    return html.join(value, html.small(number_format.span(*cell.interval) if cell.interval else ""))
