"""The page's charts, inline SVG: every model has the colour of its `mark` in all of them.

They are drawn about as wide as they are shown, on a phone too, so that their letters stay readable.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from evaluation.reporting.comparison import Model, Row
from evaluation.reporting.svg import Scale, dot, frame, image, line, path, score_range, text
from pipelines.program import number_format

_BARS = 360.0
SMALL = (290.0, 190.0)
TINY = (200.0, 150.0)
_SQUARE = (250.0, 250.0)
_SCATTER = (360.0, 330.0)
_LOGIT_TICKS = (0.1, 0.3, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)


@dataclass(frozen=True)
class Series:
    """A model's line: x -> y, perhaps with whiskers, and the x of a point that was chosen."""

    model: Model
    points: Mapping[float, float]
    spread: Mapping[float, float] = field(default_factory=dict)
    chosen: float | None = None


def bars(rows: Sequence[Row], unit: str) -> Markup:
    """A group of bars a set, one a model, with whiskers for the interval and a tick across the group for chance."""
    ends = [end for row in rows for cell in row.cells for end in (cell.value, cell.low, cell.high) if end is not None]
    low, high = min(0.0, *ends), max(1.0, *ends, *(row.chance or 0.0 for row in rows))
    high = min(100.0, 10 * math.ceil(high / 10)) if unit == "%" else high
    x = Scale(low, high, 2, _BARS - 44)
    parts, y = [], 4.0
    for row in rows:
        parts.append(text(x.start - 2, y + 9, row.title, "start", "name"))
        y += 15
        top = y
        for cell in row.cells:
            if cell.value is None:
                continue
            title = f"{cell.model.name}, {row.title}: {number_format.value(cell.value)} {unit}"
            if cell.interval:
                title += f" ({number_format.value(cell.interval[0])} to {number_format.value(cell.interval[1])})"
            left, right = sorted((x(0.0), x(cell.value)))
            parts.append(_block(left, y, right, y + 8, f"bar {cell.model.mark}", title))
            if cell.interval:
                parts.append(line(x(cell.interval[0]), y + 4, x(cell.interval[1]), y + 4, "whisker"))
            parts.append(text(_BARS, y + 7.5, signed(cell.value), "end", "value"))
            y += 10
        if row.chance is not None:
            parts.append(line(x(row.chance), top - 2, x(row.chance), y, "chance"))
        y += 8
    marks = [line(x(value), 0, x(value), y - 4, "grid") for value in x.ticks(4)]
    marks += [text(x(value), y + 8, signed(value, 0)) for value in x.ticks(4)]
    about = f"Bars in {unit} of {number_format.count(len(rows), 'set')}: " + ", ".join(row.title for row in rows)
    return image(_BARS, y + 12, about, [*marks, line(x(0.0), 0, x(0.0), y - 4, "base"), *parts])


def lines(
    series: Sequence[Series],
    about: str,
    x_title: str = "",
    names: Mapping[float, str] | None = None,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    chance: float | None = None,
    size: tuple[float, float] = SMALL,
) -> Markup:
    """Scores against something. `names`: what stands below some x instead of numbers; `limits`: of y, if others share it."""
    ends = [y + sign * s.spread.get(x, 0.0) for s in series for x, y in s.points.items() for sign in (-1, 1)]
    limits = limits or score_range(ends, from_zero=False) or (0.0, 1.0)
    places = [place for s in series for place in s.points]
    width, height = size
    margin = 0.0 if log else 0.04 * (max(places) - min(places))
    x = Scale(min(places) - margin, max(places) + margin, 34, width - 12, log)
    y = Scale(*limits, height - 34, 8)
    parts = [frame(x, y, x_title, x_ticks=0 if names else 4, y_ticks=5)]
    parts += [text(x(place), y.start + 14, name) for place, name in (names or {}).items()]
    if chance is not None and limits[0] <= chance <= limits[1]:
        parts.append(line(x.start, y(chance), x.end, y(chance), "chance"))
    for s in series:
        ordered = [(place, s.points[place]) for place in sorted(s.points)]
        parts.append(path([(x(place), y(value)) for place, value in ordered], f"line {s.model.mark}", s.model.name))
        for place, value in ordered:
            spread = s.spread.get(place)
            if spread:
                parts.append(line(x(place), y(value - spread), x(place), y(value + spread), f"error {s.model.mark}"))
            at = (names or {}).get(place) or number_format.parameter(place)
            title = f"{s.model.name}, {x_title or 'at'} {at}: {number_format.value(value)}"
            parts.append(dot(x(place), y(value), 2.6, f"dot {s.model.mark}", title))
        if s.chosen is not None and s.chosen in s.points:
            parts.append(dot(x(s.chosen), y(s.points[s.chosen]), 5.2, f"ring {s.model.mark}", f"{s.model.name}: chosen"))
    return image(width, height, about, parts)


