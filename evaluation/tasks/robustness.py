"""Effective robustness: top-1 under a shift beside what a line through baselines predicts from top-1 on the reference set."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup
from pydantic import Field, model_validator

from evaluation import robustness, zero_shot
from evaluation.data.base import Content
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import Chart, Plot, Scale, figure, logit, score_range
from evaluation.reporting.comparison import Comparison, score_table
from evaluation.task_info import Measure, TaskInfo
from evaluation.tasks.base import Scored, Task
from evaluation.tasks.zero_shot import ZeroShot
from pipelines.program.errors import UserError
from pipelines.program.path_keys import LocalPlace
from pipelines.program.settings_base import Settings

_POINTS = "percentage points"
_SHOWN = {
    "effective": "effective robustness, points",
    "reference": "accuracy without the shift",
    "shift": "accuracy under the shift",
    "prediction": "predicted by the line",
}
_SCATTER = (360.0, 330.0)


class RobustnessSettings(Settings):
    """Effective robustness of one set, which is a shift of another."""

    reference: str = Field(description="entry of data: the set without the shift")
    line: str | None = Field(
        None, description="an included line: imagenet_v2, imagenet_sketch, imagenet_r, imagenet_a, objectnet"
    )
    baselines: LocalPlace | None = Field(None, description="instead: csv with a row a baseline model, accuracies in percent")
    reference_column: str | None = Field(None, description="of baselines: accuracy on the reference")
    shift_column: str | None = Field(None, description="of baselines: accuracy under the shift")

    @model_validator(mode="after")
    def _one_line(self) -> "RobustnessSettings":
        columns = [self.reference_column, self.shift_column]
        if (self.line is None) == (self.baselines is None):
            raise ValueError("line: give either an included line, or baselines with its two columns")
        if (self.baselines is None) != (columns == [None, None]) or (self.baselines is not None and None in columns):
            raise ValueError("baselines: needs reference_column and shift_column, and they need it")
        return self


class EffectiveRobustness:
    """The main score is what a model has above the line."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "effective_robustness",
        "robustness",
        "Effective robustness",
        (Measure("effective", "effective robustness", unit=_POINTS),),
        _POINTS,
    )
    settings: ClassVar[type[Settings] | None] = None  # its key holds one entry for each shift

    def __init__(self, shift: ZeroShot, reference: ZeroShot, line: robustness.Line, baselines: str):
        self.dataset, self.place, self._shift = shift.dataset, shift.place, shift
        self._line, self._baselines = line, baselines
        self._reference, self._labels = reference, _on_classes(reference, shift)
        self.identity = [shift.identity, self._labels.tolist(), asdict(line)]

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        for shift, given in settings.robustness.items():
            line, baselines = _line(given, shift)
            yield cls(_only(shift, contents, shift), _only(given.reference, contents, shift), line, baselines)

    def inputs(self) -> Sequence[Inputs]:
        return self._shift.images, self._shift.texts, self._reference.images

    def score(self, rows: Rows) -> Scored:
        classes = zero_shot.ensemble(self._shift.prompts, rows[self._shift.texts])
        under = zero_shot.classify(rows[self._shift.images], classes, self._shift.test.labels)["top1"]
        kept = self._labels >= 0
        without = zero_shot.classify(rows[self._reference.images][kept], classes, self._labels[kept])["top1"]
        result = robustness.robustness(self._line, without, under)
        return Scored(
            main="effective",
            scores={"effective": result.effective, "prediction": result.prediction, "shift": under, "reference": without},
            sample_sizes={"shift": len(self._shift.test.labels), "reference": int(kept.sum())},
            details={
                "extrapolated": result.extrapolated,
                "line": asdict(self._line),
                "baselines": self._baselines,
                "reference_set": self._reference.dataset,
            },
        )

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "Better models score better under a shift too: for standard models both accuracies lie near a line, on the logit "
            "scale. Effective robustness is how far a model is above that line, in percentage points: what its accuracy without "
            "the shift does not explain."
        )
        return comparison.section(cls.info, about, _of_shift)


def _only(name: str, contents: Mapping[str, Content], shift: str) -> ZeroShot:
    classifications = list(contents[name].classifications.values())
    if len(classifications) != 1:
        problem = f"{name} has {len(classifications)} sets of labels, and effective robustness compares one"
        raise UserError(f"robustness.{shift}", problem, "name an entry of data with one set of labels")
    return ZeroShot(name, classifications[0], name)


def _line(given: RobustnessSettings, shift: str) -> tuple[robustness.Line, str]:
    """The line, and what it goes through."""
    if given.baselines is not None:
        assert given.reference_column is not None and given.shift_column is not None
        columns = robustness.read_baselines(given.baselines, given.reference_column, given.shift_column)
        return robustness.fit(*columns), str(given.baselines)
    lines = robustness.shipped_lines()
    if given.line not in lines:
        problem = f"'{given.line}' is unknown"
        raise UserError(f"robustness.{shift}.line", problem, f"choose one of {', '.join(lines)}, or give baselines")
    return lines[given.line], f"shipped: {given.line}"


