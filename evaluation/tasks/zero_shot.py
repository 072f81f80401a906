"""Zero-shot classification of a set: the ensemble's scores, each template's alone, calibration, and the worst classes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup

from evaluation import calibration, classification, zero_shot
from evaluation.classification import METRICS, Outcome
from evaluation.data.base import Classification, Content
from evaluation.data.subsets import with_labels
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import Chart, Plot, Scale, figure, score_range
from evaluation.reporting.classification import class_sets
from evaluation.reporting.comparison import Comparison, first, number
from evaluation.results import Result
from evaluation.task_info import TaskInfo
from evaluation.tasks.base import Scored, Task, accuracies, classified, of_classes
from pipelines.program.settings_base import Settings

_STRIP, _SQUARE = 360.0, 250.0  # pixels


class ZeroShot:
    """Prompts of all classes against the test images."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "zeroshot_classification",
        "zero_shot",
        "Zero-shot classification",
        accuracies(""),
        needs="labels of test images",
        by_default=True,
    )
    settings: ClassVar[type[Settings] | None] = None
    names = METRICS

    def __init__(self, dataset: str, content: Classification, place: str):
        self.dataset, self.place, self.content = dataset, place, content
        self.test = with_labels(content.test)
        self.prompts = zero_shot.build_prompts(content.classes, content.templates)
        self.images = Inputs("images", self.test.images, f"{place}/test")
        self.texts = Inputs("texts", tuple(self.prompts.texts), f"{dataset}/prompts")
        self.identity = [self.test.labels.tolist(), content.classes, content.templates, content.metric]

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        for dataset, one, place in classified(contents):
            yield cls(dataset, one, place)

    def inputs(self) -> Sequence[Inputs]:
        return self.images, self.texts

    def outcome(self, rows: Rows) -> Outcome:
        """What becomes of each image that has a label."""
        return zero_shot.outcome(rows[self.images], self._classes(rows), self.test.labels)

    def _classes(self, rows: Rows) -> np.ndarray:
        return zero_shot.ensemble(self.prompts, rows[self.texts])

    def measure(self, rows: Rows) -> Scored:
        return self._measured(self.outcome(rows))

    def _measured(self, outcome: Outcome) -> Scored:
        return Scored(
            main=self.content.metric,
            scores=classification.measures(outcome),
            baselines=zero_shot.baselines(outcome.num_classes, outcome.labels),
            sample_sizes=dict.fromkeys(METRICS, len(outcome.labels)),
        )

    def score(self, rows: Rows) -> Scored:
        images, prompts, labels, metric = rows[self.images], rows[self.texts], self.test.labels, self.content.metric
        outcome, names = self.outcome(rows), [given[0] for given in self.content.classes]
        result = classification.result(outcome, names, metric)
        details = of_classes(result) | {"templates": list(self.content.templates)}
        spread = zero_shot.prompt_sensitivity(images, self.prompts, prompts, labels, metric)
        details["sensitivity"] = {"metric": metric} | asdict(spread)
        if rows.scale is not None:
            found = calibration.zero_shot_calibration(images, self._classes(rows), labels, rows.scale)
            details["calibration"] = {"scale": rows.scale} | asdict(found)
        return replace(self._measured(outcome), intervals=result.intervals, details=details)

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "Each class is a sentence, or the mean of several, and an image is of the class whose sentence is nearest. Ties "
            "count against the model. Always naming the largest class is a second baseline beside chance."
        )

        def of_set(dataset: str, results: Mapping[html.Model, Result], scores: Markup) -> list[str]:
            metric = comparison.score_title(cls.info.name, next(iter(results.values())).main)
            classes = first(result.details.get("num_classes") for result in results.values())
            largest = first(result.baselines.get(result.main, {}).get("largest_class") for result in results.values())
            counted = "" if classes is None else f"{classes:,.0f} classes; "
            largest_class = "" if largest is None else f"; always naming the largest class scores {largest:.1f}\u00a0%"
            told = html.soft("{}main score: {}{}.", counted, metric, largest_class)
            return [told, scores, _sensitivity(comparison, dataset, results), _calibration(dataset, results)]

        return class_sets(comparison, cls.info, about, of_set)


