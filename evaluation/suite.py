"""The held-out split of a prepared dataset: what must be embedded of it, and the tasks that it is scored by.

`python -m evaluation` sets the same tasks to the same split (`evaluation.data.prepared`). Training, which embeds by itself, hands
over arrays and gets back the tasks' scores by their paths (`evaluation.metrics`), in percent.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Field, field_validator

from evaluation.data.base import Classification, Images, LabelledImages, Retrieval
from evaluation.data.class_names import readable
from evaluation.embeddings import Rows
from evaluation.metrics import mean_recalls, path_of
from evaluation.tasks.base import MeasuredTask, Positions, different
from evaluation.tasks.retrieval import Retrieval as RetrievalTask
from evaluation.tasks.zero_shot import ZeroShot
from evaluation.zero_shot import build_prompts
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.program.errors import UserError
from pipelines.program.settings_base import Settings, digest

Labels = Annotated[tuple[str, ...], AfterValidator(different)]


class SuiteSettings(Settings):
    """What is scored."""

    split: str = Field("test", description="the held-out split")
    recall_at: Positions = Field((1, 5, 10), description="k of R@k")
    templates: tuple[str, ...] = Field(("a photo of a {}.", "{}"), min_length=1, description="prompts of a class; {} is its name")
    labels: Labels | None = Field(None, description="label columns for zero-shot classification; all by default")

    @field_validator("templates")
    @classmethod
    def _has_a_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if "{}" not in template and "{c}" not in template:
                raise ValueError(f"'{template}' has no {{}} for the name of the class")
        return value


@contextmanager
def named(key: str) -> Iterator[None]:
    """Errors name a program's own entry for the data instead of training's keys."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^(data|evaluation)\.", f"{key}.", str(error))) from None


@dataclass(frozen=True, eq=False)
class Samples:
    """Images of a prepared dataset's samples, as they are stored."""

    key: str  # where the config names the dataset, for errors
    prepared: Prepared
    sample_ids: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.sample_ids)

    def name(self, index: int) -> str:
        return str(self.prepared.rows(self.sample_ids[[index]], ("key",))["key"][0].as_py())

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        with named(self.key):
            yield from whole_images(self.prepared, self.sample_ids[indices])


@dataclass(frozen=True)
class HeldOut:
    """What must be embedded: images, captions, prompts; and what is right."""

    dataset: str
    sample_ids: np.ndarray  # int64 [I]
    image_ids: np.ndarray  # int64 [I], equal for equal images
    text_ids: np.ndarray  # int64 [T], equal for equal captions
    texts: list[str]  # [T]
    image_of_text: np.ndarray  # int64 [T], index into sample_ids
    classes: dict[str, list[str]]  # label -> names of its classes
    targets: dict[str, np.ndarray]  # label -> int64 [I]; -1 for an image without this label, which no score of it counts
    prompts: list[str]  # all classes of all labels x templates, in this order
    settings: SuiteSettings
    images: Images

    @cached_property
    def texts_of_image(self) -> list[np.ndarray]:
        """For each image the captions that are right: its own, and those equal to a caption of an equal image."""
        captions: dict[int, set[int]] = {}
        positions: dict[int, list[int]] = {}
        for position, (image, text_id) in enumerate(zip(self.image_of_text, self.text_ids, strict=True)):
            captions.setdefault(int(self.image_ids[image]), set()).add(int(text_id))
            positions.setdefault(int(text_id), []).append(position)
        right = {image_id: sorted(p for t in texts for p in positions[t]) for image_id, texts in captions.items()}
        return [np.asarray(right[int(image_id)]) for image_id in self.image_ids]

    @cached_property
    def images_of_text(self) -> list[np.ndarray]:
        """For each caption the images that are right: the same pairs, seen from the other side."""
        images: list[list[int]] = [[] for _ in self.texts]
        for image, texts in enumerate(self.texts_of_image):
            for text in texts:
                images[text].append(image)
        return [np.asarray(found) for found in images]

    @cached_property
    def retrieval(self) -> Retrieval | None:
        return Retrieval(self.images, self.texts, self.texts_of_image, self.image_of_text) if self.texts else None

    @cached_property
    def classifications(self) -> dict[str, Classification]:
        """By label. Classes are called as their label says, with spaces for - and _."""
        return {
            label: Classification(
                classes=tuple((readable(name),) for name in names),
                templates=self.settings.templates,
                metric="top1",
                test=LabelledImages(self.images, self.targets[label]),
            )
            for label, names in self.classes.items()
        }

    @cached_property
    def tasks(self) -> list[MeasuredTask]:
        """All that is asked of a model."""
        found: list[MeasuredTask] = []
        if self.retrieval is not None and self.settings.recall_at:
            found.append(RetrievalTask(self.dataset, self.retrieval, self.dataset, self.settings.recall_at))
        for label, one in self.classifications.items():
            found.append(ZeroShot(f"{self.dataset}_{label}", one, self.dataset))
        return found

    def rows(self, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> Rows:
        """What the tasks read.

        Args:
            images: float [I, D] unit rows, in the order of `sample_ids`; texts: float [T, D]; prompts: float [P, D].
        """
        for name, rows, count in (
            ("images", images, len(self.sample_ids)),
            ("texts", texts, len(self.texts)),
            ("prompts", prompts, len(self.prompts)),
        ):
            if len(rows) != count or (len(rows) and rows.shape[1] != images.shape[1]):
                raise ValueError(f"{name}: expected [{count}, {images.shape[1]}], got {list(rows.shape)}")
        found, start = Rows("", None), 0
        for task in self.tasks:
            if isinstance(task, ZeroShot):
                count = len(task.prompts.texts)
                found.add(task.images.whole or task.images, images)
                found.add(task.texts, prompts[start : start + count])
                start += count
            elif isinstance(task, RetrievalTask):
                found.add(task.images, images)
                found.add(task.texts, texts)
        return found


@dataclass(frozen=True)
class Scores:
    """Percentages by path, what they must be compared with, and of how many items they are."""

    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]]
    sample_sizes: dict[str, int]
    classes: dict[str, int] = field(default_factory=dict)

    def rows(self) -> list[list[str]]:
        """Table rows: score, value, chance, largest class, n."""
        rows = []
        for name, value in self.metrics.items():
            base = self.baselines[name]
            largest = f"{base['largest_class']:.1f}" if "largest_class" in base else ""
            rows.append([name, f"{value:.1f}", f"{base['chance']:.1f}", largest, str(self.sample_sizes[name])])
        return rows

    HEADER = ["score, %", "value", "chance", "largest class", "n"]


