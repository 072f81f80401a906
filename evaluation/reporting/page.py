"""report.html: everything that the page shows, gathered for its templates."""

import json
import math
import shlex
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation.metrics import task_title
from evaluation.reporting import classification, number_format, overview, render, retrieval, shifts
from evaluation.reporting.chart import Plot, Scale
from evaluation.reporting.comparison import Comparison, Row

_DIGITS = 12  # of a fingerprint
_FEW = 3  # sets whose details stand open; of more, each is opened by who wants to see it
_BARS = 360.0  # pixels wide


def render_page(comparison: Comparison, output: Path) -> str:
    """The whole file."""
    groups = overview.groups(comparison)
    values = {
        "name": output.name or str(output),
        "headline": overview.headline(comparison),
        "models": comparison.models,
        "few": _FEW,
        "groups": groups,
        "bars": [{"title": g["title"], "unit": g["unit"], "svg": _bars(rows, g["unit"])} for g in groups if (rows := _scored(g))],
        "zero_shot": classification.zero_shot(comparison),
        "probes": classification.probes(comparison),
        "few_shot": classification.few_shot(comparison),
        "retrieval": retrieval.retrieval(comparison),
        "corruptions": shifts.corruptions(comparison),
        "captions": shifts.captions(comparison),
        "robustness": shifts.robustness(comparison),
        "scored": _models(comparison),
        "data": _data(comparison),
        "results": len(comparison.results),
        "command": shlex.join(["python", "-m", "evaluation.reporting", str(output)]),
    }
    return render.page(Path(__file__).parent, "report.html.j2", values)


def _scored(group: dict[str, Any]) -> list[Row]:
    """Rows for bars; averages are of other bars and stand in the table alone."""
    rows = [entry["row"] for entry in group["rows"] if not entry["average"]]
    return [row for row in rows if any(cell.value is not None for cell in row.cells)]


def _bars(rows: list[Row], unit: str) -> Markup:
    """A group of bars a set, one a model, with whiskers for the interval and a tick across the group for chance."""
    ends = [end for row in rows for cell in row.cells for end in (cell.value, cell.low, cell.high) if end is not None]
    low, high = min(0.0, *ends), max(1.0, *ends, *(row.chance or 0.0 for row in rows))
    high = min(100.0, 10 * math.ceil(high / 10)) if unit == "%" else high
    height = 22.0 + sum(21 + 12 * sum(cell.value is not None for cell in row.cells) for row in rows)
    x = Scale(low, high, 2, _BARS - 44)
    plot = Plot(_BARS, height, x, Scale(0, height, 0, height))
    for value in x.ticks(4):
        plot.line([(value, 0), (value, height - 18)], "grid")
        plot.text(x(value), height - 5, number_format.signed(value, 0))
    y = 4.0
    for row in rows:
        plot.text(x.start - 2, y + 9, row.title, "start", "name")
        y = top = y + 15
        for cell in row.cells:
            if cell.value is None:
                continue
            title = f"{cell.model.name}, {row.title}: {number_format.value(cell.value)} {unit}"
            corners = [(0.0, y), (cell.value, y), (cell.value, y + 9), (0.0, y + 9)]
            if cell.interval:
                title += f" ({number_format.value(cell.interval[0])} to {number_format.value(cell.interval[1])})"
            plot.line(corners, f"bar {cell.model.mark}", title, closed=True)
            if cell.interval:
                plot.line([(end, y + 4.5) for end in cell.interval], "whisker")
            last = max(0.0, cell.value, *(cell.interval or ()))
            plot.text(x(last) + 4, y + 8.5, number_format.signed(cell.value), "start", "value")
            y += 12
        if row.chance is not None:
            plot.line([(row.chance, top - 2), (row.chance, y - 1)], "chance", f"chance: {number_format.chance(row.chance)}")
        y += 6
    plot.line([(0.0, 0), (0.0, height - 18)], "base")
    return plot.svg(f"Bars in {unit} of {number_format.count(len(rows), 'set')}: " + ", ".join(row.title for row in rows))


def _models(comparison: Comparison) -> list[dict[str, Any]]:
    """What made the models, and how long they took."""
    found = []
    for model in comparison.models:
        mine = [result for result in comparison.results if result.model == model.name]
        seconds = sum(result.about["seconds"] for result in mine if number_format.is_number(result.about.get("seconds")))
        keys = ("embedder", "pretrained", "arguments", "fingerprint")
        facts = [(key, _distinct([result.about.get(key) for result in mine])) for key in keys]
        facts += [("time", number_format.duration(seconds) if seconds else ""), ("results", f"{len(mine):,}")]
        found.append({"model": model, "facts": facts})
    return found


def _data(comparison: Comparison) -> list[dict[str, Any]]:
    """The sets: whose images they are, how much of them was there, and whether all models saw the same."""
    found = []
    for dataset in sorted({result.dataset for result in comparison.results}):
        mine = [result for result in comparison.results if result.dataset == dataset]
        abouts = [(result.task, result.about["data"]) for result in mine if isinstance(result.about.get("data"), dict)]
        # A task has a fingerprint of its own: each is of the rows that it needs.
        prints: dict[str, list[str]] = {}
        for task, about in abouts:
            if about.get("fingerprint"):
                prints.setdefault(task, []).append(str(about["fingerprint"])[:_DIGITS])
        shown = "; ".join(f"{task_title(task)} {' or '.join(dict.fromkeys(values))}" for task, values in prints.items())
        if any(len(set(values)) > 1 for values in prints.values()):
            shown = Markup('{} <span class="flag">not the same for all models</span>').format(shown)
        facts = [("tasks", ", ".join(dict.fromkeys(task_title(result.task) for result in mine)))]
        for key in dict.fromkeys(key for _, about in abouts for key in about if key != "fingerprint"):
            facts.append((str(key).replace("_", " "), _distinct([about.get(key) for _, about in abouts])))
        found.append({"dataset": dataset, "facts": [*facts, ("fingerprints", shown)]})
    return found


def _distinct(values: list[Any]) -> str:
    """Each value once, as text; what is missing or empty is left out."""
    return "; ".join(dict.fromkeys(_plain(value) for value in values if value is not None and value not in ("", {}, [])))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry not in (None, "", {}, []))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