def _on_classes(reference: ZeroShot, shift: ZeroShot) -> np.ndarray:
    """The shift's class of each of the reference's images, int64 [n], -1 for none: by ImageNet's numbers, or else by name."""
    own: Sequence[Sequence[object]] = reference.content.classes
    shifted: Sequence[Sequence[object]] = shift.content.classes
    if reference.content.imagenet is not None and shift.content.imagenet is not None:
        own, shifted = reference.content.imagenet, shift.content.imagenet
    place = {entry: c for c, entries in enumerate(shifted) for entry in entries}
    classes = [next((place[entry] for entry in entries if entry in place), -1) for entries in own]
    labels = np.asarray(classes, dtype=np.int64)[reference.test.labels]
    if (labels < 0).all():
        problem = f"no image of {reference.dataset} is of a class of {shift.dataset}"
        raise UserError(f"robustness.{shift.dataset}.reference", problem, "give a set with the same classes")
    return labels


def _of_shift(comparison: Comparison, dataset: str) -> Markup:
    """Models beside the line of the baselines, and the distances from it."""
    results = comparison.of(EffectiveRobustness.info.name, dataset)
    effective, *facts = (comparison.row(EffectiveRobustness.info.name, dataset, *score) for score in _SHOWN.items())
    points = [
        (under.model, without.value, under.value, under.interval)
        for without, under in zip(facts[0].cells, facts[1].cells, strict=True)
        if without.value is not None and under.value is not None
    ]
    fitted = {robustness.Line(**given) for result in results.values() if (given := result.details.get("line"))}
    line, about = (fitted.pop() if len(fitted) == 1 else None), next(iter(results.values())).details
    words = '<h3>{} <small class="soft">against {}</small></h3>'
    elements, flags, described = [html.fill(words, dataset, about.get("reference_set", "the reference set"))], [], ""
    if beyond := [model.name for model, result in results.items() if result.details.get("extrapolated")]:
        words = "accuracy without the shift is outside of what the line was fitted to; the prediction is extrapolated."
        flags.append(f"{', '.join(beyond)}: {words}")
    if fitted:
        words = "The models were compared with different lines: compare their effective robustness with care; no line is drawn."
        flags.append(words)
    if line:
        words = "Line of {}{}{}, R\u00b2 {:.3f}, of reference accuracies from {}\u00a0%."
        left_out = f", {line.left_out} left out" if line.left_out else ""
        baselines = f" ({about['baselines']})" if about.get("baselines") else ""
        span = number_format.span(line.lowest, line.highest)
        described = html.soft(words, number_format.count(line.models, "model"), left_out, baselines, line.r2, span)
    note = "both axes logit; whiskers: 95 % intervals" + ("; line: baselines, dashed where extended" if line else "")
    scatter = figure(_scatter(points, line), "Accuracy under the shift, %", note) if points else ""
    # Without a best: the parts of effective robustness are not compared.
    rows = [replace(row, cells=[replace(cell, best=False, level=False) for cell in row.cells]) for row in facts] + [effective]
    rows = [row for row in rows if any(cell.value is not None for cell in row.cells)]
    scores = score_table(comparison, {"": rows}, first_column="%", chance=False)
    elements += [html.paragraph("{}", flag, style="flag") for flag in flags]
    return html.join(*elements, html.div("pair", scatter, html.div("", scores, described)))


def _scatter(
    points: Sequence[tuple[html.Model, float, float, tuple[float, float] | None]], line: robustness.Line | None
) -> Chart:
    """Accuracy under shift against reference accuracy, both on the logit scale; the line is dashed where it is extended."""
    across = [reference for _, reference, *_ in points] + ([line.lowest, line.highest] if line else [])
    up = [end for _, _, shift, interval in points for end in (shift, *(interval or ()))]
    up += [line.predict(end) for end in (min(across), max(across))] if line else []
    width, height = _SCATTER
    plot = Plot(width, height, _logits(across, 36, width - 12), _logits(up, height - 36, 10))
    plot.frame("accuracy without the shift, %", 8, 8)
    if line:
        low, high = line.lowest, line.highest
        for start, end, name in ((min(across), low, "fit beyond"), (low, high, "fit"), (high, max(across), "fit beyond")):
            if start < end:  # straight, as both axes are logits
                ends = [(start, line.predict(start)), (end, line.predict(end))]
                plot.line(ends, name, "the line of the baselines")
    told = []
    for model, reference, shift, interval in points:
        without, under = number_format.value(reference), number_format.value(shift)
        plot.line([(reference, end) for end in interval or ()], f"error {model.mark}")
        plot.dot(reference, shift, model.mark, f"{model.name}: {without} without the shift, {under} under it", 4.4)
        told.append(f"{model.name} {under} against {without}")
    return Chart(plot.svg("Accuracy under shift against accuracy without it: " + "; ".join(told)))


def _logits(percents: list[float], start: float, end: float) -> Scale:
    """An axis with a little room beside what is shown."""
    low, high = (100.0 / (1.0 + math.exp(-value)) for value in score_range(map(logit, percents)))
    return Scale(low, high, start, end, logit=True)
