"""Effective robustness: the worked example, a least squares line by its own definition, the shipped lines, and tables."""

import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.robustness import TABLE as SHIPPED
from evaluation.robustness import Line, fit, read_baselines, relative, robustness, shipped_lines
from tests.refusals import refused

REFERENCE, SHIFT = [60, 70, 76, 80], [48, 58, 64, 69]


def test_the_worked_example() -> None:
    line = fit(REFERENCE, SHIFT)
    assert line.slope == pytest.approx(0.890434, abs=5e-7) and line.intercept == pytest.approx(-0.439519, abs=5e-7)
    inside, outside = robustness(line, 70, 60), robustness(line, 40, 35)
    assert inside.prediction == pytest.approx(57.809145, abs=5e-7) and inside.effective == pytest.approx(2.190855, abs=5e-7)
    assert outside.prediction == pytest.approx(30.990591, abs=5e-7) and outside.effective == pytest.approx(4.009409, abs=5e-7)
    assert not inside.extrapolated and outside.extrapolated
    assert (line.models, line.left_out, line.lowest, line.highest) == (4, 0, 60, 80)


def test_the_line_is_the_one_of_least_squares_between_logits() -> None:
    """At the minimum the errors sum to nothing, and neither do they go along with the reference."""
    random = np.random.default_rng(0)
    reference, shift = random.uniform(50, 90, 30), random.uniform(20, 60, 30)
    line = fit(list(reference), list(shift))
    x = [math.log(p / (100 - p)) for p in reference]
    errors = [math.log(p / (100 - p)) - line.slope * a - line.intercept for a, p in zip(x, shift, strict=True)]
    assert math.fsum(errors) == pytest.approx(0, abs=1e-9)
    assert math.fsum(e * a for e, a in zip(errors, x, strict=True)) == pytest.approx(0, abs=1e-9)
    y = [math.log(p / (100 - p)) for p in shift]
    total = math.fsum((b - math.fsum(y) / 30) ** 2 for b in y)
    assert line.r2 == pytest.approx(1 - math.fsum(e * e for e in errors) / total)


def test_a_model_on_the_line_has_none_and_the_span_includes_its_ends() -> None:
    line = Line(1.1, -0.6, 1.0, 9, 0, 55.0, 85.0)
    for reference in (10.0, 55.0, 72.5, 85.0, 85.1):
        odds = math.exp(1.1 * math.log(reference / (100 - reference)) - 0.6)
        found = robustness(line, reference, 100 * odds / (1 + odds))
        assert found.effective == pytest.approx(0, abs=1e-9)
        assert found.extrapolated == (reference in (10.0, 85.1))
    assert robustness(line, 0, 3).prediction == 0 and robustness(line, 100, 97).prediction == 100
    assert robustness(line, 100, 97).effective == -3


def test_accuracies_without_a_logit_are_left_out_and_counted() -> None:
    with_ends = fit([*REFERENCE, 75, 100, 0], [*SHIFT, 0, 40, 50])
    plain = fit(REFERENCE, SHIFT)
    assert (with_ends.slope, with_ends.intercept) == (plain.slope, plain.intercept)
    assert (with_ends.models, with_ends.left_out, with_ends.lowest, with_ends.highest) == (4, 3, 60, 80)


def test_a_shift_that_all_stand_equally_is_predicted_as_such() -> None:
    line = fit([60, 70, 80], [50, 50, 50])
    assert robustness(line, 75, 51).effective == pytest.approx(1) and line.r2 == 1


def test_relative_robustness_is_the_gain_under_shift() -> None:
    assert relative(before=40, after=43.5) == 3.5


@pytest.mark.parametrize("reference", [[70], [70, 70, 70], [0, 100, 70], []])
def test_too_few_baselines_make_no_line(reference: list[float]) -> None:
    with refused("baselines", f"of {len(reference)} models", remedy="two"):
        fit(reference, [50] * len(reference))


@pytest.mark.parametrize("value", [-0.1, 100.5, math.nan])
def test_what_is_no_percentage_is_refused(value: float) -> None:
    line = fit(REFERENCE, SHIFT)
    for key, call in (("reference", lambda: fit([60, value], [50, 51])), ("shift", lambda: robustness(line, 70, value))):
        with refused(key, value, remedy="0 to 100"):
            call()


# --- lines and tables ---

# Of the test-bed's published table: slope, intercept, R^2 and models, as other code computed them from it.
PUBLISHED = {
    "imagenet_v2": (0.9232, -0.4977, 0.996, 85),
    "imagenet_sketch": (1.0709, -2.3701, 0.869, 85),
    "imagenet_r": (0.6368, -2.1077, 0.889, 80),
    "objectnet": (0.9809, -1.9283, 0.953, 85),
    "imagenet_a": (1.9900, -7.6325, 0.828, 84),
}


def test_the_five_lines_of_the_test_bed() -> None:
    found = shipped_lines()
    for name, (slope, intercept, r2, models) in PUBLISHED.items():
        assert (round(found[name].slope, 4), round(found[name].intercept, 4)) == (slope, intercept)
        assert (round(found[name].r2, 3), found[name].models) == (r2, models)
    assert set(found) == set(PUBLISHED)
    assert [line.left_out for line in found.values()] == [0, 0, 0, 0, 1]
    # ResNet-50 has 76.1 % on ImageNet and 63 on V2; a small model of 35 % is below all baselines.
    assert robustness(found["imagenet_v2"], 76, 76).prediction == pytest.approx(63.7, abs=0.1)
    assert robustness(found["imagenet_v2"], 35, 30).extrapolated and not robustness(found["imagenet_v2"], 60, 50).extrapolated


def test_the_data_come_with_their_license() -> None:
    assert "Permission is hereby granted" in SHIPPED.with_suffix(".LICENSE.txt").read_text(encoding="utf-8")


TABLE = "val,model,greyscale,imagenet-r\n60,a,1,48\n70.0,b,, 58\n76,c,3,64\n80,d,4,69\n99,no shift,5,\n,no reference,6,1\n"


def test_two_columns_of_a_table_of_ones_own_make_the_line(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(TABLE, encoding="utf-8-sig")  # as a spreadsheet saves it
    assert read_baselines(path, "val", "imagenet-r") == (REFERENCE, SHIFT)
    assert fit(*read_baselines(path, "val", "imagenet-r")) == fit(REFERENCE, SHIFT)


@pytest.mark.parametrize(
    ("content", "named", "remedy"),
    [
        (None, ["own.csv"], "percent"),
        ("model,val\na,60\n", ["own.csv", "'imagenet-r'"], "model, val"),
        ("", ["own.csv", "'val'"], "columns"),
        ("val,imagenet-r\n60,48\n70,good\n", ["own.csv", "line 3", "'good'"], "0 to 100"),
        ("val,imagenet-r\n160,48\n", ["own.csv", "line 2", "'160'"], "0 to 100"),
        ("val,imagenet-r\n0.60,0.48\n0.70,0.58\n", ["own.csv", "'val'", "'imagenet-r'", "1"], "percent"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path: Path, content: str | None, named: list[str], remedy: str) -> None:
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with refused("baselines", *named, remedy=remedy):
        read_baselines(path, "val", "imagenet-r")
