"""What a task is: it says which rows it needs, turns them into a result, and shows its results on the page.

A new task is one file here, its class in `evaluation.tasks.TASKS`, and a test. The file holds its `TaskInfo`, its settings, which
data it can be run on, the rows that it reads, its scores, and its block of the page, made of parts of `evaluation.reporting`.
Config, plan, registry of scores and page take the rest from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import AfterValidator, Field

from evaluation.classification import SetResult
from evaluation.data.base import Classification, Content
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import html
from evaluation.reporting.comparison import Comparison
from evaluation.task_info import Measure as Measure
from evaluation.task_info import TaskInfo as TaskInfo
from pipelines.program.settings_base import Settings


def different(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of a config without duplicates. Raises `ValueError`."""
    for item in value:
        if value.count(item) > 1:
            raise ValueError(f"{item!r} is given twice")
    return value


Positions = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(different)]
"""Ranks from 1, such as 1, 5 and 10."""


@dataclass(frozen=True)
class Scored:
    """Scores of a task; fields as in `evaluation.results.Result`."""

    main: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    sample_sizes: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One task on one set, ready to be run on any model."""

    info: ClassVar[TaskInfo]
    settings: ClassVar[type[Settings] | None]  # of its key in the config, `info.path`
    dataset: str  # what results call the set
    place: str  # the entry of `data` that it comes from

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator["Task"]:
        """One for each set that it can be run on. `settings`: of the whole evaluation. Raises `UserError`."""

    @property
    def identity(self) -> Any:
        """JSON values: with the rows' fingerprints, all that decides the scores."""

    def inputs(self) -> Sequence[Inputs]:
        """The rows that `score` reads."""

    def score(self, rows: Rows) -> Scored:
        """Raises `UserError` for rows that cannot be scored."""

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        """Its block of the page, of results of any number of models on any number of sets, as they are on disk.

        A task of one's own may lack it: then the page has a table of all its scores.
        """


class MeasuredTask(Task, Protocol):
    """A task whose scores alone are quick: training asks for them between epochs."""

    @property
    def names(self) -> Sequence[str]:
        """Of the scores that `measure` gives."""

    def measure(self, rows: Rows) -> Scored:
        """What `score` gives, without intervals and details, and without means of scores (`evaluation.metrics`)."""


def accuracies(clip_benchmark: str | None = None) -> tuple[Measure, ...]:
    """Of a classification. `clip_benchmark`: what its names begin with; None: it has none."""
    names = [""] * 3 if clip_benchmark is None else [f"{clip_benchmark}{n}" for n in ("acc1", "acc5", "mean_per_class_recall")]
    return (
        Measure("top1", "top-1", "the best guess is right", clip_benchmark=names[0]),
        Measure("top5", "top-5", "the right class is among the five best guesses", clip_benchmark=names[1]),
        Measure("mean_per_class", "mean per class", "top-1, with every class counting the same", clip_benchmark=names[2]),
    )


def classified(contents: Mapping[str, Content]) -> Iterator[tuple[str, Classification, str]]:
    """Every classification among the data: what results call it, itself, and the entry that it comes from."""
    for place, content in contents.items():
        for label, one in content.classifications.items():
            yield f"{place}_{label}" if label else place, one, place


def of_classes(result: SetResult) -> dict[str, Any]:
    """Details that every classification shows."""
    worst = [{"name": w.name, "images": w.images, "recall": w.recall, "taken_for": w.taken_for} for w in result.worst]
    return {"num_classes": result.num_classes, "without_images": result.without_images, "worst": worst}
