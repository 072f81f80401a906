"""Effective robustness: accuracy under a shift beyond what accuracy without it predicts (Taori et al., arXiv 2007.00644).

Over standard models the two accuracies lie near a line once both are on the logit scale, ln(p / (1 - p)). The line through
baselines predicts what a model of a given reference accuracy would keep under the shift; effective robustness is what the
model has beyond that (section 2 of the paper). The reference is accuracy on the shift's own classes. Accuracies in percent.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.program.errors import UserError

TABLE = Path(__file__).parent / "baselines" / "imagenet_testbed.csv"
# Shift -> its columns without and under the shift.
_COLUMNS = {
    "imagenet_v2": ("val", "imagenetv2-matched-frequency-format-val"),
    "imagenet_sketch": ("val", "imagenet-sketch"),
    "imagenet_r": ("val-on-imagenet-r-classes", "imagenet-r"),
    "objectnet": ("val-on-objectnet-classes", "objectnet-1.0-beta"),
    "imagenet_a": ("val-on-imagenet-a-classes", "imagenet-a"),
}


@dataclass(frozen=True)
class Line:
    """logit(accuracy under shift) = slope * logit(reference accuracy) + intercept, and what it was fitted to."""

    slope: float
    intercept: float
    r2: float  # squared correlation of the two logits
    models: int
    left_out: int  # models with an accuracy of 0 or 100 %, which has no logit
    lowest: float  # reference accuracies of the models, in percent
    highest: float


@dataclass(frozen=True)
class Robustness:
    """What a line says of a model: percent, percentage points, and whether the line had to be extended to say so."""

    prediction: float
    effective: float
    extrapolated: bool


def fit(reference: Sequence[float], shift: Sequence[float]) -> Line:
    """The line through baselines by least squares on the logit scale; accuracies of 0 and 100 are left out and counted.

    Args:
        reference, shift: for each baseline its accuracy in percent, without and under the shift.
    Raises:
        UserError: for an accuracy that is no percentage, or fewer than two different reference accuracies.
    """
    if len(reference) != len(shift):
        raise ValueError(f"{len(reference)} reference accuracies and {len(shift)} under shift")
    pairs = np.array([(_percent(a), _percent(b)) for a, b in zip(reference, shift, strict=True)]).reshape(-1, 2)
    used = pairs[np.all((pairs > 0) & (pairs < 100), axis=1)]
    if len(np.unique(used[:, 0])) < 2:
        raise UserError(
            f"baselines: {len(used)} of {len(pairs)} models can be used (accuracies of 0 and 100 cannot);"
            " a line needs two with different reference accuracies"
        )
    x, y = _logit(used).T
    slope, intercept = np.polyfit(x, y, 1)
    # A shift that all baselines stand equally is a line without spread to explain.
    r2 = float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) > 0 else 1.0
    lowest, highest = float(used[:, 0].min()), float(used[:, 0].max())
    return Line(float(slope), float(intercept), r2, len(used), len(pairs) - len(used), lowest, highest)


def robustness(line: Line, reference: float, shift: float) -> Robustness:
    """Effective robustness of a model with these accuracies in percent. Raises `UserError` where they are no percentages."""
    reference, shift = _percent(reference), _percent(shift)
    with np.errstate(divide="ignore", over="ignore"):  # 0 and 100 % are at the ends of the scale
        prediction = float(100.0 / (1.0 + np.exp(-(line.slope * _logit(np.array(reference)) + line.intercept))))
    return Robustness(prediction, shift - prediction, not line.lowest <= reference <= line.highest)


def relative(before: float, after: float) -> float:
    """Relative robustness of an intervention, in points: accuracy under shift with it minus without it (section 2)."""
    return _percent(after) - _percent(before)


def shipped_lines() -> dict[str, Line]:
    """Lines through the public test-bed's standard models: `imagenet_v2`, `_sketch`, `_r` and `_a`, and `objectnet`.

    `baselines/README.md` has the table's source and licence, and what its columns are.
    """
    return {shift: fit(*read_baselines(TABLE, *columns)) for shift, columns in _COLUMNS.items()}


def read_baselines(path: Path, reference: str, shift: str) -> tuple[list[float], list[float]]:
    """Two columns of a csv with a row a model, in percent, for `fit`; a model without one of the two is passed over.

    The test-bed's own `robustness_top1s.csv` is such a table, of all kinds of models: keep the rows of those that are to be
    the baseline.

    Args:
        path: csv with names of columns in its first line.
        reference, shift: columns of the accuracy without and under the shift.
    Raises:
        UserError: where the file or a column is missing, a cell is no percentage, or all are fractions.
    """
    if not path.is_file():
        raise UserError(f"baselines: {path} does not exist; give a csv with a row a model and accuracies in percent")
    found: tuple[list[float], list[float]] = ([], [])
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        for name in (reference, shift):
            if name not in (table.fieldnames or []):
                raise UserError(f"baselines: {path} has no column '{name}'; it has {', '.join(table.fieldnames or [])}")
        for row in table:
            cells = [(row[name] or "").strip() for name in (reference, shift)]
            if all(cells):
                for values, cell in zip(found, cells, strict=True):
                    values.append(_percent(cell, f"{path}, line {table.line_num}"))
    if found[0] and max(max(values) for values in found) <= 1:
        raise UserError(f"baselines: all accuracies of '{reference}' and '{shift}' in {path} are at most 1; give them in percent")
    return found


def _percent(value: float | str, where: str = "robustness") -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 100:  # NaN too
        raise UserError(f"{where}: {value!r} is no accuracy; give a number from 0 to 100, in percent")
    return number


def _logit(percent: np.ndarray) -> np.ndarray:
    return np.log(percent / (100.0 - percent))
