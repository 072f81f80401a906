"""Zero-shot classification of a set: the ensemble's scores, each template's alone, calibration, and the worst classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import numpy as np

from evaluation import calibration, classification, zero_shot
from evaluation.classification import METRICS, Outcome
from evaluation.data.base import Classification, Content
from evaluation.data.subsets import with_labels
from evaluation.embeddings import Inputs, Rows
from evaluation.tasks.base import Scored, Task, TaskInfo, accuracies, classified, of_classes
from pipelines.program.settings_base import Settings


class ZeroShot:
    """Prompts of all classes against the test images."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "zeroshot_classification",
        "zero_shot",
        "Zero-shot classification",
        accuracies(""),
        needs="labels of test images",
        by_default=True,
    )
    settings: ClassVar[type[Settings] | None] = None
    names = METRICS

    def __init__(self, dataset: str, content: Classification, place: str):
        self.dataset, self.place, self.content = dataset, place, content
        self.test = with_labels(content.test)
        self.prompts = zero_shot.build_prompts(content.classes, content.templates)
        self.images = Inputs("images", self.test.images, f"{place}/test")
        self.texts = Inputs("texts", tuple(self.prompts.texts), f"{dataset}/prompts")
        self.identity = [self.test.labels.tolist(), content.classes, content.templates, content.metric]

    @classmethod
    def among(cls, contents: Mapping[str, Content], settings: Any) -> Iterator[Task]:
        for dataset, one, place in classified(contents):
            yield cls(dataset, one, place)

    def inputs(self) -> Sequence[Inputs]:
        return self.images, self.texts

    def outcome(self, rows: Rows) -> Outcome:
        """What becomes of each image that has a label."""
        return zero_shot.outcome(rows[self.images], self._classes(rows), self.test.labels)

    def _classes(self, rows: Rows) -> np.ndarray:
        return zero_shot.ensemble(self.prompts, rows[self.texts])

    def measure(self, rows: Rows) -> Scored:
        return self._measured(self.outcome(rows))

    def _measured(self, found: Outcome) -> Scored:
        return Scored(
            main=self.content.metric,
            scores=classification.measures(found),
            baselines=zero_shot.baselines(found.num_classes, found.labels),
            sample_sizes=dict.fromkeys(METRICS, len(found.labels)),
        )

    def score(self, rows: Rows) -> Scored:
        images, prompts, labels, metric = rows[self.images], rows[self.texts], self.test.labels, self.content.metric
        outcome, names = self.outcome(rows), [given[0] for given in self.content.classes]
        result = classification.result(outcome, names, metric)
        details = of_classes(result) | {"templates": list(self.content.templates)}
        spread = zero_shot.prompt_sensitivity(images, self.prompts, prompts, labels, metric)
        details["sensitivity"] = {"metric": metric} | asdict(spread)
        if rows.scale is not None:
            found = calibration.zero_shot_calibration(images, self._classes(rows), labels, rows.scale)
            details["calibration"] = {"scale": rows.scale} | asdict(found)
        return replace(self._measured(outcome), intervals=result.intervals, details=details)
