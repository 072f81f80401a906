"""How a sweep's numbers and names are printed: metrics short, probabilities to two digits, small rates in powers of ten."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

_WAYS = {
    "image_to_text_recall": "image to text R",
    "text_to_image_recall": "text to image R",
    "mean_recall": "mean R",
}
_ALL_RECALLS = "mean_recall"  # of all k
_MEASURES = {"top1": "top-1", "top5": "top-5", "mean_per_class": "mean per class"}


def is_number(value: Any) -> bool:
    """A finite one: neither text nor missing."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_percent(metric: str) -> bool:
    """Scores have paths and are percentages; `loss` and the like are not."""
    return "/" in metric


def lower_is_better(metric: str, score_metrics: Sequence[str], mode: str) -> bool:
    """As the sweep's mode says for what it ranks by; of all else, losses are better low and percentages high."""
    return mode == "min" if metric in score_metrics else not is_percent(metric)


def value(number: float, percent: bool = True) -> str:
    """A percentage with one decimal, anything else with four digits; nothing where it is missing."""
    if not is_number(number):
        return ""
    return f"{number:.1f}" if percent else f"{number:.4g}"


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
    """A time for people: 4.2 s, 1 min 43 s, 2 h 05 min."""
    if not is_number(seconds):
        return ""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """1 cell, 1,024 cells."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def metric_names(metrics: Sequence[str], datasets: Sequence[str]) -> dict[str, str]:
    """Path -> what heads its column; the dataset is named only where the metrics are of several."""
    parsed = {path: _parse(path, datasets) for path in metrics}
    several = len({dataset for _, dataset in parsed.values() if dataset}) > 1
    return {path: f"{name}, {dataset}" if several and dataset else name for path, (name, dataset) in parsed.items()}


def _parse(path: str, datasets: Sequence[str]) -> tuple[str, str]:
    """Short name and dataset; an unknown kind of metric keeps its path."""
    parts = path.split("/")
    if len(parts) != 3:
        return path, ""
    kind, middle, measure = parts
    way, _, k = measure.partition("@")
    if kind == "retrieval" and way in _WAYS and k:
        return f"{_WAYS[way]}@{k}", middle
    if kind == "retrieval" and measure == _ALL_RECALLS:
        return "mean of all recalls", middle
    if kind == "zero_shot" and measure in _MEASURES:
        # The longest name first: "openmoji_black" is no label "black" of "openmoji" where both are datasets.
        for dataset in sorted(datasets, key=len, reverse=True):
            if middle.startswith(f"{dataset}_"):
                return f"zero-shot {middle[len(dataset) + 1 :]} {_MEASURES[measure]}", dataset
        return f"zero-shot {middle} {_MEASURES[measure]}", ""
    return path, ""
