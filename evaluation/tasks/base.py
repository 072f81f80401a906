"""What a task is: it says which rows it needs, and turns them into a result.

A new task is one file here (its `TaskInfo`, its settings, which data it can be set on, the rows that it reads, what it makes of
them), and its class in `evaluation.tasks.TASKS`. Config, plan and the registry of scores take the rest from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, Field

from evaluation.classification import SetResult
from evaluation.data.base import Classification, Content
from evaluation.embeddings import Inputs, Rows
from pipelines.program.settings_base import Settings

Better = Literal["max", "min"]


def different(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of a config that has nothing twice. Raises `ValueError`."""
    for item in value:
        if value.count(item) > 1:
            raise ValueError(f"{item!r} stands there twice")
    return value


Positions = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(different)]
"""Ranks from 1, such as 1, 5 and 10."""


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
    """What is said of a kind of task."""

    name: str  # what results and their folders call it: CLIP_benchmark's name where it has one
    path: str  # what configs call it, and paths of its scores begin with
    title: str
    measures: tuple[Measure, ...]  # those with titles of their own
    unit: str = "%"  # of its main score
    needs: str = ""  # of the data, to be asked for by name in `tasks`; "": its own key of the config asks for it
    by_default: bool = False

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
class Scored:
    """What came of a task; fields as in `evaluation.results.Result`."""

    main: str
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    sample_sizes: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One task on one set, ready to be asked of any model."""

    info: ClassVar[TaskInfo]
    settings: ClassVar[type[Settings] | None]  # of its key in the config, `info.path`
    dataset: str  # what results call the set
    place: str  # the entry of `data` that it comes from

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator["Task"]:
        """One for each set that it can be set on. `settings`: of the whole evaluation. Raises `UserError`."""

    @property
    def identity(self) -> Any:
        """JSON values: with the rows' fingerprints, all that decides the scores."""

    def inputs(self) -> Sequence[Inputs]:
        """The rows that `score` reads."""

    def score(self, rows: Rows) -> Scored:
        """Raises `UserError` for rows that cannot be judged."""


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
