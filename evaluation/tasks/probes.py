"""Linear probes on features of images, on all training images or on a few a class."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import AfterValidator, Field

from evaluation import classification, linear_probe, zero_shot
from evaluation.data.base import Classification, Content, LabelledImages
from evaluation.data.subsets import Cropped, with_labels
from evaluation.embeddings import Inputs, Rows
from evaluation.linear_probe import Labelled
from evaluation.tasks.base import Positions, Scored, Task, TaskInfo, accuracies, classified, different, of_classes
from pipelines.program.settings_base import Settings


class LinearProbeSettings(Settings):
    """A classifier on features of all training images."""

    views: int = Field(
        0, ge=0, description="random crops, half of them mirrored, of each training image that are fitted beside it"
    )
    seed: int = Field(0, ge=0, description="of the crops")


class FewShotSettings(Settings):
    """Probes on a few images a class."""

    shots: Positions = Field((1, 2, 4, 8, 16), min_length=1, description="training images a class")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(different)] = Field(
        (0, 1, 2), min_length=1, description="each draws other images"
    )


class _Probe:
    """What both probes read."""

    def __init__(self, dataset: str, content: Classification, place: str, views: int = 0, seed: int = 0):
        """`views`: random crops of each training and validation image that are fitted beside it, drawn by `seed`."""
        assert content.train is not None
        self.dataset, self.place, self.content = dataset, place, content
        parts = {"train": content.train, "validation": content.validation, "test": content.test}
        learnt = np.unique(content.train.labels)
        self._parts = {part: _of_classes(given, learnt) for part, given in parts.items() if given is not None}
        # A class without a training image cannot be learnt: its test images are left out, and the class is named.
        lost = np.setdiff1d(content.test.labels, [*learnt, -1])
        self._lost = [content.classes[label][0] for label in lost]
        self._inputs = {part: Inputs("features", given.images, f"{place}/{part}") for part, given in self._parts.items()}
        self._views = {
            part: [
                Inputs("features", Cropped(given.images, number, seed), f"{place}/{part}-crop-{number}")
                for number in range(views)
            ]
            for part, given in self._parts.items()
            if part != "test" and views
        }
        self.identity: list[Any] = [{p: g.labels.tolist() for p, g in self._parts.items()}, content.metric]

    def inputs(self) -> Sequence[Inputs]:
        return [*self._inputs.values(), *(view for part in self._views.values() for view in part)]

    def data(self, rows: Rows) -> tuple[Labelled, Labelled, Labelled | None]:
        """Training, test and validation data; the last may be missing."""
        views = {part: np.stack([rows[view] for view in wanted], axis=1) for part, wanted in self._views.items()}
        found = {part: Labelled(rows[self._inputs[part]], given.labels, views.get(part)) for part, given in self._parts.items()}
        return found["train"], found["test"], found.get("validation")

    def about(self, rows: Rows) -> dict[str, Any]:
        train = rows[self._inputs["train"]]
        sizes = {part: len(given.labels) for part, given in self._parts.items()}
        kind = "features before the joint space" if rows.has_features(self._inputs["train"]) else "embeddings"
        views = len(self._views.get("train", []))
        return {"width": train.shape[1], "of": kind, "without_training": self._lost, "views": views} | sizes


class LinearProbe(_Probe):
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
        found = linear_probe.linear_probe(train, test, metric, validation)
        names = [self.content.classes[label][0] for label in found.classes]
        result = classification.result(found.outcome, names, metric)
        search = {
            "l2": found.l2,
            "c": 1 / found.l2,
            "tried": {str(l2): value for l2, value in found.tried.items()},
            "converged": found.converged,
            "not_converged": found.not_converged,
        }
        return Scored(
            main=metric,
            scores=result.scores,
            intervals=result.intervals,
            baselines=zero_shot.baselines(len(self.content.classes), test.labels),
            sample_sizes=dict.fromkeys(result.scores, len(test.labels)),
            details=of_classes(result) | search | self.about(rows),
        )


class FewShot(_Probe):
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
        found = linear_probe.few_shot(train, test, metric, validation, self._shots, self._seeds)
        chance = zero_shot.baselines(len(self.content.classes), test.labels)[metric]
        names = [f"{metric}@{few.shots}" for few in found]
        shown = [
            {
                "shots": few.shots,
                "scores": few.scores,
                "mean": few.mean,
                "sd": few.sd,
                "converged": few.converged,
                "short": [self.content.classes[label][0] for label in few.short],
            }
            for few in found
        ]
        return Scored(
            main=names[int(np.argmax(self._shots))],
            scores={name: few.mean for name, few in zip(names, found, strict=True)},
            baselines=dict.fromkeys(names, chance),
            sample_sizes=dict.fromkeys(names, len(test.labels)),
            details={"shots": shown, "seeds": list(self._seeds), "metric": metric} | self.about(rows),
        )


def _of_classes(part: LabelledImages, classes: np.ndarray) -> LabelledImages:
    """The images of some classes."""
    return with_labels(LabelledImages(part.images, np.where(np.isin(part.labels, classes), part.labels, -1)))


def has_training(part: LabelledImages | None) -> bool:
    """Whether a probe can be fitted: two classes or more."""
    return part is not None and len(np.unique(part.labels[part.labels >= 0])) > 1
