"""Few-shot probes: linear probes on a few training images a class, drawn anew for each seed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from markupsafe import Markup
from pydantic import AfterValidator, Field

from evaluation import linear_probe, zero_shot
from evaluation.data.base import Classification, Content
from evaluation.embeddings import Rows
from evaluation.reporting import html, number_format
from evaluation.reporting.chart import Chart, Series, figure, lines
from evaluation.reporting.comparison import Comparison, first, number
from evaluation.results import Result
from evaluation.task_info import TaskInfo
from evaluation.tasks.base import Positions, Scored, Task, accuracies, classified, different
from evaluation.tasks.probe import Probe, has_training
from pipelines.program.settings_base import Settings


class FewShotSettings(Settings):
    """Probes on a few images a class."""

    shots: Positions = Field((1, 2, 4, 8, 16), min_length=1, description="training images a class")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(different)] = Field(
        (0, 1, 2), min_length=1, description="each draws other images"
    )


class FewShot(Probe):
    """On k training images a class."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "few_shot", "few_shot", "Few-shot probe", accuracies(), needs="labels of training and test images"
    )
    settings: ClassVar[type[Settings] | None] = FewShotSettings

    def __init__(self, dataset: str, content: Classification, place: str, shots: Sequence[int], seeds: Sequence[int]):
        super().__init__(dataset, content, place)
        self._shots, self._seeds = tuple(shots), tuple(seeds)
        self.identity += [self._shots, self._seeds]

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        for dataset, one, place in classified(contents):
            if has_training(one.train):
                yield cls(dataset, one, place, settings.few_shot.shots, settings.few_shot.seeds)

    def score(self, rows: Rows) -> Scored:
        train, test, validation = self.data(rows)
        metric = self.content.metric
        probes = linear_probe.few_shot(train, test, metric, validation, self._shots, self._seeds)
        chance = zero_shot.baselines(len(self.content.classes), test.labels)[metric]
        names = [f"{metric}@{few.shots}" for few in probes]
        shown = [
            {
                "shots": few.shots,
                "scores": few.scores,
                "mean": few.mean,
                "sd": few.sd,
                "converged": few.converged,
                "short": [self.content.classes[label][0] for label in few.short],
            }
            for few in probes
        ]
        return Scored(
            main=names[int(np.argmax(self._shots))],
            scores={name: few.mean for name, few in zip(names, probes, strict=True)},
            baselines=dict.fromkeys(names, chance),
            sample_sizes=dict.fromkeys(names, len(test.labels)),
            details={"shots": shown, "seeds": list(self._seeds), "metric": metric} | self.about(rows),
        )

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "The same probe on few images a class, drawn anew for each seed: mean over seeds, whiskers of one standard "
            "deviation. They show how far the draw alone moves a score. At 0: zero-shot, of models that have it. Dashed: chance."
        )
        return comparison.section(cls.info, about, _of_set)


def _of_set(comparison: Comparison, dataset: str) -> Markup:
    """Score against images a class, with zero-shot of the same metric at 0 where a model has it."""
    task = FewShot.info.name
    results, zero = comparison.of(task, dataset), comparison.of("zeroshot_classification", dataset)
    by_model = {model: shots for model, result in results.items() if (shots := _shots(result))}
    if not by_model:
        return Markup("")
    metric = next(iter(results.values())).main.partition("@")[0]
    for model, shots in by_model.items():
        if model in zero and (value := number(zero[model].scores.get(metric))) is not None:
            shots[0] = (value, None)
    places = sorted({k for shots in by_model.values() for k in shots})  # at even distances
    series = []
    for model, shots in by_model.items():
        points = {float(places.index(k)): mean for k, (mean, _) in shots.items()}
        spread = {float(places.index(k)): (mean - sd, mean + sd) for k, (mean, sd) in shots.items() if sd is not None}
        series.append(Series(model.name, points, model.mark, spread=spread))
    seeds = max(len(result.details.get("seeds", [])) for result in results.values())
    counted, title = number_format.count(seeds, "seed"), comparison.score_title(task, metric)
    chance = first(r.baselines.get(f"{metric}@{places[-1]}", {}).get("chance") for r in results.values())
    levels, names = ({} if chance is None else {"chance": chance}), {float(i): str(k) for i, k in enumerate(places)}
    about = f"{title} on {dataset} against images a class, mean of {counted}"
    chart = lines(series, about, "images a class", names=names, levels=levels)
    rows = [[str(k) if k else "0, zero-shot", *(_cell(*s.get(k, (None, None))) for s in by_model.values())] for k in places]
    scores = html.table(f"Few-shot scores on {dataset}", ["images a class", *map(html.named, by_model)], rows, style="scores")
    flags = [html.paragraph("{}", flag, style="flag") for flag in _flags(results)]
    drawn = figure(Chart(chart.svg), "", f"{title}, %" + (f"; {counted}" if seeds else ""))
    return html.join(html.tag("h3", dataset), *flags, html.div("pair", drawn, scores))


def _cell(value: float | None, sd: float | None) -> Markup:
    spread = html.small("" if sd is None else f"sd {number_format.value(sd)}")
    return html.fill("{}{}", number_format.value(value) or html.NDASH, spread)


def _shots(result: Result) -> dict[int, tuple[float, float | None]]:
    """Number of shots -> mean, and sd over seeds where there are several."""
    spread = {int(entry["shots"]): number(entry.get("sd")) for entry in result.details.get("shots", [])}
    prefix = f"{result.main.partition('@')[0]}@"
    known = {score.removeprefix(prefix): number(value) for score, value in result.scores.items() if score.startswith(prefix)}
    return {int(k): (mean, spread.get(int(k))) for k, mean in known.items() if mean is not None}


def _flags(results: Mapping[html.Model, Result]) -> list[str]:
    """What a reader should know; once where it is true of all models, as where the data lacks images."""
    who: dict[str, list[str]] = {}
    for model, result in results.items():
        for entry in result.details.get("shots", []):
            missed, short = list(entry.get("converged", [])).count(False), len(entry.get("short", []))
            if missed:
                flag = f"{number_format.count(missed, 'fit')} with {entry['shots']} a class did not converge"
                who.setdefault(flag, []).append(model.name)
            if short:
                noun = "1 class has" if short == 1 else f"{short:,} classes have"
                who.setdefault(f"{noun} fewer than {entry['shots']} images: all of them are used", []).append(model.name)
    return [flag if len(names) == len(results) else f"{', '.join(names)}: {flag}" for flag, names in who.items()]
