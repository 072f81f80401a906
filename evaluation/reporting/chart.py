"""Charts as inline SVG in the colours and the font of the page: scales, marks, line charts, and the table of what is drawn.

Drawn by hand because the colours must follow the page's light and dark mode, points show their values in tooltips, and
a page of a hundred charts has to be written in a second or two, after every few trials of a sweep.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from markupsafe import Markup

from evaluation.reporting import html, number_format

COLOURS = 8  # classes m0, m1, ... of the page's style
SHADES = 6  # classes of the sequential scale, from worst to best
SMALL, TINY, LARGE = (290.0, 190.0), (200.0, 150.0), (760.0, 400.0)
_PERCENTS = (0.1, 0.3, 1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)  # ticks of a logit axis
_MOST_POINTS = 500  # of a line: a page does not grow with the length of a run
_MOST_DOTS = 40
_MOST_ROWS = 25  # of a chart's table
_APART = 12.0  # pixels between two labels at the ends of lines


def mark(position: int) -> str:
    """The class of a colour; past the last they begin anew, hollow and dashed."""
    return f"m{position % COLOURS}" + (" again" if position // COLOURS % 2 else "")


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, or `choices` side by side, onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    logit: bool = False  # of percentages; what is at or next to 0 and 100, which have no logit, is drawn as 0.1 and 99.9
    choices: Sequence[Any] = ()

    def __call__(self, value: Any) -> float:
        if self.choices:
            return self.start + (self.choices.index(value) + 0.5) / len(self.choices) * (self.end - self.start)
        low, high, at = (self._straight(v) for v in (self.low, self.high, value))
        return self.start + (0.5 if low == high else (at - low) / (high - low)) * (self.end - self.start)

    def _straight(self, value: float) -> float:
        return logit(value) if self.logit else math.log(value) if self.log else value

    def ticks(self, count: int) -> Sequence[Any]:
        """At most about so many round values within, or all choices."""
        if self.choices:
            return self.choices
        if self.logit:
            within = [value for value in _PERCENTS if self.low <= value <= self.high]
            return within[:: math.ceil(len(within) / count)] if within else []
        return _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)


def logit(percent: float) -> float:
    inside = min(99.9, max(0.1, percent))
    return math.log(inside / (100.0 - inside))


def score_range(values: Iterable[float], from_zero: bool = False, margin: float = 0.06) -> tuple[float, float]:
    """The range of an axis: that of the finite values, and a margin as a share of it; 0 to 1 without values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    room = margin * (high - low) or 0.1 * abs(high) or 1.0
    return (0.0 if from_zero and low >= 0 else low - room), high + room


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    if low == high:
        return [low]
    rough = (high - low) / count
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * s for s in (1, 2, 5, 10) if unit * s >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten; where fewer than two lie within, 1, 2 and 5 times these; else the two ends."""
    for factors in ((1,), (1, 3), (1, 2, 5)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [f * 10.0**e for e in exponents for f in factors if low * (1 - 1e-9) <= f * 10.0**e <= high * (1 + 1e-9)]
        if len(ticks) >= 2:
            return ticks[:: math.ceil(len(ticks) / count)]
    return sorted({low, high})


@dataclass
class Plot:
    """A chart under construction. Marks are given by values and placed by the scales; names are classes of the page's style."""

    width: float
    height: float
    x: Scale
    y: Scale
    parts: list[Markup] = field(default_factory=list)

    def frame(self, x_title: str = "", x_ticks: int | Mapping[float, str] = 4, y_ticks: int = 5) -> None:
        """Quiet axes: a base line, horizontal grid, few numbers; the x axis's title below its right end."""
        x, y = self.x, self.y
        for value in y.ticks(y_ticks):
            self.pixels([(x.start, y(value)), (x.end, y(value))], "grid")
            self.text(x.start - 5, y(value) + 3.5, number_format.parameter(value), "end")
        self.pixels([(x.start, y.start), (x.end, y.start)], "base")
        if not isinstance(x_ticks, Mapping):
            x_ticks = {value: number_format.parameter(value) for value in x.ticks(x_ticks)}
        for value, label in x_ticks.items():
            self.pixels([(x(value), y.start), (x(value), y.start + 3)], "base")
            for row, words in enumerate(label.split("\n")):
                self.text(x(value), y.start + 14 + 13 * row, words)
        if x_title:
            lines = 1 + max((label.count("\n") for label in x_ticks.values()), default=0)
            self.text(x.end, y.start + 17 + 13 * lines, x_title, "end")

    def columns(self, top: float, bottom: float, count: int) -> None:
        """The quiet axis of a chart of rows: a vertical grid between two pixels, with numbers below."""
        for value in self.x.ticks(count):
            self.pixels([(self.x(value), top), (self.x(value), bottom)], "grid")
            self.text(self.x(value), bottom + 13, number_format.value(value, percent=False))

    def text(self, x: float, y: float, content: str, anchor: str = "middle", name: str = "") -> None:
        """Letters at a pixel."""
        self.parts.append(html.tag("text", content, style=name, x=_n(x), y=_n(y), text_anchor=anchor))

    def pixels(self, points: Iterable[tuple[float, float]], name: str, title: str = "", closed: bool = False) -> None:
        """A line through pixels, or the area within; `title` is its tooltip."""
        d = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + ("Z" if closed else "")
        self.parts.append(html.tag("path", html.tag("title", title) if title else "", style=name, d=d))

    def line(self, points: Iterable[tuple[float, float]], name: str, title: str = "", closed: bool = False) -> None:
        """A line through the finite points."""
        known = [(self.x(x), self.y(y)) for x, y in points if math.isfinite(y)]
        if known:
            self.pixels(known, name, title, closed)

    def dot(self, x: float, y: float, name: str, title: str, radius: float = 2.6, chosen: bool = False) -> None:
        """One that is `chosen` is large, ringed, and says so."""
        name, title, radius = (f"{name} chosen", f"{title}, chosen", 4.5) if chosen else (name, title, radius)
        place = {"cx": _n(self.x(x)), "cy": _n(self.y(y)), "r": radius}
        self.parts.append(html.tag("circle", html.tag("title", title), style=f"dot {name}", **place))

    def end_labels(self, ends: Iterable[tuple[float, str, str]]) -> None:
        """Level, text and class: beside the right end, pushed apart where they would overlap."""
        below = -math.inf
        for level, label, name in sorted((self.y(value), label, name) for value, label, name in ends):
            below = max(level, below + _APART)
            self.text(self.x.end + 8, below + 3.5, label, "start", name)

    def svg(self, about: str, name: str = "") -> Markup:
        """The whole chart; `about` is its text for screen readers."""
        box = f"0 0 {_n(self.width)} {_n(self.height)}"
        return html.tag("svg", *self.parts, style=name, role="img", aria_label=about, viewBox=box)


