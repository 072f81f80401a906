"""Effective robustness: accuracy under a shift beyond what accuracy without it predicts (Taori et al., arXiv 2007.00644).

For standard models the two accuracies lie near a line once both are on the logit scale, ln(p / (1 - p)). The line through
baselines predicts the accuracy under the shift from the reference accuracy; effective robustness is the accuracy beyond that
prediction (section 2 of the paper). The reference is accuracy on the shift's own classes. Accuracies in percent.
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
    """logit(accuracy under shift) = slope * logit(reference accuracy) + intercept, and the models that it was fitted to."""

    slope: float
    intercept: float
    r2: float  # squared correlation of the two logits
    models: int
    left_out: int  # models with an accuracy of 0 or 100 %, which have no logit
    lowest: float  # reference accuracies of the models, in percent
    highest: float

    def predict(self, reference: float) -> float:
        """The accuracy under the shift at a reference accuracy, both in percent."""
        with np.errstate(divide="ignore", over="ignore"):  # 0 and 100 % are infinite on the logit scale
            return float(100.0 / (1.0 + np.exp(-(self.slope * _logit(np.array(reference)) + self.intercept))))


@dataclass(frozen=True)
class Robustness:
    """The predicted accuracy in percent, the model's distance from it in points, and whether it is an extrapolation."""

    prediction: float
    effective: float
    extrapolated: bool


def fit(reference: Sequence[float], shift: Sequence[float]) -> Line:
    """The line through baselines by least squares on the logit scale; accuracies of 0 and 100 are left out and counted.

    Args:
        reference, shift: for each baseline its accuracy in percent, without and under the shift.
    Raises:
        UserError: for an accuracy that is not a percentage, or fewer than two different reference accuracies.
    """
    if len(reference) != len(shift):
        raise ValueError(f"{len(reference)} reference accuracies and {len(shift)} under shift")
    values = [(_percent(a, "reference"), _percent(b, "shift")) for a, b in zip(reference, shift, strict=True)]
    pairs = np.array(values).reshape(-1, 2)
    used = pairs[np.all((pairs > 0) & (pairs < 100), axis=1)]
    if len(np.unique(used[:, 0])) < 2:
        problem = f"{len(used)} of {len(pairs)} models can be used (accuracies of 0 and 100 cannot)"
        raise UserError("baselines", problem, "give at least two models with different reference accuracies")
    x, y = _logit(used).T
    slope, intercept = np.polyfit(x, y, 1)
    # Where all baselines have the same accuracy under the shift, there is no variance to explain.
    r2 = float(np.corrcoef(x, y)[0, 1] ** 2) if np.ptp(y) > 0 else 1.0
    lowest, highest = float(used[:, 0].min()), float(used[:, 0].max())
    return Line(float(slope), float(intercept), r2, len(used), len(pairs) - len(used), lowest, highest)


def robustness(line: Line, reference: float, shift: float) -> Robustness:
    """Effective robustness of a model with these accuracies in percent. Raises `UserError` where one is not a percentage."""
    reference, shift = _percent(reference, "reference"), _percent(shift, "shift")
    prediction = line.predict(reference)
    return Robustness(prediction, shift - prediction, not line.lowest <= reference <= line.highest)


def relative(before: float, after: float) -> float:
    """Relative robustness of an intervention, in points: accuracy under shift with it minus without it (section 2)."""
    return _percent(after, "after") - _percent(before, "before")


def shipped_lines() -> dict[str, Line]:
    """Lines through the public test-bed's standard models: `imagenet_v2`, `_sketch`, `_r` and `_a`, and `objectnet`.

    `baselines/README.md` has the table's source and licence, and explains its columns.
    """
    return {shift: fit(*read_baselines(TABLE, *columns)) for shift, columns in _COLUMNS.items()}


def read_baselines(path: Path, reference: str, shift: str) -> tuple[list[float], list[float]]:
    """Two columns of a csv with one row per model, in percent, for `fit`; models without one of the two are skipped.

    The test-bed's own `robustness_top1s.csv` is such a table, of all kinds of models: keep the rows of the baseline models.

    Args:
        path: csv with names of columns in its first line.
        reference, shift: columns of the accuracy without and under the shift.
    Raises:
        UserError: where the file or a column is missing, a cell is not a percentage, or all are fractions.
    """
    if not path.is_file():
        raise UserError("baselines", f"{path} does not exist", "give a csv with one row per model and accuracies in percent")
    values: tuple[list[float], list[float]] = ([], [])
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        for name in (reference, shift):
            if name not in (table.fieldnames or []):
                columns = ", ".join(table.fieldnames or []) or "none"
                raise UserError("baselines", f"{path} has no column '{name}'", f"choose from its columns: {columns}")
        for row in table:
            cells = [(row[name] or "").strip() for name in (reference, shift)]
            if all(cells):
                for column, cell in zip(values, cells, strict=True):
                    column.append(_percent(cell, "baselines", f" in line {table.line_num} of {path}"))
    if values[0] and max(max(column) for column in values) <= 1:
        problem = f"all accuracies of '{reference}' and '{shift}' in {path} are at most 1"
        raise UserError("baselines", problem, "give them in percent")
    return values


def _percent(value: float | str, key: str, where: str = "") -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number <= 100:  # NaN too
        raise UserError(key, f"{value!r}{where} is not an accuracy in percent", "give a number from 0 to 100")
    return number


def _logit(percent: np.ndarray) -> np.ndarray:
    return np.log(percent / (100.0 - percent))
