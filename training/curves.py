"""Curves of a run as inline SVG: small charts whose colours and font are the page's, in light, in dark and on paper.

matplotlib draws with placeholder colours, which are then replaced by the page's CSS variables.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Placeholders, unlikely enough to be nothing else.
_INK, _GRID = "#010203", "#010204"
_SERIES = ("#010211", "#010212", "#010213")
_VARIABLES = {_INK: "--muted", _GRID: "--line"} | {colour: f"--series-{i + 1}" for i, colour in enumerate(_SERIES)}
_STYLES = (("-", "o"), ("--", "s"), ("-.", "^"))  # a series is told apart without its colour too
_MOST_POINTS = 500
_LABEL_GAP = 10.5  # points between the labels at the ends of curves


@dataclass(frozen=True)
class Curve:
    """`label` stands at its end, with the last value."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


def chart(
    name: str,
    about: str,
    curves: Sequence[Curve],
    unit: str = "",
    top: float | None = None,
    reference: tuple[str, float] | None = None,
    width: float = 3.75,
) -> Markup:
    """One chart over epochs, from 0 up.

    Args:
        name: unique on the page; about: what a reader who cannot see it is told.
        reference: label and height of a horizontal line to compare with.
        width: inches at which its letters are as large as the page's small print.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 8.5, "axes.unicode_minus": False}):
        labelled = any(curve.label for curve in curves)
        figure = Figure(figsize=(width, 1 + 0.35 * width))
        # Inches: numbers at the left, labels at the right, epochs below.
        left, right, below, above = 0.48, 0.9 if labelled else 0.12, 0.42, 0.08
        high = figure.get_figheight()
        axes = figure.add_axes((left / width, below / high, 1 - (left + right) / width, 1 - (below + above) / high))
        for curve, colour, (line, marker) in zip(curves, _SERIES, _STYLES, strict=False):
            x, y = _thinned(curve.x), _thinned(curve.y)
            axes.plot(x, y, line, color=colour, linewidth=1.6, marker=marker if len(x) <= 40 else "", markersize=2.6)
        finite = [y for curve in curves for y in curve.y if math.isfinite(y)] + ([reference[1]] if reference else [])
        axes.set_ylim(min(0.0, *finite, 0.0), top or 1.08 * max([*finite, 0.0]) or 1.0)
        axes.set_xlim(0, max([x for curve in curves for x in curve.x], default=1) or 1)
        ends = [(curve.y[-1], f"{curve.label} {number(curve.y[-1])}", c) for curve, c in zip(curves, _SERIES, strict=False)]
        if reference is not None:
            axes.axhline(reference[1], color=_INK, linewidth=1, linestyle=":")
            ends.append((reference[1], f"{reference[0]} {number(reference[1])}", _INK))
        _dress(axes, unit)
        if labelled:
            _label_ends(axes, ends)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    return _inline(text.getvalue(), name, about)


def _thinned(values: Sequence[float]) -> list[float]:
    """At most so many points, the last always: a page does not grow with the length of a run."""
    stride = math.ceil(len(values) / _MOST_POINTS)
    return [*values[:-1:stride], values[-1]]


def number(value: float) -> str:
    """Short, for labels: 3,498, 51.7, 7.5, 0.0613."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 5 else f"{value:.3g}"


def _dress(axes: matplotlib.axes.Axes, unit: str) -> None:
    """Quiet axes: no box, horizontal grid, few ticks with units."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, pad=4)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}{unit}"))
    axes.set_xlabel("epoch", color=_INK, labelpad=3)


def _label_ends(axes: matplotlib.axes.Axes, ends: list[tuple[float, str, str]]) -> None:
    """Labels right of the curves' ends, pushed apart where they would overlap."""
    box = axes.get_window_extent()
    scale = 72 / axes.figure.dpi
    low, high = axes.get_ylim()
    height = box.height * scale
    below = -math.inf
    for value, label, colour in sorted(end for end in ends if math.isfinite(end[0])):
        position = (value - low) / (high - low) * height
        below = max(position, below + _LABEL_GAP)
        axes.annotate(
            label,
            (1, below / height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )


def _inline(svg: str, name: str, about: str) -> Markup:
    """For a page that holds several: ids of its own, no metadata, no rules that leak out, colours by name."""
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    viewbox = re.search(r'viewBox="[^"]*"', svg)
    assert viewbox is not None
    svg = re.sub(r"<svg [^>]*>", lambda _: f'<svg role="img" aria-label="{escape(about)}" {viewbox[0]}>', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return Markup(svg)
