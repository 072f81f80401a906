"""A linear probe: logistic regression on features of all training images."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from markupsafe import Markup
from pydantic import Field

from evaluation import classification, linear_probe, zero_shot
from evaluation.data.base import Classification, Content
from evaluation.embeddings import Rows
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import Series, figure, lines
from evaluation.reporting.classification import class_sets
from evaluation.reporting.comparison import Comparison, number
from evaluation.results import Result
from evaluation.task_info import TaskInfo
from evaluation.tasks.base import Scored, Task, accuracies, classified, of_classes
from evaluation.tasks.probe import Probe, has_training
from pipelines.program.settings_base import Settings


class LinearProbeSettings(Settings):
    """A classifier on features of all training images."""

    views: int = Field(
        0, ge=0, description="random crops, half of them mirrored, of each training image that are fitted beside it"
    )
    seed: int = Field(0, ge=0, description="of the crops")


class LinearProbe(Probe):
    """On all training images."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "linear_probe", "linear_probe", "Linear probe", accuracies("lp_"), needs="labels of training and test images"
    )
    settings: ClassVar[type[Settings] | None] = LinearProbeSettings

    def __init__(self, dataset: str, content: Classification, place: str, views: int = 0, seed: int = 0):
        super().__init__(dataset, content, place, views, seed)
        self.identity += [views, seed] if views else []

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        for dataset, one, place in classified(contents):
            if has_training(one.train):
                yield cls(dataset, one, place, settings.linear_probe.views, settings.linear_probe.seed)

    def score(self, rows: Rows) -> Scored:
        train, test, validation = self.data(rows)
        metric = self.content.metric
        fit = linear_probe.linear_probe(train, test, metric, validation)
        names = [self.content.classes[label][0] for label in fit.classes]
        result = classification.result(fit.outcome, names, metric)
        search = {
            "l2": fit.l2,
            "c": 1 / fit.l2,
            "tried": {str(l2): value for l2, value in fit.tried.items()},
            "converged": fit.converged,
            "not_converged": fit.not_converged,
        }
        return Scored(
            main=metric,
            scores=result.scores,
            intervals=result.intervals,
            baselines=zero_shot.baselines(len(self.content.classes), test.labels),
            sample_sizes=dict.fromkeys(result.scores, len(test.labels)),
            details=of_classes(result) | search | self.about(rows),
        )

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "Logistic regression on frozen features. The strength of its regularisation, lambda, is searched on validation data; "
            "ring: the chosen value. If that lies at an end of the search, a better one may lie beyond."
        )

        def of_set(dataset: str, results: Mapping[html.Model, Result], scores: Markup) -> list[str]:
            series, rows, search = [], [], Markup("")
            for model, result in results.items():
                details = result.details
                tried = {float(key): float(value) for key, value in details.get("tried", {}).items() if number(value) is not None}
                l2 = number(details.get("l2"))
                if tried:
                    chosen = min(tried, key=lambda key: abs(key - l2)) if l2 else None
                    series.append(Series(model.name, tried, model.mark, chosen=chosen))
                flags = html.join(*(html.small(flag, "flag") for flag in _flags(details, tried, l2)))
                counts = [
                    f"{size:,.0f}" if (size := number(details.get(key))) else "" for key in ("width", "train", "validation")
                ]
                rows.append([html.fill("{}{}", html.named(model), flags), number_format.parameter(l2), *counts])
            if series:
                metric = comparison.score_title(cls.info.name, next(iter(results.values())).main)
                chart = lines(series, f"Validation score on {dataset} against the strength of regularisation", "lambda", log=True)
                search = figure(chart, "Search of the regularisation", f"{metric} on validation data, %")
            titles = ("model", "lambda", "features", "training images", "validation images")
            return [html.div("pair", search, html.div("", scores)), html.table("Probes", titles, rows, style="narrow")]

        return class_sets(comparison, cls.info, about, of_set)


def _flags(details: Mapping[str, Any], tried: Mapping[float, float], l2: float | None) -> list[str]:
    """What a reader should know before believing the score."""
    flags = []
    if details.get("of") == "embeddings":
        flags.append("on embeddings: the model offers no features before the joint space")
    if details.get("converged") is False:
        flags.append("the last fit did not converge")
    if l2 is not None and len(tried) > 1:
        for end, side in ((min(tried), "low"), (max(tried), "high")):
            if abs(l2 - end) <= 1e-9 * end:
                flags.append(f"best at the {side} end of the search")
    if missed := details.get("not_converged"):
        flags.append(f"{number_format.count(len(missed), 'fit')} of the search did not converge")
    return flags
