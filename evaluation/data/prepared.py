"""A prepared dataset's held-out split as evaluation data: retrieval, and a classification by each of its labels."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from evaluation.data.base import Classification, Content, LabelledImages, Retrieval
from evaluation.data.class_names import PLAIN_TEMPLATES, Templates, readable
from evaluation.suite import HeldOut, Labels, SuiteSettings, held_out
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.program.path_keys import Place
from pipelines.program.settings import Settings, UserError, digest

_VALIDATION = ("val", "validation")  # splits that are chosen on


class PreparedData(Settings):
    """A folder that python -m pipelines made."""

    name: Literal["prepared"]
    path: Place = Field(description="folder that python -m pipelines made")
    split: str = Field("test", description="the held-out split")
    split_seed: int | None = Field(None, ge=0, description="hold out other groups than the dataset was prepared with")
    labels: Labels | None = Field(None, description="label columns to classify by; null: all")
    templates: Templates = Field(PLAIN_TEMPLATES, description="prompts of a class; {} or {c} is its name")
    retrieval: bool = Field(True, description="false: captions are not scored")

    def read(self, key: str) -> Content:
        """One classification a label, under its name. Probes have the split `train`, and val or validation where there is one.

        Captions are right for their image, for images equal to it, and so are captions equal to them. Classes are called as
        their label says, with spaces for - and _. Raises `UserError`.
        """
        with _named(key):
            prepared = Prepared.open(self.path)
            ids = prepared.split_ids(self.split_seed)
            data = self._held_out(prepared, self.split, self.retrieval)
            if not data.classes and not self.retrieval:
                raise UserError(f"data.retrieval: false, and {self.path} has no labels to score; set it to true")
            chosen = next((name for name in _VALIDATION if name in ids), "")
            sides = [name for name in ("train", chosen) if data.classes and name != self.split and len(ids.get(name, ())) > 0]
            splits = {self.split: data} | {name: self._held_out(prepared, name, False) for name in sides}
        images = {name: self._images(key, prepared, split) for name, split in splits.items()}

        def labelled(split: str, label: str) -> LabelledImages:
            return LabelledImages(images[split], splits[split].targets[label])

        classifications = {
            label: Classification(
                classes=tuple((readable(name),) for name in names),
                templates=self.templates,
                metric="top1",
                test=labelled(self.split, label),
                train=labelled("train", label) if "train" in sides else None,
                validation=labelled(chosen, label) if chosen in sides else None,
            )
            for label, names in data.classes.items()
        }
        retrieval = Retrieval(images[self.split], data.texts, data.texts_of_image) if self.retrieval else None
        counts = {name: prepared.manifest["counts"][name] for name in ("listed", "found", "kept")}
        return Content(classifications, retrieval, attribution=prepared.manifest["attribution"], coverage=counts)

    def _held_out(self, prepared: Prepared, split: str, retrieval: bool) -> HeldOut:
        settings = SuiteSettings(split=split, labels=self.labels, templates=self.templates)
        return held_out(prepared, settings, self.split_seed, retrieval=retrieval)

    def _images(self, key: str, prepared: Prepared, split: HeldOut) -> "_Samples":
        ids = split.sample_ids
        return _Samples(key, prepared, ids, digest([prepared.fingerprint, split.settings.split, self.split_seed, ids.tolist()]))


@dataclass(eq=False)
class _Samples:
    """Samples of a prepared dataset."""

    key: str
    prepared: Prepared
    sample_ids: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.sample_ids)

    def name(self, index: int) -> str:
        return str(self.prepared.rows(self.sample_ids[[index]], ("key",))["key"][0].as_py())

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        with _named(self.key):
            yield from whole_images(self.prepared, self.sample_ids[indices])


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors name the entry of `data` instead of training's and the suite's keys."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^(data|evaluation)\.", f"{key}.", str(error))) from None