def _n(number: float) -> str:
    """A pixel's place to a tenth, without a needless end."""
    return f"{number:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Chart:
    """A drawing, and its values as the head and the rows of a table, unless a table beside it has them."""

    svg: Markup
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def figure(chart: Chart, title: str = "", note: str = "") -> Markup:
    """A chart and, closed below it, its figures where it has them: of very many, some at even distances, and both ends."""
    caption = html.tag("figcaption", title, html.small(note)) if title or note else ""
    shown, name = chart.rows, html.fill("{}", title or note).striptags()
    summary, last = "Figures", len(chart.rows) - 1
    if last >= _MOST_ROWS:
        shown = [chart.rows[round(i * last / (_MOST_ROWS - 1))] for i in range(_MOST_ROWS)]
        summary = f"{_MOST_ROWS} of {len(chart.rows):,} rows"
    opened = html.join(summary, html.tag("span", f"of {name}", style="hidden"))
    table = html.table(f"Figures of {name}", chart.head, shown, style="narrow")
    return html.tag("figure", caption, chart.svg, html.more(opened, table, style="figures") if shown else "")


@dataclass(frozen=True)
class Series:
    """A line: x -> y. `spread`: x -> ends of its whisker, or of a band. `chosen`: the x of a ringed point."""

    name: str
    points: Mapping[float, float]
    style: str = "m0"  # the class of its colour
    kind: str = ""  # a class of the line alone
    spread: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    chosen: float | None = None
    band: bool = False
    aside: float = 0.0  # pixels, so that the whiskers of two lines do not hide one another
    background: bool = False  # to compare with: neither dots nor a column of the table

    def draw(self, plot: Plot, at: Mapping[float, str], x_title: str, percent: bool) -> None:
        """The line, what surrounds it, and its points with their values."""
        plot = replace(plot, x=replace(plot.x, start=plot.x.start + self.aside, end=plot.x.end + self.aside))
        places = sorted(self.points)
        stride = math.ceil(len(places) / _MOST_POINTS)
        places = [*places[:-1:stride], *places[-1:]]
        if self.band:
            outline = [(x, self.spread[x][0]) for x in places] + [(x, self.spread[x][1]) for x in reversed(places)]
            plot.line(outline, f"band {self.style}", closed=True)
        plot.line([(x, self.points[x]) for x in places], f"line {self.style} {self.kind}".strip(), self.name)
        dotted = len(places) <= _MOST_DOTS and not self.background
        for x in (x for x in places if math.isfinite(self.points[x]) and (dotted or x == self.chosen)):
            if x in self.spread and not self.band:
                plot.line([(x, end) for end in self.spread[x]], f"error {self.style}")
            place = (at.get(x) or number_format.parameter(x)).replace("\n", ", ")
            title = f"{self.name}, {x_title} {place}: {number_format.value(self.points[x], percent)}"
            plot.dot(x, self.points[x], self.style, title, chosen=x == self.chosen)


