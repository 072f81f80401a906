"""How reports print numbers: percentages short, probabilities to two digits, small rates in powers of ten, readable times."""

import math
from numbers import Real
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a finite number: neither text nor missing."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def value(number: float | None, percent: bool = True, digits: int = 1) -> str:
    """A percentage with its decimals, anything else with four digits, with a true minus sign; empty if it is missing."""
    if not is_number(number):
        return ""
    shown = f"{number:.{digits}f}" if percent else f"{number:.4g}"
    sign = "\N{MINUS SIGN}" if float(shown) < 0 else ""
    return sign + shown.removeprefix("-")


def probability(p: float) -> str:
    """Two significant digits: 0.012, 0.50, 3.1e-06."""
    return f"{p:#.2g}" if is_number(p) else ""


def parameter(setting: Any) -> str:
    """A hyperparameter: three digits, in powers of ten where small or large (3.2e-4); text as it is."""
    if setting is None or (isinstance(setting, float) and math.isnan(setting)):
        return ""
    if not is_number(setting):
        return str(setting)
    if setting != 0 and not 1e-2 <= abs(setting) < 1e5:
        mantissa, exponent = f"{setting:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{setting:.0f}" if abs(setting) >= 100 else f"{setting:.3g}"


def duration(seconds: float) -> str:
    """A readable time: 4.2 s, 1 min 43 s, 2 h 05 min."""
    if not is_number(seconds):
        return ""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """1 cell, 1,024 cells."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 11th, 1,022nd."""
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{last}"


def label(number: float) -> str:
    """Beside a line: 3,498, 51.7, 7.5, 0.0613."""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.1f}" if abs(number) >= 5 else f"{number:.3g}"


def span(low: float, high: float) -> str:
    """58.0 to 62.0."""
    return f"{value(low)} to {value(high)}"


def chance(percent: float) -> str:
    """Never 0.0, which it is not."""
    return "<0.1" if 0 < percent < 0.05 else value(percent)
