"""What the page tells of harder images and captions: corruptions, shifts of ImageNet's kind, SugarCrepe."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evaluation import sugarcrepe
from evaluation.metrics import score_title
from evaluation.reporting import charts
from evaluation.reporting.comparison import Comparison, Model, Row, number
from evaluation.reporting.svg import score_range
from evaluation.results import Result
from pipelines.program import number_format

_FACTS = {
    "reference": "accuracy without the shift",
    "shift": "accuracy under the shift",
    "prediction": "predicted by the line",
}


def corruptions(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set with a chart a corruption: score against severity, where 0 is the image as it is. All share one axis."""
    task, found = "corruption", []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        curves: dict[str, list[charts.Series]] = {}
        for model, result in results.items():
            clean = number(result.details.get("clean"))
            points: dict[str, dict[float, float]] = {}
            for score, value in result.scores.items():
                name, _, severity = score.partition("@")
                if severity.isdigit() and number(value) is not None:
                    points.setdefault(name, {} if clean is None else {0.0: clean})[float(severity)] = value
            for name, values in points.items():
                curves.setdefault(name, []).append(charts.Series(model, values))
        limits = score_range([y for lines in curves.values() for s in lines for y in s.points.values()], from_zero=True)
        severities = {place: f"{place:g}" for lines in curves.values() for s in lines for place in s.points}
        figures = [
            {"name": name, "svg": charts.lines(lines, about, "severity", severities, limits, size=charts.TINY)}
            for name, lines in curves.items()
            for about in (f"Score on {dataset} against severity of {name}",)
        ]
        table = [_kept(model, result) for model, result in results.items()]
        found.append({"dataset": dataset, "main": comparison.main_row(task, dataset), "figures": figures, "table": table})
    return found


def _kept(model: Model, result: Result) -> dict[str, Any]:
    """Clean, mean over all corruptions and severities, and what share of the clean score that is."""
    clean, mean = number(result.details.get("clean")), number(result.scores.get("mean"))
    kept = 100 * mean / clean if clean and mean is not None else None
    return {"model": model, "clean": clean, "mean": mean, "kept": kept}


def captions(comparison: Comparison) -> list[dict[str, Any]]:
    """SugarCrepe: groups of rows, each group's mean first, then its subsets; what only order tells last."""
    task, found = "image_caption_selection", []
    for dataset in comparison.datasets(task):
        there = list(dict.fromkeys(score for result in comparison.of(task, dataset).values() for score in result.scores))

        def rows(names: list[str], dataset: str = dataset, there: list[str] = there) -> list[Row]:
            return [comparison.row(task, dataset, name, _subset_title(name)) for name in names if name in there]

        groups = [("All subsets", rows(["macro", "micro"]))]
        for group in sugarcrepe.GROUPS:
            subsets = [name for name in there if name.startswith(f"{group}_") and not name.endswith(("_micro", "_order_only"))]
            groups.append((group.capitalize(), rows([group, *subsets, f"{group}_micro"])))
        order = [name for name in there if name.endswith("order_only")]
        groups.append(("Only the order of words differs", rows(sorted(order, key=lambda name: name != "order_only"))))
        known = {row.title for _, listed in groups for row in listed}
        rest = [name for name in there if _subset_title(name) not in known]
        groups.append(("Other scores", rows(rest)))
        found.append({"dataset": dataset, "groups": [(title, listed) for title, listed in groups if listed]})
    return found


def _subset_title(name: str) -> str:
    if name.endswith("_order_only"):
        return f"{score_title('image_caption_selection', name.removesuffix('_order_only'))}, order only"
    if name == "order_only":
        return "all that have such items, pooled"
    if name == "macro":
        return "mean of subsets"
    if name == "micro" or name.endswith("_micro"):
        return f"{name.removesuffix('_micro')}, items pooled" if name != "micro" else "items pooled"
    return f"{name}, mean of subsets" if name in sugarcrepe.GROUPS else score_title("image_caption_selection", name)


def robustness(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a shift: models beside the line of the baselines, and the distances from it."""
    task, found = "effective_robustness", []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        points, intervals, fits = {}, {}, {}
        for model, result in results.items():
            reference, shift = number(result.scores.get("reference")), number(result.scores.get("shift"))
            if reference is not None and shift is not None:
                points[model] = (reference, shift)
            if (interval := _finite(result.intervals.get("shift"))) is not None:
                intervals[model] = interval
            if (fit := _fit(result.details.get("line") or {})) is not None:
                fits[model] = fit
        lines = list(dict.fromkeys(fits.values()))
        line = lines[0] if len(lines) == 1 else None
        about = next(iter(results.values())).details
        facts = [_unmarked(comparison.row(task, dataset, score, title)) for score, title in _FACTS.items()]
        rows = [*facts, comparison.row(task, dataset, "effective", "effective robustness, points")]
        shown = [row for row in rows if any(cell.value is not None for cell in row.cells)]
        found.append(
            {
                "dataset": dataset,
                "reference": about.get("reference_set", "the reference set"),
                "baselines": about.get("baselines", ""),
                "line": about.get("line") or {} if line else {},
                "several": len(lines) > 1,
                "extrapolated": [model.name for model, result in results.items() if result.details.get("extrapolated")],
                "rows": shown,
                "svg": charts.scatter(points, intervals, line) if points else None,
            }
        )
    return found


def _fit(line: Mapping[str, Any]) -> charts.Fit | None:
    values = [number(line.get(key)) for key in ("slope", "intercept", "lowest", "highest")]
    known = [value for value in values if value is not None]
    return charts.Fit(*known) if len(known) == len(values) else None


def _unmarked(row: Row) -> Row:
    """Without a best: what effective robustness is made of is no contest."""
    return replace(row, cells=[replace(cell, best=False, level=False) for cell in row.cells])


def _finite(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return interval if interval is not None and all(number_format.is_number(end) for end in interval) else None