def lines(
    series: Sequence[Series],
    about: str,
    x_title: str,
    *,
    names: Mapping[float, str] | None = None,
    limits: tuple[float, float] | None = None,
    from_zero: bool = False,
    log: bool = False,
    levels: Mapping[str, float] | None = None,
    labelled: float = 0.0,
    percent: bool = True,
    size: tuple[float, float] = SMALL,
) -> Chart:
    """Scores against something.

    Args:
        names: labels of some x instead of numbers; limits: of y, where several charts share them.
        levels: values to compare with, drawn across; labelled: pixels at the right for the names and last values of the series.
    """
    levels, width, height = levels or {}, *size
    values = [end for s in series for x, y in s.points.items() for end in (y, *s.spread.get(x, ()))]
    limits = limits or score_range([*values, *levels.values()], from_zero)
    places = sorted({x for s in series for x in s.points})
    margin = 0.0 if log or labelled else 0.04 * (places[-1] - places[0])
    low = 0.0 if x_title == "epoch" else places[0] - margin
    below = 34 + 13 * max((name.count("\n") for name in (names or {}).values()), default=0)
    x, y = Scale(low, places[-1] + margin, 38, width - (labelled or 12), log), Scale(*limits, height - below, 8)
    plot = Plot(width, height, x, y)
    plot.frame(x_title, names or 4)
    for name, level in levels.items():
        if limits[0] <= level <= limits[1]:
            plot.pixels([(x.start, y(level)), (x.end, y(level))], "chance", f"{name}: {number_format.value(level, percent)}")
    for s in series:
        s.draw(plot, names or {}, x_title, percent)
    if labelled:
        ends = [(s.points[max(s.points)], s.name, s.style) for s in series if not s.background and s.points]
        plot.end_labels(
            [(v, f"{n} {number_format.label(v)}".strip(), f"name {c}") for v, n, c in ends if math.isfinite(v)]
            + [(level, f"{name} {number_format.label(level)}", "") for name, level in levels.items()]
        )
    shown = [s for s in series if not s.background]
    rows = [
        [(names or {}).get(x, number_format.parameter(x)).replace("\n", ", "), *(_figure(s, x, percent) for s in shown)]
        for x in places
    ]
    return Chart(plot.svg(about), [x_title, *(s.name for s in shown)], rows)


def _figure(series: Series, x: float, percent: bool) -> str:
    """The value, and the ends of its spread."""
    value = number_format.value(series.points.get(x, math.nan), percent)
    ends = [number_format.value(end, percent) for end in series.spread.get(x, ())]
    return f"{value} ({' to '.join(ends)})" if value and any(ends) else value
