"""Results side by side: who is best at a score, whom its interval does not tell apart from the best, and who lacks it.

A model whose interval overlaps that of the best is `level` with it. That is a rule of thumb and errs on the side of caution:
all models see the same items, so their scores move together, and an interval of the paired difference would be narrower. It
takes scores item by item, which results do not hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.metrics import TASKS, score_title
from evaluation.results import Result
from pipelines.program import number_format

COLOURS = 8


@dataclass(frozen=True)
class Model:
    """A model, and the class of the page's style that gives it the same colour everywhere."""

    name: str
    mark: str


@dataclass(frozen=True)
class Cell:
    """One model's score; everything None where it has none."""

    model: Model
    value: float | None = None
    low: float | None = None
    high: float | None = None
    best: bool = False  # of two models or more
    level: bool = False  # not the best, and their intervals overlap

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Row:
    """One score of all models, with what it must be compared with."""

    title: str
    cells: list[Cell]
    chance: float | None = None
    n: int | None = None
    note: str = ""  # why the models may not be comparable


class Comparison:
    """All results of a folder, by task, set and model. Models keep one order and one colour over the whole page."""

    def __init__(self, results: Sequence[Result]):
        self.results = list(results)
        names = sorted({result.model for result in results})
        # Past the last colour they begin anew, hollow and dashed.
        self.models = [Model(name, f"m{i % COLOURS}" + (" again" if i // COLOURS % 2 else "")) for i, name in enumerate(names)]
        self._found = {(result.task, result.dataset, result.model): result for result in results}

    def tasks(self) -> list[str]:
        """Those that have results, in the order of `TASKS`, unknown ones last."""
        there = dict.fromkeys(result.task for result in self.results)
        return [task for task in TASKS if task in there] + [task for task in there if task not in TASKS]

    def datasets(self, task: str) -> list[str]:
        return sorted({result.dataset for result in self.results if result.task == task})

    def of(self, task: str, dataset: str) -> dict[Model, Result]:
        """By model, those that have it."""
        found = {model: self._found.get((task, dataset, model.name)) for model in self.models}
        return {model: result for model, result in found.items() if result is not None}

    def main_row(self, task: str, dataset: str) -> Row:
        """The score that stands for the task; a model's own where they differ, and then they are not compared."""
        results = self.of(task, dataset)
        mains = {model: result.main for model, result in results.items()}
        different = list(dict.fromkeys(mains.values()))
        if len(different) == 1:
            return self.row(task, dataset, different[0], dataset)
        cells = [_cell(model, results.get(model), mains.get(model, "")) for model in self.models]
        return Row(dataset, cells, note="main scores differ: " + ", ".join(score_title(task, main) for main in different))

    def row(self, task: str, dataset: str, score: str, title: str = "") -> Row:
        """One score of a set, under its usual name or `title`."""
        results = self.of(task, dataset)
        chances = [number(result.baselines.get(score, {}).get("chance")) for result in results.values()]
        sizes = [result.sample_sizes[score] for result in results.values() if score in result.sample_sizes]
        cells = {model: _cell(model, results.get(model), score) for model in self.models}
        note = _difference(list(results.values()), sizes)
        return Row(
            title or score_title(task, score),
            list(cells.values()) if note else compare(cells),
            next((chance for chance in chances if chance is not None), None),
            sizes[0] if sizes and len(set(sizes)) == 1 else None,
            note,
        )


def compare(cells: Mapping[Model, Cell]) -> list[Cell]:
    """With the best, and those level with it, marked; more is better. A model alone is not compared with anybody."""
    values = [cell.value for cell in cells.values() if cell.value is not None]
    if len(values) < 2:
        return list(cells.values())
    top = max(values)
    intervals = [cell.interval for cell in cells.values() if cell.value == top]
    result = []
    for cell in cells.values():
        best = cell.value == top
        mine = cell.interval
        level = not best and mine is not None and any(i is not None and mine[0] <= i[1] and i[0] <= mine[1] for i in intervals)
        result.append(Cell(cell.model, cell.value, cell.low, cell.high, best, level))
    return result


def number(value: Any) -> float | None:
    """A finite one, else None: what is missing and what is NaN look alike to a reader."""
    return float(value) if number_format.is_number(value) else None


def _cell(model: Model, result: Result | None, score: str) -> Cell:
    if result is None or number(result.scores.get(score)) is None:
        return Cell(model)
    low, high = (number(end) for end in result.intervals.get(score, (None, None)))
    return Cell(model, number(result.scores[score]), low, high)


def _difference(results: Sequence[Result], sizes: Sequence[int]) -> str:
    """Whether the models were scored on the same items, as far as results tell."""
    data = [result.about.get("data") for result in results]
    prints = {entry["fingerprint"] for entry in data if isinstance(entry, dict) and entry.get("fingerprint")}
    if len(prints) > 1:
        return "scored on different data: not comparable"
    if len(set(sizes)) > 1:
        return f"scored on different numbers of items ({', '.join(f'{n:,}' for n in sizes)}): not comparable"
    return ""