def strip(rows: Sequence[tuple[Model, Sequence[float], float | None]], templates: Sequence[str], about: str) -> Markup:
    """A row of dots a model, one a template, and a tick where all templates together are."""
    values = [value for _, scores, together in rows for value in (*scores, *([] if together is None else [together]))]
    low, high = score_range(values, from_zero=False) or (0.0, 1.0)
    width = 360.0
    x = Scale(low, high, 6, width - 6)
    parts, y = [], 12.0
    bottom = 12.0 + 32 * len(rows)
    for value in x.ticks(5):
        parts += [line(x(value), 2, x(value), bottom - 6, "grid"), text(x(value), bottom + 8, number_format.parameter(value))]
    for model, scores, together in rows:
        parts.append(text(0, y, model.name, "start", "name halo"))
        for i, score in enumerate(scores):
            title = f"{model.name}, {templates[i] if i < len(templates) else f'template {i + 1}'}: {number_format.value(score)}"
            parts.append(dot(x(score), y + 11, 3.4, f"dot faint {model.mark}", title))
        if together is not None:
            corners = [
                (x(together) - 1.5, y + 3),
                (x(together) + 1.5, y + 3),
                (x(together) + 1.5, y + 19),
                (x(together) - 1.5, y + 19),
            ]
            parts.append(path(corners, "together", f"{model.name}, all templates: {number_format.value(together)}", closed=True))
        y += 32
    return image(width, bottom + 12, about, parts)


def reliability(model: Model, bins: Sequence[tuple[float, float, int]], about: str) -> Markup:
    """Accuracy against confidence: (mean confidence, accuracy, images) of each bin; the larger, the more images."""
    width, height = _SQUARE
    x, y = Scale(0, 100, 30, width - 10), Scale(0, 100, height - 34, 8)
    parts = [frame(x, y, "confidence, %"), line(x(0), y(0), x(100), y(100), "diagonal")]
    parts.append(path([(x(sure), y(right)) for sure, right, _ in bins], f"line {model.mark}", model.name))
    most = max(count for *_, count in bins)
    for sure, right, count in bins:
        title = (
            f"{number_format.count(count, 'image')}: confidence {number_format.value(sure)}, right {number_format.value(right)}"
        )
        parts.append(dot(x(sure), y(right), round(1.8 + 4.2 * math.sqrt(count / most), 1), f"dot {model.mark}", title))
    return image(width, height, about, parts)


@dataclass(frozen=True)
class Fit:
    """A line on the logit scale, and the reference accuracies that it was fitted to."""

    slope: float
    intercept: float
    lowest: float
    highest: float

    def at(self, reference: float) -> float:
        """Logit of the predicted accuracy."""
        return self.slope * logit(_inside(reference)) + self.intercept


