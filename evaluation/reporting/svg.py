"""Inline SVG by hand: scales, ticks and a frame for small charts whose colours and font are the page's.

A page holds a hundred small charts; drawn with matplotlib they would take longer than some of the sweeps and evaluations
that they show.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipelines.program import number_format

_STEPS = (1, 2, 5, 10)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        share = position(value, self.low, self.high, self.log)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """At most about so many round values within."""
        return _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)


def position(value: float, low: float, high: float, log: bool) -> float:
    """Where in a range, 0 to 1, a value is; in the middle of an empty one."""
    if low == high:
        return 0.5
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def score_range(values: Sequence[float], from_zero: bool) -> tuple[float, float] | None:
    """What an axis of scores spans: what there is and a little more; None without values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if from_zero and low >= 0 else low - margin), high + margin


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    if low == high:
        return [low]
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * s for s in _STEPS if unit * s >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten; where fewer than two lie within, 1, 2 and 5 times these; else the two ends."""
    for factors in ((1,), (1, 3), (1, 2, 5)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [f * 10.0**e for e in exponents for f in factors if low * (1 - 1e-9) <= f * 10.0**e <= high * (1 + 1e-9)]
        if len(found) >= 2:
            return found[:: math.ceil(len(found) / count)]
    return sorted({low, high})


def text(x: float, y: float, content: str, anchor: str = "middle", name: str = "") -> Markup:
    """Letters at a place; `name` is a class of the page's style."""
    style = Markup(' class="{}"').format(name) if name else ""
    return Markup('<text x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(_n(x), _n(y), anchor, style, content)


def line(x1: float, y1: float, x2: float, y2: float, name: str) -> Markup:
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(name, _n(x1), _n(y1), _n(x2), _n(y2))


def path(points: Iterable[tuple[float, float]], name: str, title: str = "", closed: bool = False) -> Markup:
    """A line through points, or the area within; `title` is shown to who points at it."""
    d = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + ("Z" if closed else "")
    return Markup('<path class="{}" d="{}">{}</path>').format(name, d, _title(title))


def dot(x: float, y: float, radius: float, name: str, title: str = "") -> Markup:
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}">{}</circle>').format(name, _n(x), _n(y), radius, _title(title))


def cross(x: float, y: float, name: str, title: str = "") -> Markup:
    """For what failed."""
    d = f"M{_n(x - 3)} {_n(y - 3)}l6 6m0 -6l-6 6"
    return Markup('<path class="{}" d="{}">{}</path>').format(name, d, _title(title))


def frame(x: Scale, y: Scale, x_title: str = "", x_ticks: int = 4, y_ticks: int = 4) -> Markup:
    """Quiet axes: a base line, horizontal grid, few numbers; the x axis's title below its right end."""
    parts = []
    for value in y.ticks(y_ticks):
        parts.append(line(x.start, y(value), x.end, y(value), "grid"))
        parts.append(text(x.start - 5, y(value) + 3.5, number_format.parameter(value), "end"))
    parts.append(line(x.start, y.start, x.end, y.start, "base"))
    for value in x.ticks(x_ticks) if x_ticks else []:
        parts.append(line(x(value), y.start, x(value), y.start + 3, "base"))
        parts.append(text(x(value), y.start + 14, number_format.parameter(value)))
    if x_title:
        parts.append(text(x.end, y.start + 30, x_title, "end"))
    return Markup("").join(parts)


def image(width: float, height: float, about: str, parts: Sequence[Markup], name: str = "") -> Markup:
    """The whole chart; `about` is what a reader who cannot see it is told."""
    return Markup('<svg role="img" aria-label="{}" class="{}" viewBox="0 0 {} {}">{}</svg>').format(
        about, name, _n(width), _n(height), Markup("").join(parts)
    )


def _title(content: str) -> Markup:
    return Markup("<title>{}</title>").format(content) if content else Markup("")


def _n(number: float) -> str:
    """A pixel's place to a tenth, without a needless end."""
    return f"{number:.1f}".removesuffix(".0")
