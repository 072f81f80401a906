"""The held-out split of a prepared dataset: what to embed of it, and the tasks that score it.

Training embeds a split itself and passes the arrays to `score`; `python -m evaluation` runs the same tasks on the same split
(`evaluation.data.prepared`). Scores have paths (`evaluation.metrics`) and are in percent.
"""

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
    """Which split, labels and ranks are scored."""

    split: str = Field("test", description="the held-out split")
    recall_at: Positions = Field((1, 5, 10), description="k of R@k")
    templates: tuple[str, ...] = Field(("a photo of a {}.", "{}"), min_length=1, description="prompts of a class; {} is its name")
    labels: Labels | None = Field(None, description="label columns for zero-shot classification; all by default")

    @field_validator("templates")
    @classmethod
    def _has_place(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for template in value:
            if "{}" not in template and "{c}" not in template:
                raise ValueError(f"'{template}' has no place for the name of the class; write {{}} or {{c}} there")
        return value


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """Errors about a prepared dataset name the config's entry `key` in place of training's `data`."""
    try:
        yield
    except UserError as error:
        if error.key.startswith(f"{key}."):  # `held_out` was told it
            raise
        raise error.under(key, instead_of="data") from None


@dataclass(frozen=True, eq=False)
class Samples:
    """The stored images of some samples of a prepared dataset."""

    key: str  # where the config names the dataset, for errors
    prepared: Prepared
    sample_ids: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.sample_ids)

    def name(self, index: int) -> str:
        return str(self.prepared.rows(self.sample_ids[[index]], ("key",))["key"][0].as_py())

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        with under_key(self.key):
            yield from whole_images(self.prepared, self.sample_ids[indices])


@dataclass(frozen=True)
class HeldOut:
    """A split's images, captions and prompts, and which of them belong together."""

    dataset: str
    sample_ids: np.ndarray  # int64 [I]
    image_ids: np.ndarray  # int64 [I], equal for equal images
    text_ids: np.ndarray  # int64 [T], equal for equal captions
    texts: list[str]  # [T]
    image_of_text: np.ndarray  # int64 [T], index into sample_ids
    classes: dict[str, list[str]]  # label -> names of its classes
    targets: dict[str, np.ndarray]  # label -> int64 [I]; -1 for an image without this label, which its scores leave out
    prompts: list[str]  # of all labels, classes and templates, in this order of nesting
    settings: SuiteSettings
    images: Images

    @cached_property
    def texts_of_image(self) -> list[np.ndarray]:
        """The right captions of each image: its own, and those equal to a caption of an equal image."""
        captions: dict[int, set[int]] = {}
        positions: dict[int, list[int]] = {}
        for position, (image, text_id) in enumerate(zip(self.image_of_text, self.text_ids, strict=True)):
            captions.setdefault(int(self.image_ids[image]), set()).add(int(text_id))
            positions.setdefault(int(text_id), []).append(position)
        right = {image_id: sorted(p for t in texts for p in positions[t]) for image_id, texts in captions.items()}
        return [np.asarray(right[int(image_id)]) for image_id in self.image_ids]

    @cached_property
    def images_of_text(self) -> list[np.ndarray]:
        """The right images of each caption: the inverse of `texts_of_image`."""
        images: list[list[int]] = [[] for _ in self.texts]
        for image, texts in enumerate(self.texts_of_image):
            for text in texts:
                images[text].append(image)
        return [np.asarray(indices) for indices in images]

    @cached_property
    def retrieval(self) -> Retrieval | None:
        return Retrieval(self.images, self.texts, self.texts_of_image, self.image_of_text) if self.texts else None

    @cached_property
    def classifications(self) -> dict[str, Classification]:
        """One for each label. Class names are its values, with spaces for - and _."""
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
        """Retrieval, where there are captions, and zero-shot classification for each label."""
        tasks: list[MeasuredTask] = []
        if self.retrieval is not None and self.settings.recall_at:
            tasks.append(RetrievalTask(self.dataset, self.retrieval, self.dataset, self.settings.recall_at))
        for label, classification in self.classifications.items():
            tasks.append(ZeroShot(f"{self.dataset}_{label}", classification, self.dataset))
        return tasks

    def rows(self, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> Rows:
        """The rows that the tasks read.

        Args:
            images: float [I, D] unit rows, in the order of `sample_ids`; texts: float [T, D]; prompts: float [P, D].
        """
        for name, array, count in (
            ("images", images, len(self.sample_ids)),
            ("texts", texts, len(self.texts)),
            ("prompts", prompts, len(self.prompts)),
        ):
            if len(array) != count or (len(array) and array.shape[1] != images.shape[1]):
                raise ValueError(f"{name}: expected [{count}, {images.shape[1]}], got {list(array.shape)}")
        rows, start = Rows("", None), 0
        for task in self.tasks:
            if isinstance(task, ZeroShot):
                count = len(task.prompts.texts)
                rows.add(task.images.superset or task.images, images)
                rows.add(task.texts, prompts[start : start + count])
                start += count
            elif isinstance(task, RetrievalTask):
                rows.add(task.images, images)
                rows.add(task.texts, texts)
        return rows


@dataclass(frozen=True)
class Scores:
    """Percentages by path, with their baselines and numbers of items."""

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
    key: str = "",
) -> HeldOut:
    """Read a split, without captions if `retrieval` is false.

    Args:
        split_seed, validation: as of `Prepared.split_ids`.
        key: the dataset's entry in a config of evaluation, for errors; by default they name training's keys.

    Raises `UserError` for an unknown or empty split, or an unknown label.
    """
    settings_key = key or "evaluation"
    ids = prepared.split_ids(split_seed, validation)
    if settings.split not in ids:
        problem = f"{prepared.path} has no split '{settings.split}'"
        raise UserError(f"{settings_key}.split", problem, f"choose one of {', '.join(ids)}")
    sample_ids = ids[settings.split]
    if len(sample_ids) == 0:
        problem = f"'{settings.split}' of {prepared.path} is empty"
        raise UserError(f"{settings_key}.split", problem, f"prepare again with a larger splits.{settings.split}")
    available = list(prepared.manifest["labels"])
    labels = list(settings.labels) if settings.labels is not None else available
    for label in labels:
        if label not in available:
            remedy = f"choose from {', '.join(available)}" if available else "remove it: the dataset has no labels"
            raise UserError(f"{settings_key}.labels", f"{prepared.path} has no label '{label}'", remedy)
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
        images=Samples(key or "data", prepared, sample_ids, fingerprint),
    )


def metric_names(data: HeldOut) -> list[str]:
    """Paths of all scores that `score` returns for this split, and of the means that `mean_recalls` adds."""
    names: list[str] = []
    for task in data.tasks:
        of_task = [path_of(task.info.name, task.dataset, name) for name in task.names]
        names += [*of_task, *sorted(mean_recalls(dict.fromkeys(of_task, 0.0)), key=lambda path: "@" not in path)]
    return names


def score(data: HeldOut, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> Scores:
    """The scores of all tasks; arguments as of `HeldOut.rows`."""
    rows = data.rows(images, texts, prompts)
    scores = Scores({}, {}, {}, {label: len(names) for label, names in data.classes.items()})
    for task in data.tasks:
        scored = task.measure(rows)
        for name, value in scored.scores.items():
            path = path_of(task.info.name, task.dataset, name)
            scores.metrics[path], scores.baselines[path] = value, scored.baselines[name]
            scores.sample_sizes[path] = scored.sample_sizes[name]
    return scores
