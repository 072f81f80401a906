"""The held-out split of a prepared dataset, and all scores of its embeddings.

Whoever embeds (training between epochs, `python -m evaluation` through Ray Data) hands over arrays and gets back scores
named by paths, such as `retrieval/openmoji/image_to_text_recall@1` or `zero_shot/openmoji_subgroup/top1`, in percent.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field, field_validator

from evaluation import retrieval, zero_shot
from pipelines.dataset.prepared import Prepared
from pipelines.program.settings import Settings, UserError


def different(value: tuple[Any, ...]) -> tuple[Any, ...]:
    """A list of a config that has nothing twice. Raises `ValueError`."""
    for item in value:
        if value.count(item) > 1:
            raise ValueError(f"{item!r} stands there twice")
    return value


Labels = Annotated[tuple[str, ...], AfterValidator(different)]
Positions = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(different)]
"""Ranks from 1, such as 1, 5 and 10."""


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
) -> HeldOut:
    """Read what a split needs; without `retrieval` no captions.

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
    return HeldOut(
        dataset=prepared.name,
        sample_ids=sample_ids,
        image_ids=table["image_id"].to_numpy(),
        text_ids=np.asarray([i for ids_ in text_ids for i in ids_], dtype=np.int64),
        texts=[text for texts in captions for text in texts],
        image_of_text=np.repeat(np.arange(len(captions)), [len(texts) for texts in captions]).astype(np.int64),
        classes=classes,
        targets=targets,
        prompts=[prompt(t, name) for label in labels for name in classes[label] for t in settings.templates],
        settings=settings,
    )


def metric_names(data: HeldOut) -> list[str]:
    """All that `score` returns for this split, and what `mean_recalls` adds."""
    ways = ("image_to_text", "text_to_image", "mean") if data.texts else ()
    names = [f"retrieval/{data.dataset}/{way}_recall@{k}" for way in ways for k in data.settings.recall_at]
    names += [f"retrieval/{data.dataset}/mean_recall"] if data.texts and data.settings.recall_at else []
    return names + [f"zero_shot/{data.dataset}_{label}/{m}" for label in data.classes for m in ("top1", "top5", "mean_per_class")]


def prompt(template: str, class_name: str) -> str:
    """A template with the class's name in it; hyphens and underscores are spaces to a reader."""
    return template.replace("{c}", "{}").replace("{}", class_name.replace("-", " ").replace("_", " "))


def score(data: HeldOut, images: np.ndarray, texts: np.ndarray, prompts: np.ndarray) -> Scores:
    """All scores.

    Args:
        images: float [I, D] unit rows, in the order of `data.sample_ids`; texts: float [T, D]; prompts: float [P, D].
    """
    for name, rows, count in (
        ("images", images, len(data.sample_ids)),
        ("texts", texts, len(data.texts)),
        ("prompts", prompts, len(data.prompts)),
    ):
        if len(rows) != count or (len(rows) and rows.shape[1] != images.shape[1]):
            raise ValueError(f"{name}: expected [{count}, {images.shape[1]}], got {list(rows.shape)}")
    metrics: dict[str, float] = {}
    base: dict[str, dict[str, float]] = {}
    sizes: dict[str, int] = {}
    ways = (
        [("image_to_text", images, texts, data.texts_of_image), ("text_to_image", texts, images, data.images_of_text)]
        if data.texts
        else []
    )
    for way, queries, candidates, right in ways:
        found = retrieval.ranks(queries, candidates, right)
        for k, value in retrieval.recalls(found, data.settings.recall_at).items():
            path = f"retrieval/{data.dataset}/{way}_recall@{k}"
            metrics[path], sizes[path] = value, len(queries)
            base[path] = {"chance": retrieval.chance(len(candidates), [len(r) for r in right], k)}
    start = 0
    for label, names in data.classes.items():
        count = len(names) * len(data.settings.templates)
        vectors = prompts[start : start + count].reshape(len(names), len(data.settings.templates), -1)
        start += count
        labelled = data.targets[label] >= 0
        targets = data.targets[label][labelled]
        found_base = zero_shot.baselines(len(names), targets)
        for measure, value in zero_shot.classify(images[labelled], zero_shot.class_vectors(vectors), targets).items():
            path = f"zero_shot/{data.dataset}_{label}/{measure}"
            metrics[path], sizes[path], base[path] = value, len(targets), found_base[measure]
    return Scores(metrics, base, sizes, {label: len(names) for label, names in data.classes.items()})


def gallery(data: HeldOut, images: np.ndarray, texts: np.ndarray, count: int = 10, k: int = 5) -> dict[str, Any]:
    """Evenly spaced held-out captions with the images found for them, and the reverse, for people to look at."""

    def spread(total: int) -> np.ndarray:
        return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))

    by_text, by_image = spread(len(texts)), spread(len(images))
    k_images, k_texts = min(k, len(images)), min(k, len(texts))
    found_images = retrieval.top(texts[by_text], images, k_images)
    captions = retrieval.top(images[by_image], texts, k_texts)
    return {
        "captions": [
            {
                "caption": data.texts[t],
                "right": int(data.sample_ids[data.image_of_text[t]]),
                "found": [{"sample_id": int(data.sample_ids[i]), "hit": bool(i in data.images_of_text[t])} for i in found],
            }
            for t, found in zip(by_text, found_images, strict=True)
        ],
        "images": [
            {
                "sample_id": int(data.sample_ids[i]),
                "right": [data.texts[t] for t in np.flatnonzero(data.image_of_text == i)],
                "found": [{"caption": data.texts[t], "hit": bool(t in data.texts_of_image[i])} for t in found],
            }
            for i, found in zip(by_image, captions, strict=True)
        ],
    }
