"""What a task is: it says which rows it needs, and turns them into a result. A new task is one file and a line in `plan.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from evaluation.classification import SetResult
from evaluation.embeddings import Rows, Wanted


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

    name: str  # of `evaluation.results.TASKS`
    dataset: str  # what results call the set
    place: str  # the entry of `data` that it comes from
    identity: Any  # JSON values: with the rows' fingerprints, all that decides the scores

    def wanted(self) -> Sequence[Wanted]:
        """The rows that `score` reads."""

    def score(self, rows: Rows) -> Scored:
        """Raises `UserError` for rows that cannot be judged."""


class MeasuredTask(Task, Protocol):
    """A task whose scores alone are quick: training asks for them between epochs."""

    names: Sequence[str]  # of the scores that `measure` gives

    def measure(self, rows: Rows) -> Scored:
        """What `score` gives, without intervals and details, and without means of scores (`evaluation.metrics`)."""


def of_classes(result: SetResult) -> dict[str, Any]:
    """Details that every classification shows."""
    worst = [{"name": w.name, "images": w.images, "recall": w.recall, "taken_for": w.taken_for} for w in result.worst]
    return {"num_classes": result.num_classes, "without_images": result.without_images, "worst": worst}
