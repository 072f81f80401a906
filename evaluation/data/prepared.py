"""A prepared dataset's held-out split as evaluation data: retrieval, and a classification by each of its labels."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from evaluation.data.base import Content, LabelledImages
from evaluation.data.class_names import PLAIN_TEMPLATES, Templates
from evaluation.suite import HeldOut, Labels, SuiteSettings, held_out, under_key
from pipelines.dataset.prepared import Prepared
from pipelines.program.errors import UserError
from pipelines.program.path_keys import Place
from pipelines.program.settings_base import Settings

_VALIDATION = ("val", "validation")  # names of validation splits, the first of them that exists


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
        """Retrieval, and one classification for each label. Probes use `train`, and val or validation where there is one.

        A caption is right for its image and for every equal image, and so is every equal caption. Class names are the label's
        values, with spaces for - and _. Raises `UserError`.
        """
        with under_key(key):
            prepared = Prepared.open(self.path)
            ids = prepared.split_ids(self.split_seed)
            data = self._held_out(key, prepared, self.split, self.retrieval)
            if not data.classes and not self.retrieval:
                raise UserError("data.retrieval", f"false, and {self.path} has no labels to score", "set data.retrieval=true")
            validation = next((name for name in _VALIDATION if name in ids), "")
            others = [n for n in ("train", validation) if data.classes and n != self.split and len(ids.get(n, ())) > 0]
            by_split = {name: self._held_out(key, prepared, name, False).classifications for name in others}

        def part(split: str, label: str) -> LabelledImages | None:
            return by_split[split][label].test if split in by_split else None

        classifications = {
            label: replace(classification, train=part("train", label), validation=part(validation, label))
            for label, classification in data.classifications.items()
        }
        counts = {name: prepared.manifest["counts"][name] for name in ("listed", "found", "kept")}
        return Content(classifications, data.retrieval, attribution=prepared.manifest["attribution"], coverage=counts)

    def _held_out(self, key: str, prepared: Prepared, split: str, retrieval: bool) -> HeldOut:
        settings = SuiteSettings(split=split, labels=self.labels, templates=self.templates)
        return held_out(prepared, settings, self.split_seed, retrieval=retrieval, key=key)