def scatter(
    points: Mapping[Model, tuple[float, float]], intervals: Mapping[Model, tuple[float, float]], fit: Fit | None
) -> Markup:
    """Accuracy under shift against reference accuracy, both on the logit scale; the line is dashed where it is extended."""
    across = [logit(_inside(value)) for value, _ in points.values()]
    up = [logit(_inside(value)) for value in [shift for _, shift in points.values()] + [e for i in intervals.values() for e in i]]
    if fit:
        across += [logit(_inside(fit.lowest)), logit(_inside(fit.highest))]
        up += [fit.at(fit.lowest), fit.at(fit.highest)]
    width, height = _SCATTER
    x = _logit_scale(across, 36, width - 12)
    y = _logit_scale(up, height - 36, 10)
    parts = []
    for value in _logit_ticks(y):
        place = y(logit(value))
        parts += [line(x.start, place, x.end, place, "grid"), text(x.start - 5, place + 3.5, f"{value:g}", "end")]
    parts.append(line(x.start, y.start, x.end, y.start, "base"))
    for value in _logit_ticks(x):
        place = x(logit(value))
        parts += [line(place, y.start, place, y.start + 3, "base"), text(place, y.start + 14, f"{value:g}")]
    parts.append(text(x.end, y.start + 30, "accuracy without the shift, %", "end"))

    if fit:
        low, high = logit(_inside(fit.lowest)), logit(_inside(fit.highest))
        for start, end, name in ((min(across), low, "fit beyond"), (low, high, "fit"), (high, max(across), "fit beyond")):
            # Straight, as both axes are logits; what would leave the chart is cut off.
            ends = [(place, fit.slope * place + fit.intercept) for place in (start, end)]
            ends = _cut(ends[0], ends[1], y.low, y.high) if start < end else []
            if ends:
                parts.append(path([(x(across_at), y(up_at)) for across_at, up_at in ends], name, "the line of the baselines"))
    for model, (reference, shift) in points.items():
        at = x(logit(_inside(reference)))
        if model in intervals:
            low, high = (y(logit(_inside(end))) for end in intervals[model])
            parts.append(line(at, low, at, high, f"error {model.mark}"))
        title = f"{model.name}: {number_format.value(reference)} without the shift, {number_format.value(shift)} under it"
        parts.append(dot(at, y(logit(_inside(shift))), 4.4, f"dot {model.mark}", title))
    about = "Accuracy under shift against accuracy without it: " + "; ".join(
        f"{model.name} {number_format.value(shift)} against {number_format.value(reference)}"
        for model, (reference, shift) in points.items()
    )
    return image(width, height, about, parts)


def signed(value: float, digits: int = 1) -> str:
    """With a minus sign, and none before zero."""
    shown = f"{value:.{digits}f}"
    return shown.lstrip("-") if float(shown) == 0 else shown.replace("-", "\N{MINUS SIGN}")


def _block(left: float, top: float, right: float, bottom: float, name: str, title: str) -> Markup:
    return path([(left, top), (right, top), (right, bottom), (left, bottom)], name, title, closed=True)


def logit(percent: float) -> float:
    return math.log(percent / (100.0 - percent))


def _inside(percent: float) -> float:
    """0 and 100 have no logit; they are drawn at the end of what is shown."""
    return min(99.9, max(0.1, percent))


def _cut(a: tuple[float, float], b: tuple[float, float], low: float, high: float) -> list[tuple[float, float]]:
    """The part of a straight line whose second coordinate is between low and high; nothing where none is."""
    if a[1] == b[1]:
        return [a, b] if low <= a[1] <= high else []
    shares = sorted((limit - a[1]) / (b[1] - a[1]) for limit in (low, high))
    start, end = max(0.0, shares[0]), min(1.0, shares[1])
    return [(a[0] + s * (b[0] - a[0]), a[1] + s * (b[1] - a[1])) for s in (start, end)] if start < end else []


def _logit_scale(logits: Sequence[float], start: float, end: float) -> Scale:
    margin = 0.06 * (max(logits) - min(logits)) or 0.5
    return Scale(min(logits) - margin, max(logits) + margin, start, end)


def _logit_ticks(scale: Scale) -> list[float]:
    """Round percentages within, at most about eight."""
    found = [value for value in _LOGIT_TICKS if scale.low <= logit(value) <= scale.high]
    return found[:: math.ceil(len(found) / 8)] if found else []
