"""What is left of a zero-shot score under a shift: corruptions of the test images, or another set of the same classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from evaluation import robustness, zero_shot
from evaluation.bootstrap import interval
from evaluation.classification import measures
from evaluation.corruptions import PARAMETERS, SEVERITIES
from evaluation.data.base import Content
from evaluation.data.subsets import Corrupted, Subset
from evaluation.embeddings import Inputs, Rows
from evaluation.tasks.base import Measure, Scored, Task, TaskInfo, classified
from evaluation.tasks.zero_shot import ZeroShot
from pipelines.program.errors import UserError
from pipelines.program.path_keys import LocalPlace
from pipelines.program.settings_base import Settings

_POINTS = "percentage points"


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


class RobustnessSettings(Settings):
    """Effective robustness of one set, which is a shift of another."""

    reference: str = Field(description="entry of data: the set without the shift")
    line: str | None = Field(
        None, description="one of the lines that ship: imagenet_v2, imagenet_sketch, imagenet_r, imagenet_a, objectnet"
    )
    baselines: LocalPlace | None = Field(None, description="instead: csv with a row a baseline model, accuracies in percent")
    reference_column: str | None = Field(None, description="of baselines: accuracy on the reference")
    shift_column: str | None = Field(None, description="of baselines: accuracy under the shift")

    @model_validator(mode="after")
    def _one_line(self) -> "RobustnessSettings":
        columns = [self.reference_column, self.shift_column]
        if (self.line is None) == (self.baselines is None):
            raise ValueError("line: give either one of the lines that ship, or baselines with its two columns")
        if (self.baselines is None) != (columns == [None, None]) or (self.baselines is not None and None in columns):
            raise ValueError("baselines: needs reference_column and shift_column, and they need it")
        return self


class Corruption:
    """Zero-shot classification of the same images, corrupted in several ways and to several degrees."""

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
        given = settings.corruption
        for dataset, one, place in classified(contents):
            yield cls(ZeroShot(dataset, one, place), given.names, given.severities, given.images, given.seed, given.size)

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
            found = zero_shot.outcome(rows[wanted], classes, labels)
            hit = 100.0 * (found.ranks < 1)
            hits.append(hit)
            scored.scores[name] = measures(found)[metric]
            scored.intervals[name] = interval(hit, labels if metric == "mean_per_class" else None)
        scored.scores["mean"] = float(np.mean(list(scored.scores.values())))
        # An image is one item, however often it was corrupted.
        scored.intervals["mean"] = interval(np.mean(hits, axis=0), labels if metric == "mean_per_class" else None)
        scored.details["severities"] = list(self._severities)
        scored.baselines.update(dict.fromkeys(scored.scores, chance))
        scored.sample_sizes.update(dict.fromkeys(scored.scores, len(labels)))
        return scored


class EffectiveRobustness:
    """Top-1 under a shift beside what a line through baselines predicts from top-1 on the reference set."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "effective_robustness",
        "robustness",
        "Effective robustness",
        (Measure("effective", "effective robustness", unit=_POINTS),),
        _POINTS,
    )
    settings: ClassVar[type[Settings] | None] = None  # its key holds one a shift

    def __init__(self, shift: ZeroShot, reference: ZeroShot, line: robustness.Line, baselines: str):
        self.dataset, self.place, self._shift = shift.dataset, shift.place, shift
        self._line, self._baselines = line, baselines
        self._reference, self._labels = reference, _on_classes(reference, shift)
        self.identity = [shift.identity, self._labels.tolist(), asdict(line)]

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        for shift, given in settings.robustness.items():
            line, baselines = _line(given, shift)
            yield cls(_only(shift, contents, shift), _only(given.reference, contents, shift), line, baselines)

    def inputs(self) -> Sequence[Inputs]:
        return self._shift.images, self._shift.texts, self._reference.images

    def score(self, rows: Rows) -> Scored:
        classes = zero_shot.ensemble(self._shift.prompts, rows[self._shift.texts])
        under = zero_shot.classify(rows[self._shift.images], classes, self._shift.test.labels)["top1"]
        kept = self._labels >= 0
        without = zero_shot.classify(rows[self._reference.images][kept], classes, self._labels[kept])["top1"]
        found = robustness.robustness(self._line, without, under)
        return Scored(
            main="effective",
            scores={"effective": found.effective, "prediction": found.prediction, "shift": under, "reference": without},
            sample_sizes={"shift": len(self._shift.test.labels), "reference": int(kept.sum())},
            details={
                "extrapolated": found.extrapolated,
                "line": asdict(self._line),
                "baselines": self._baselines,
                "reference_set": self._reference.dataset,
            },
        )


def _only(name: str, contents: Mapping[str, Content], shift: str) -> ZeroShot:
    found = list(contents[name].classifications.values())
    if len(found) != 1:
        raise UserError(f"robustness.{shift}: {name} has {len(found)} sets of labels; effective robustness compares one")
    return ZeroShot(name, found[0], name)


def _line(given: RobustnessSettings, shift: str) -> tuple[robustness.Line, str]:
    """The line, and what it goes through."""
    if given.baselines is not None:
        assert given.reference_column is not None and given.shift_column is not None
        columns = robustness.read_baselines(given.baselines, given.reference_column, given.shift_column)
        return robustness.fit(*columns), str(given.baselines)
    lines = robustness.shipped_lines()
    if given.line not in lines:
        raise UserError(f"robustness.{shift}.line: '{given.line}' does not ship; there are {', '.join(lines)}; or give baselines")
    return lines[given.line], f"shipped: {given.line}"


def _on_classes(reference: ZeroShot, shift: ZeroShot) -> np.ndarray:
    """The shift's class of each of the reference's images, int64 [n], -1 for none: by ImageNet's numbers, or else by name."""
    ours: Sequence[Sequence[object]] = reference.content.classes
    theirs: Sequence[Sequence[object]] = shift.content.classes
    if reference.content.imagenet is not None and shift.content.imagenet is not None:
        ours, theirs = reference.content.imagenet, shift.content.imagenet
    place = {entry: c for c, entries in enumerate(theirs) for entry in entries}
    found = [next((place[entry] for entry in entries if entry in place), -1) for entries in ours]
    labels = np.asarray(found, dtype=np.int64)[reference.test.labels]
    if (labels < 0).all():
        raise UserError(
            f"robustness.{shift.dataset}.reference: no image of {reference.dataset} is of a class of {shift.dataset}; give a "
            "set with the same classes"
        )
    return labels
