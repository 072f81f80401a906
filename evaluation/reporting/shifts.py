"""What the page tells of harder images and captions: corruptions, shifts of ImageNet's kind, SugarCrepe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from evaluation import sugarcrepe
from evaluation.metrics import score_title
from evaluation.reporting import number_format
from evaluation.reporting.chart import TINY, Plot, Scale, Series, lines, logit, score_range
from evaluation.reporting.comparison import Comparison, Model, Row, number
from evaluation.results import Result

_FACTS = {
    "reference": "accuracy without the shift",
    "shift": "accuracy under the shift",
    "prediction": "predicted by the line",
}
_SCATTER = (360.0, 330.0)


def corruptions(comparison: Comparison) -> list[dict[str, Any]]:
    """A block a set with a chart a corruption: score against severity, where 0 is the image as it is. All share one axis."""
    task, found = "corruption", []
    for dataset in comparison.datasets(task):
        results = comparison.of(task, dataset)
        curves: dict[str, list[Series]] = {}
        for model, result in results.items():
            clean = number(result.details.get("clean"))
            points: dict[str, dict[float, float]] = {}
            for score, value in result.scores.items():
                name, _, severity = score.partition("@")
                if severity.isdigit() and number(value) is not None:
                    points.setdefault(name, {} if clean is None else {0.0: clean})[float(severity)] = value
            for name, values in points.items():
                curves.setdefault(name, []).append(Series(model.name, values, model.mark))
        limits = score_range((y for drawn in curves.values() for s in drawn for y in s.points.values()), from_zero=True)
        severities = {place: f"{place:g}" for drawn in curves.values() for s in drawn for place in s.points}
        figures = []
        for name, drawn in curves.items():
            about = f"Score on {dataset} against severity of {name}"
            figures.append({"name": name, "chart": lines(drawn, about, "severity", names=severities, limits=limits, size=TINY)})
        table = [_kept(model, result) for model, result in results.items()]
        found.append({"dataset": dataset, "figures": figures, "table": table})
    return found


def _kept(model: Model, result: Result) -> tuple[Model, list[str]]:
    """Clean, mean over all corruptions and severities, and what share of the clean score that is."""
    clean, mean = number(result.details.get("clean")), number(result.scores.get("mean"))
    kept = 100 * mean / clean if clean and mean is not None else None
    values = ["\N{EN DASH}" if value is None else number_format.signed(value) for value in (clean, mean, kept)]
    return model, [*values[:2], values[2] + ("" if kept is None else "\u00a0%")]


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
        found.append({"dataset": dataset, "groups": [(title, "", listed) for title, listed in groups]})
    return found


def _subset_title(name: str) -> str:
    if name.endswith("_order_only"):
        return f"{_title(name.removesuffix('_order_only'))}, order only"
    if name == "order_only":
        return "all that have such items, pooled"
    if name == "macro":
        return "mean of subsets"
    if name == "micro" or name.endswith("_micro"):
        return f"{name.removesuffix('_micro')}, items pooled" if name != "micro" else "items pooled"
    return f"{name}, mean of subsets" if name in sugarcrepe.GROUPS else _title(name)


def _title(name: str) -> str:
    return score_title("image_caption_selection", name)


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
        fitted = list(dict.fromkeys(fits.values()))
        line = fitted[0] if len(fitted) == 1 else None
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
                "several": len(fitted) > 1,
                "extrapolated": [model.name for model, result in results.items() if result.details.get("extrapolated")],
                "rows": shown,
                "svg": _scatter(points, intervals, line) if points else None,
            }
        )
    return found


@dataclass(frozen=True)
class Fit:
    """A line on the logit scale, and the reference accuracies that it was fitted to."""

    slope: float
    intercept: float
    lowest: float
    highest: float

    def at(self, reference: float) -> float:
        """The predicted accuracy, in percent like the reference."""
        return 100.0 / (1.0 + math.exp(-(self.slope * logit(reference) + self.intercept)))


def _fit(line: Mapping[str, Any]) -> Fit | None:
    values = [number(line.get(key)) for key in ("slope", "intercept", "lowest", "highest")]
    known = [value for value in values if value is not None]
    return Fit(*known) if len(known) == len(values) else None


def _scatter(
    points: Mapping[Model, tuple[float, float]], intervals: Mapping[Model, tuple[float, float]], fit: Fit | None
) -> Markup:
    """Accuracy under shift against reference accuracy, both on the logit scale; the line is dashed where it is extended."""
    across = [reference for reference, _ in points.values()] + ([fit.lowest, fit.highest] if fit else [])
    up = [shift for _, shift in points.values()] + [end for interval in intervals.values() for end in interval]
    up += [fit.at(end) for end in (min(across), max(across))] if fit else []
    width, height = _SCATTER
    x, y = _logits(across, 36, width - 12), _logits(up, height - 36, 10)
    plot = Plot(width, height, x, y)
    plot.frame("accuracy without the shift, %", 8, 8)
    if fit:
        low, high = fit.lowest, fit.highest
        for start, end, name in ((min(across), low, "fit beyond"), (low, high, "fit"), (high, max(across), "fit beyond")):
            if start < end:  # straight, as both axes are logits
                plot.line([(start, fit.at(start)), (end, fit.at(end))], name, "the line of the baselines")
    said = []
    for model, (reference, shift) in points.items():
        if model in intervals:
            plot.line([(reference, end) for end in intervals[model]], f"error {model.mark}")
        title = f"{model.name}: {number_format.value(reference)} without the shift, {number_format.value(shift)} under it"
        plot.dot(reference, shift, 4.4, f"dot {model.mark}", title)
        said.append(f"{model.name} {number_format.value(shift)} against {number_format.value(reference)}")
    return plot.svg("Accuracy under shift against accuracy without it: " + "; ".join(said))


def _logits(percents: list[float], start: float, end: float) -> Scale:
    """An axis with a little room beside what is shown."""
    low, high = logit(min(percents)), logit(max(percents))
    margin = 0.06 * (high - low) or 0.5
    low, high = (100.0 / (1.0 + math.exp(-value)) for value in (low - margin, high + margin))
    return Scale(low, high, start, end, logit=True)


def _unmarked(row: Row) -> Row:
    """Without a best: what effective robustness is made of is no contest."""
    return replace(row, cells=[replace(cell, best=False, level=False) for cell in row.cells])


def _finite(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    return interval if interval is not None and all(number_format.is_number(end) for end in interval) else None