def held_out(
    prepared: Prepared,
    settings: SuiteSettings,
    split_seed: int | None = None,
    validation: float | None = None,
    retrieval: bool = True,
    key: str = "data",
) -> HeldOut:
    """Read what a split needs; without `retrieval` no captions. `key`: where the config names the dataset.

    Raises `UserError` for an unknown or empty split, or an unknown label.
    """
    ids = prepared.split_ids(split_seed, validation)
    if settings.split not in ids:
        raise UserError(f"evaluation.split: '{settings.split}' is unknown; {prepared.path} has {', '.join(ids)}")
    sample_ids = ids[settings.split]
    if len(sample_ids) == 0:
        raise UserError(
            f"evaluation.split: '{settings.split}' of {prepared.path} is empty; prepare with a larger share in splits"
        )
    known = list(prepared.manifest["labels"])
    labels = list(settings.labels) if settings.labels is not None else known
    for label in labels:
        if label not in known:
            raise UserError(f"evaluation.labels: '{label}' is unknown; {prepared.path} has {', '.join(known) or 'no labels'}")
    table = prepared.rows(sample_ids, ("captions", "image_id", "text_id", *(f"label_{label}" for label in labels)))
    none: list[list] = [[] for _ in sample_ids]
    captions, text_ids = (table["captions"].to_pylist(), table["text_id"].to_pylist()) if retrieval else (none, none)
    classes = {label: sorted(prepared.manifest["labels"][label]) for label in labels}
    targets = {}
    for label in labels:
        index = {None: -1} | {name: i for i, name in enumerate(classes[label])}
        targets[label] = np.asarray([index[name] for name in table[f"label_{label}"].to_pylist()], dtype=np.int64)
    fingerprint = digest([prepared.fingerprint, settings.split, split_seed, sample_ids.tolist()])
    return HeldOut(
        dataset=prepared.name,
        sample_ids=sample_ids,
        image_ids=table["image_id"].to_numpy(),
        text_ids=np.asarray([i for ids_ in text_ids for i in ids_], dtype=np.int64),
        texts=[text for texts in captions for text in texts],
        image_of_text=np.repeat(np.arange(len(captions)), [len(texts) for texts in captions]).astype(np.int64),
        classes=classes,
        targets=targets,
        prompts=[p for label in labels for p in build_prompts([readable(c) for c in classes[label]], settings.templates).texts],
        settings=settings,
        images=Samples(key, prepared, sample_ids, fingerprint),
    )


def metric_names(data: HeldOut) -> list[str]:
    """All that `score` returns for this split, and what `mean_recalls` adds."""
    names: list[str] = []
    for task in data.tasks:
        own = [path_of(task.info.name, task.dataset, name) for name in task.names]
        names += [*own, *sorted(mean_recalls(dict.fromkeys(own, 0.0)), key=lambda path: "@" not in path)]
    return names


def score(data: HeldOut, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> Scores:
    """The scores of all tasks; arguments as of `HeldOut.rows`."""
    rows = data.rows(images, texts, prompts)
    scores = Scores({}, {}, {}, {label: len(names) for label, names in data.classes.items()})
    for task in data.tasks:
        found = task.measure(rows)
        for name, value in found.scores.items():
            path = path_of(task.info.name, task.dataset, name)
            scores.metrics[path], scores.baselines[path] = value, found.baselines[name]
            scores.sample_sizes[path] = found.sample_sizes[name]
    return scores
