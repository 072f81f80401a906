"""The registry of scores: path, titles, unit, direction and chance of each.

A path is TASK/DATASET/SCORE, such as `retrieval/openmoji/image_to_text_recall@1` or `zero_shot/openmoji_group/top1`: the same in
training's validation, in `python -m evaluation` and in a sweep. A name without slashes, such as `loss`, is a figure of training.
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
    dataset: str  # "" where the path names none
    title: str  # beside scores of the same task and dataset: top-1
    heading: str  # beside any others: zero-shot group top-1
    about: str
    unit: str
    better: Better

    @property
    def percent(self) -> bool:
        return self.unit == "%"


TASKS = {task.info.name: task.info for task in tasks.TASKS}
_BY_PATH = {info.path: info for info in TASKS.values()}


def path_of(task: str, dataset: str, score: str) -> str:
    """The path of a result's score."""
    return f"{TASKS[task].path if task in TASKS else task}/{dataset}/{score}"


def metric(path: str, datasets: Sequence[str] = ()) -> Metric:
    """The metric at a path. `datasets`: the possible datasets, to separate a dataset from the label that follows its name."""
    task, slash, rest = path.partition("/")
    if not slash:
        return Metric(path, "", path, path, "", "", "min")
    info, (middle, _, score) = _BY_PATH.get(task), rest.rpartition("/")
    if info is None or not middle:
        return Metric(path, "", path, path, "", "%", "max")
    measure = info.measure(score)
    # The longest name first: where both are datasets, "openmoji_black" is not label "black" of "openmoji".
    dataset = next((d for d in sorted(datasets, key=len, reverse=True) if middle == d or middle.startswith(f"{d}_")), "")
    if task == "retrieval":
        dataset, heading = middle, measure.title
    else:
        label = middle[len(dataset) + 1 :] if dataset else middle
        heading = " ".join(filter(None, (info.path.replace("zero_shot", "zero-shot").replace("_", " "), label, measure.title)))
    return Metric(path, dataset, measure.title, heading, measure.about, measure.unit, measure.better)


def headings(paths: Sequence[str], datasets: Sequence[str]) -> dict[str, str]:
    """Path -> heading of its column; it names the dataset only where the paths have several."""
    metrics = {path: metric(path, datasets) for path in paths}
    several = len({m.dataset for m in metrics.values() if m.dataset}) > 1
    return {path: f"{m.heading}, {m.dataset}" if several and m.dataset else m.heading for path, m in metrics.items()}


def chances(baselines: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores of a random guess by path, where `baselines` has them; that of a mean of recalls is the mean of theirs.

    They depend on the data (classes, candidates), so that each task returns them with its scores.
    """
    by_path = {path: base["chance"] for path, base in baselines.items() if "chance" in base}
    return mean_recalls(by_path) | by_path