def _sensitivity(comparison: Comparison, dataset: str, results: Mapping[html.Model, Result]) -> Markup:
    """Scores by each template alone: a strip of dots a model, and the spread in numbers. One template has no spread."""
    rows, spread, metrics = [], [], []
    for model, result in results.items():
        details = result.details.get("sensitivity") or {}
        scores = [float(value) for value in details.get("scores", []) if number(value) is not None]
        if len(scores) > 1:
            metrics.append(str(details.get("metric", result.main)))
            rows.append((model, scores, number(result.scores.get(metrics[-1]))))
            sd = number_format.value(details.get("sd"))
            spread.append(f"{model.name} {number_format.span(min(scores), max(scores))}" + (f", sd {sd}" if sd else ""))
    if not rows:
        return Markup("")
    count, spreads = max(len(scores) for _, scores, _ in rows), "; ".join(spread)
    title = comparison.score_title("zeroshot_classification", metrics[0])
    templates = max((result.details.get("templates", []) for result in results.values()), key=len)
    chart = _strip(rows, templates, f"{title} on {dataset} by each of {count} templates: {spreads}")
    note = f"{title.capitalize()} by each of {count} templates alone, a dot each; bar: all templates together, the score above."
    return html.join(html.tag("h4", "Sensitivity to the prompt template"), figure(chart, "", note), html.soft("{}.", spreads))


def _strip(rows: Sequence[tuple[html.Model, Sequence[float], float | None]], templates: Sequence[str], about: str) -> Chart:
    """A row of dots a model, one a template, and a bar where all templates together are."""
    limits = score_range([value for _, scores, together in rows for value in (*scores, together) if value is not None])
    bottom = 12.0 + 32 * len(rows)
    plot = Plot(_STRIP, bottom + 12, Scale(*limits, 6, _STRIP - 6), Scale(0, bottom, 0, bottom))
    plot.columns(2, bottom - 6, 5)
    for y, (model, scores, together) in zip(range(12, int(bottom), 32), rows, strict=True):
        plot.text(0, y, model.name, "start", "name halo")
        for template, score in zip(templates, scores, strict=False):
            plot.dot(score, y + 11, f"point {model.mark}", f"{model.name}, {template}: {number_format.value(score)}", 3.4)
        if together is not None:
            title = f"{model.name}, all templates: {number_format.value(together)}"
            plot.line([(together, y + 3), (together, y + 19)], "together", title)
    columns = [map(number_format.value, scores) for _, scores, _ in rows]
    table = [[template, *values] for template, *values in zip_longest(templates, *columns, fillvalue="")]
    return Chart(plot.svg(about), ["template", *(model.name for model, *_ in rows)], table)


def _calibration(dataset: str, results: Mapping[html.Model, Result]) -> Markup:
    """A reliability diagram a model."""
    figures = []
    for model, result in results.items():
        details = result.details.get("calibration") or {}
        bins = [(entry["confidence"], entry["accuracy"], entry["count"]) for entry in details.get("bins", []) if entry["count"]]
        if not bins or number(details.get("error")) is None:
            continue
        apart = details["confidence"] - details["accuracy"]
        notes = [f"calibration error {number_format.value(details['error'])} points"]
        if abs(apart) >= 0.05:
            notes.append(f"{number_format.value(abs(apart))} points {'too sure' if apart > 0 else 'not sure enough'} on average")
        notes += [f"scale {scale}"] if (scale := number_format.parameter(details.get("scale"))) else []
        about = f"Accuracy against confidence of {model.name} on {dataset}: expected {notes[0]}"
        figures.append(figure(_reliability(model, bins, about), html.named(model), "; ".join(notes)))
    about_all = html.soft(
        "Accuracy against confidence in bins; the larger a dot, the more images. On the diagonal the two are equal; below it the "
        "model is overconfident. Confidence depends on the scale that cosines are multiplied with; accuracy does not."
    )
    shown = html.join(html.tag("h4", "Calibration"), about_all, html.div("charts small", *figures))
    return shown if figures else Markup("")


def _reliability(model: html.Model, bins: Sequence[tuple[float, float, int]], about: str) -> Chart:
    """Accuracy against confidence: (mean confidence, accuracy, images) of each bin; the larger, the more images."""
    plot = Plot(_SQUARE, _SQUARE, Scale(0, 100, 30, _SQUARE - 10), Scale(0, 100, _SQUARE - 34, 8))
    plot.frame("confidence, %")
    plot.line([(0, 0), (100, 100)], "diagonal")
    plot.line([(sure, right) for sure, right, _ in bins], f"line {model.mark}", model.name)
    table, most = [], max(count for *_, count in bins)
    for sure, right, count in bins:
        table.append((number_format.value(sure), number_format.value(right), f"{count:,}"))
        title = f"{number_format.count(count, 'image')}: confidence {table[-1][0]}, right {table[-1][1]}"
        plot.dot(sure, right, model.mark, title, round(1.8 + 4.2 * math.sqrt(count / most), 1))
    return Chart(plot.svg(about), ("confidence, %", "right, %", "images"), table)
