"""What linear and few-shot probes share: the rows that they read, and what they say about them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.data.base import Classification, LabelledImages
from evaluation.data.subsets import Cropped, with_labels
from evaluation.embeddings import Inputs, Rows
from evaluation.linear_probe import Labelled


class Probe:
    """Features of the training, validation and test images of a set."""

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
        parts = {part: Labelled(rows[self._inputs[part]], images.labels, views.get(part)) for part, images in self._parts.items()}
        return parts["train"], parts["test"], parts.get("validation")

    def about(self, rows: Rows) -> dict[str, Any]:
        train = rows[self._inputs["train"]]
        sizes = {part: len(given.labels) for part, given in self._parts.items()}
        kind = "features before the joint space" if rows.has_features(self._inputs["train"]) else "embeddings"
        views = len(self._views.get("train", []))
        return {"width": train.shape[1], "of": kind, "without_training": self._lost, "views": views} | sizes


def _of_classes(part: LabelledImages, classes: np.ndarray) -> LabelledImages:
    """The images of some classes."""
    return with_labels(LabelledImages(part.images, np.where(np.isin(part.labels, classes), part.labels, -1)))


def has_training(part: LabelledImages | None) -> bool:
    """Whether a probe can be fitted: two classes or more."""
    return part is not None and len(np.unique(part.labels[part.labels >= 0])) > 1
