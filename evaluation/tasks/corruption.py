"""Zero-shot classification of the same test images, corrupted in several ways and to several degrees."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup
from pydantic import Field, field_validator

from evaluation import zero_shot
from evaluation.bootstrap import interval
from evaluation.classification import measures
from evaluation.corruptions import PARAMETERS, SEVERITIES
from evaluation.data.base import Content
from evaluation.data.subsets import Corrupted, Subset
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import TINY, Series, figure, lines, score_range
from evaluation.reporting.comparison import Comparison, number
from evaluation.task_info import Measure, TaskInfo
from evaluation.tasks.base import Scored, Task, classified
from evaluation.tasks.zero_shot import ZeroShot
from pipelines.program.settings_base import Settings


class CorruptionSettings(Settings):
    """Zero-shot classification of corrupted images."""

    renamed: ClassVar[dict[str, str]] = {"pictures": "images"}
    names: tuple[str, ...] = Field(tuple(PARAMETERS), min_length=1, description="which corruptions")
    severities: tuple[int, ...] = Field(SEVERITIES, min_length=1, description="1 (mild) to 5")
    images: int = Field(1000, ge=1, description="of each set at most so many, drawn by seed")
    size: int = Field(224, ge=8, description="pixels of the shorter side to which images are shrunk before")
    seed: int = Field(0, ge=0, description="of the draw, and of noise")

    @field_validator("names")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in PARAMETERS:
                raise ValueError(f"'{name}' is unknown; choose of: {', '.join(PARAMETERS)}")
        return value

    @field_validator("severities")
    @classmethod
    def _degrees(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for severity in value:
            if severity not in SEVERITIES:
                raise ValueError(f"{severity} is none; choose of 1, 2, 3, 4 and 5")
        return value


class Corruption:
    """Each name and severity is a score."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "corruption", "corruption", "Corruptions", (Measure("mean", "mean of all"),), needs="labels of test images"
    )
    settings: ClassVar[type[Settings] | None] = CorruptionSettings

    def __init__(
        self,
        plain: ZeroShot,
        names: Sequence[str],
        severities: Sequence[int],
        images: int,
        seed: int,
        size: int,
    ):
        self.dataset, self.place, self._plain = plain.dataset, plain.place, plain
        self._names, self._severities = names, severities
        count = len(plain.test.labels)
        # Spread over the set, which may be sorted by class; the same ones for every model and corruption.
        self._kept = np.sort(np.random.default_rng(seed).permutation(count)[:images])
        self._images = {
            f"{name}@{severity}": Inputs(
                "images",
                Subset(Corrupted(plain.test.images, name, severity, seed, size), self._kept),
                f"{plain.place}/test-{name}-{severity}",
            )
            for name in names
            for severity in severities
        }
        self.identity = [plain.identity, self._kept.tolist(), list(self._images)]

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        options = settings.corruption
        for dataset, one, place in classified(contents):
            yield cls(
                ZeroShot(dataset, one, place), options.names, options.severities, options.images, options.seed, options.size
            )

    def inputs(self) -> Sequence[Inputs]:
        return [self._plain.images, self._plain.texts, *self._images.values()]

    def score(self, rows: Rows) -> Scored:
        metric = self._plain.content.metric
        labels = self._plain.test.labels[self._kept]
        classes = zero_shot.ensemble(self._plain.prompts, rows[self._plain.texts])
        chance = zero_shot.baselines(len(classes), labels)[metric]
        clean = measures(zero_shot.outcome(rows[self._plain.images][self._kept], classes, labels))[metric]
        scored = Scored("mean", {}, details={"clean": clean, "metric": metric, "names": list(self._names)})
        hits = []
        for name, wanted in self._images.items():
            outcome = zero_shot.outcome(rows[wanted], classes, labels)
            hit = 100.0 * (outcome.ranks < 1)
            hits.append(hit)
            scored.scores[name] = measures(outcome)[metric]
            scored.intervals[name] = interval(hit, labels if metric == "mean_per_class" else None)
        scored.scores["mean"] = float(np.mean(list(scored.scores.values())))
        # An image is one item, however often it was corrupted.
        scored.intervals["mean"] = interval(np.mean(hits, axis=0), labels if metric == "mean_per_class" else None)
        scored.details["severities"] = list(self._severities)
        scored.baselines.update(dict.fromkeys(scored.scores, chance))
        scored.sample_sizes.update(dict.fromkeys(scored.scores, len(labels)))
        return scored

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "The zero-shot score on corrupted images, from severity 0, the image as it is, to 5. Kept: the mean over all "
            "corruptions and severities as a share of the score on clean images; it does not show how high that is."
        )
        return comparison.section(cls.info, about, _of_set)


def _of_set(comparison: Comparison, dataset: str) -> Markup:
    """A chart a corruption of score against severity, all on one axis."""
    results = comparison.of(Corruption.info.name, dataset)
    curves: dict[str, list[Series]] = {}
    for model, result in results.items():
        clean = number(result.details.get("clean"))
        points: dict[str, dict[float, float]] = {}
        for score, value in result.scores.items():
            name, _, severity = score.partition("@")
            if severity.isdigit() and number(value) is not None:
                points.setdefault(name, {} if clean is None else {0.0: clean})[float(severity)] = value
        for name, values in points.items():
            curves.setdefault(name, []).append(Series(model.name, values, model.mark))
    shown = [point for drawn in curves.values() for s in drawn for point in s.points.items()]
    limits = score_range((score for _, score in shown), from_zero=True)
    severities, figures = {severity: f"{severity:g}" for severity, _ in shown}, []
    for name, drawn in curves.items():
        about = f"Score on {dataset} against severity of {name}"
        figures.append(figure(lines(drawn, about, "severity", names=severities, limits=limits, size=TINY), name))
    rows = []
    for model, result in results.items():
        clean, mean = number(result.details.get("clean")), number(result.scores.get("mean"))
        kept = f"{number_format.value(100 * mean / clean)}\u00a0%" if clean and mean is not None else html.NDASH
        rows.append([html.named(model), *(number_format.value(score) or html.NDASH for score in (clean, mean)), kept])
    scores = html.table(f"Corruptions of {dataset}", ("model", "clean", "mean", "kept"), rows, style="narrow")
    return html.join(html.tag("h3", dataset), scores, html.div("charts small", *figures))
