"""The one registry of scores: for each its path, its titles, its unit, which way is better, and what guessing scores.

A path is TASK/DATASET/SCORE, such as `retrieval/openmoji/image_to_text_recall@1` or `zero_shot/openmoji_group/top1`, whoever
computes it: training between epochs, `python -m evaluation`, or a trial of a sweep. A name without slashes is a figure of
training itself, such as `loss`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation import tasks
from evaluation.retrieval import DIRECTIONS as DIRECTIONS
from evaluation.retrieval import mean_recalls as mean_recalls
from evaluation.task_info import Better


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


TASKS = {task.info.name: task.info for task in tasks.TASKS}
_BY_PATH = {info.path: info for info in TASKS.values()}


def path_of(task: str, dataset: str, score: str) -> str:
    """Of a result's score."""
    return f"{TASKS[task].path if task in TASKS else task}/{dataset}/{score}"


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


def chances(baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What guessing scores, by path, of all scores whose `baselines` tell; that of a mean is the mean of its parts'.

    It depends on the data (classes, candidates), so each task tells it beside its scores.
    """
    known = {path: base["chance"] for path, base in baselines.items() if "chance" in base}
    return mean_recalls(known) | known
