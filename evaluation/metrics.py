"""The one registry of scores: for each its path, its titles, its unit, which way is better, and what guessing scores.

A path is TASK/DATASET/SCORE, such as `retrieval/openmoji/image_to_text_recall@1` or `zero_shot/openmoji_group/top1`, whoever
computes it: training between epochs, `python -m evaluation`, or a trial of a sweep. A name without slashes is a figure of
training itself, such as `loss`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Better = Literal["max", "min"]
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True)
class Measure:
    """A kind of score, by how its name begins: all of it, or up to and with the @ that a number follows."""

    name: str
    title: str  # {} is the number after the @
    about: str = ""  # what it is the percentage of
    unit: str = "%"
    better: Better = "max"
    clip_benchmark: str = ""  # CLIP_benchmark's name, where it has one; {} as in the title


@dataclass(frozen=True)
class TaskInfo:
    """A kind of task."""

    name: str  # what results and their folders call it: CLIP_benchmark's name where it has one
    path: str  # what configs call it, and paths of its scores begin with
    title: str
    measures: tuple[Measure, ...]  # those with titles of their own
    unit: str = "%"  # of its main score

    def measure(self, score: str) -> Measure:
        """Of a score by its name in results; one without a title of its own is called as it is named."""
        found = next((measure for measure in self.measures if measure.name == score), None)
        if found is not None:
            return found
        name, at, k = score.partition("@")
        for measure in self.measures:
            if at and measure.name == name + at:
                return replace(
                    measure, name=score, title=measure.title.format(k), clip_benchmark=measure.clip_benchmark.format(k)
                )
        plain = next((measure for measure in self.measures if measure.name == name), Measure(name, name.replace("_", " ")))
        return replace(plain, name=score, title=f"{plain.title} at {k}", clip_benchmark="") if at else plain


@dataclass(frozen=True)
class Metric:
    """One score of one dataset, by its path."""

    path: str
    dataset: str  # "" where the path does not tell
    title: str  # among others of its task and dataset: top-1
    heading: str  # on its own: zero-shot group top-1
    about: str
    unit: str
    better: Better

    @property
    def percent(self) -> bool:
        return self.unit == "%"


def _accuracies(clip_benchmark: str | None = None) -> tuple[Measure, ...]:
    """`clip_benchmark`: what its names begin with; None: it has none."""
    names = [""] * 3 if clip_benchmark is None else [f"{clip_benchmark}{n}" for n in ("acc1", "acc5", "mean_per_class_recall")]
    return (
        Measure("top1", "top-1", "the best guess is right", clip_benchmark=names[0]),
        Measure("top5", "top-5", "the right class is among the five best guesses", clip_benchmark=names[1]),
        Measure("mean_per_class", "mean per class", "top-1, with every class counting the same", clip_benchmark=names[2]),
    )


_RECALLS = (
    Measure("image_to_text_recall@", "image to text R@{}", clip_benchmark="text_retrieval_recall@{}"),
    Measure("text_to_image_recall@", "text to image R@{}", clip_benchmark="image_retrieval_recall@{}"),
    Measure("mean_recall@", "mean R@{}", "the mean of both directions"),
    Measure("mean_recall", "mean of all recalls", "the mean of both directions at every k"),
)
_SUGARCREPE = (Measure("macro", "macro mean"), Measure("micro", "micro", clip_benchmark="acc"))
_POINTS = "percentage points"

TASKS = {
    info.name: info
    for info in (
        TaskInfo("zeroshot_classification", "zero_shot", "Zero-shot classification", _accuracies("")),
        TaskInfo("linear_probe", "linear_probe", "Linear probe", _accuracies("lp_")),
        TaskInfo("few_shot", "few_shot", "Few-shot probe", _accuracies()),
        TaskInfo("zeroshot_retrieval", "retrieval", "Retrieval", _RECALLS),
        TaskInfo("image_caption_selection", "sugarcrepe", "SugarCrepe", _SUGARCREPE),
        TaskInfo(
            "effective_robustness",
            "robustness",
            "Effective robustness",
            (Measure("effective", "effective robustness", unit=_POINTS),),
            _POINTS,
        ),
        TaskInfo("corruption", "corruption", "Corruptions", (Measure("mean", "mean of all"),)),
    )
}
_BY_PATH = {info.path: info for info in TASKS.values()}


def path_of(task: str, dataset: str, score: str) -> str:
    """Of a result's score."""
    return f"{TASKS[task].path if task in TASKS else task}/{dataset}/{score}"


def task_title(task: str) -> str:
    """Of a result's task; one that is not known has its name."""
    return TASKS[task].title if task in TASKS else task


def score_title(task: str, score: str) -> str:
    """top1 -> top-1, top1@4 -> top-1 at 4, mean_recall@1 -> mean R@1, replace_obj -> replace obj."""
    return (TASKS.get(task) or TaskInfo(task, task, task, ())).measure(score).title


def metric(path: str, datasets: Sequence[str] = ()) -> Metric:
    """What is known of a score. `datasets`: names that its path may hold, to tell those from the labels behind them."""
    task, slash, rest = path.partition("/")
    if not slash:
        return Metric(path, "", path, path, "", "", "min")
    info, (middle, _, score) = _BY_PATH.get(task), rest.rpartition("/")
    if info is None or not middle:
        return Metric(path, "", path, path, "", "%", "max")
    measure = info.measure(score)
    # The longest name first: "openmoji_black" is no label "black" of "openmoji" where both are datasets.
    dataset = next((d for d in sorted(datasets, key=len, reverse=True) if middle == d or middle.startswith(f"{d}_")), "")
    if task == "retrieval":
        dataset, heading = middle, measure.title
    else:
        label = middle[len(dataset) + 1 :] if dataset else middle
        heading = " ".join(filter(None, (info.path.replace("zero_shot", "zero-shot").replace("_", " "), label, measure.title)))
    return Metric(path, dataset, measure.title, heading, measure.about, measure.unit, measure.better)


def headings(paths: Sequence[str], datasets: Sequence[str]) -> dict[str, str]:
    """Path -> what heads its column; the dataset is named only where the paths are of several."""
    found = {path: metric(path, datasets) for path in paths}
    several = len({one.dataset for one in found.values() if one.dataset}) > 1
    return {p: f"{one.heading}, {one.dataset}" if several and one.dataset else one.heading for p, one in found.items()}


def mean_recalls(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Mean of both directions for each dataset and k, such as `retrieval/openmoji/mean_recall@1`.

    And of all k, `retrieval/openmoji/mean_recall`: with R@1, 5 and 10 the mean of six recalls that fine-tuning is selected by.
    """
    result: dict[str, list[float]] = {}
    for path, value in metrics.items():
        for direction in (f"{way}_recall" for way in DIRECTIONS):
            if direction in path:
                result.setdefault(path.replace(direction, "mean_recall"), []).append(value)
                result.setdefault(path.partition("/" + direction)[0] + "/mean_recall", []).append(value)
    return {path: math.fsum(values) / len(values) for path, values in result.items()}


def chances(baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What guessing scores, by path, of all scores whose `baselines` tell; that of a mean is the mean of its parts'.

    It depends on the data (classes, candidates), so each task tells it beside its scores.
    """
    known = {path: base["chance"] for path, base in baselines.items() if "chance" in base}
    return mean_recalls(known) | known
