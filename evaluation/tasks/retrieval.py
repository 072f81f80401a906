"""Retrieval in both directions, geometry of the embeddings, and retrieved examples."""

import base64
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from markupsafe import Markup
from PIL import Image

from evaluation import bootstrap, geometry, retrieval
from evaluation.data import base
from evaluation.embeddings import Inputs, Rows
from evaluation.reporting import gallery, html, number_format
from evaluation.reporting.comparison import Comparison, Row, number, score_table
from evaluation.results import Result
from evaluation.task_info import Measure, TaskInfo
from evaluation.tasks.base import Scored, Task
from pipelines.prepare.repeated_captions import shared_caption
from pipelines.program.settings_base import Settings

_SHOWN, _FOUND = 10, 5  # examples each way, and what is shown for each
_ERRORS, _LOOKED = 8, 2000  # errors that are shown, and images at even distances among which they are looked for
_THUMBNAIL = 128  # pixels of the longer side; shown at up to 96, so that dense screens stay sharp
_SPREAD = 5000  # rows at most of which uniformity, which is quadratic, is computed
_GEOMETRY = {
    "modality_gap": ("modality gap", "distance between the mean image and the mean text, 0 to 2; 0 is no gap"),
    "alignment": ("alignment", "mean squared distance of an image to its text, 0 to 4; less is closer"),
    "uniformity_images": ("uniformity of images", "-8 to 0; less is more evenly spread over the sphere"),
    "uniformity_texts": ("uniformity of texts", "the same of texts"),
}


class Retrieval:
    """Images among all images, captions among all captions."""

    info: ClassVar[TaskInfo] = TaskInfo(
        "zeroshot_retrieval",
        "retrieval",
        "Retrieval",
        (
            Measure("image_to_text_recall@", "image to text R@{}", clip_benchmark="text_retrieval_recall@{}"),
            Measure("text_to_image_recall@", "text to image R@{}", clip_benchmark="image_retrieval_recall@{}"),
            Measure("mean_recall@", "mean R@{}", "the mean of both directions"),
            Measure("mean_recall", "mean of all recalls", "the mean of both directions at every k"),
        ),
        needs="captions of test images",
        by_default=True,
    )
    settings: ClassVar[type[Settings] | None] = None

    def __init__(self, dataset: str, content: base.Retrieval, place: str, recall_at: Sequence[int]):
        self.dataset, self.place, self.content, self._ks = dataset, place, content, tuple(recall_at)
        self.images = Inputs("images", content.images, f"{place}/test")
        self.texts = Inputs("texts", tuple(content.texts), f"{place}/captions")
        owners = np.repeat(np.arange(len(content.images)), [len(texts) for texts in content.texts_of_image])
        self._pairs = owners, np.concatenate(content.texts_of_image).astype(np.int64)
        self.names = tuple(f"{way}_recall@{k}" for way in retrieval.DIRECTIONS for k in self._ks)

    @classmethod
    def among(cls, contents: Mapping[str, base.Content], settings: Any) -> Iterator[Task]:
        for place, content in contents.items():
            if content.retrieval is not None:
                yield cls(place, content.retrieval, place, settings.recall_at)

    @property
    def identity(self) -> list[Any]:
        return [[texts.tolist() for texts in self.content.texts_of_image], self._ks]

    def inputs(self) -> Sequence[Inputs]:
        return self.images, self.texts

    def ranks(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Of each image's best right caption and of each caption's best right image, from 0; int64 [I] and [T]."""
        return retrieval.both_ranks(rows[self.images], rows[self.texts], self.content.texts_of_image)

    def measure(self, rows: Rows) -> Scored:
        return self._measured(*self.ranks(rows))

    def _measured(self, by_image: np.ndarray, by_text: np.ndarray) -> Scored:
        right, (_, members) = self.content.texts_of_image, self._pairs
        images_of_text = np.bincount(members, minlength=len(by_text))
        scored = Scored(f"mean_recall@{self._ks[0]}", {})
        for way, ranks, counts, others in (
            ("image_to_text", by_image, [len(r) for r in right], len(by_text)),
            ("text_to_image", by_text, images_of_text.tolist(), len(by_image)),
        ):
            for k, value in retrieval.recalls(ranks, self._ks).items():
                name = f"{way}_recall@{k}"
                scored.scores[name], scored.sample_sizes[name] = value, len(ranks)
                scored.baselines[name] = {"chance": retrieval.chance(others, counts, k)}
        return scored

    def score(self, rows: Rows) -> Scored:
        images, texts = rows[self.images], rows[self.texts]
        by_image, by_text = self.ranks(rows)
        scored, (owners, members) = self._measured(by_image, by_text), self._pairs
        scored.details["median_rank"] = {
            "image_to_text": retrieval.median_rank(by_image),
            "text_to_image": retrieval.median_rank(by_text),
        }
        # An image's captions are not independent of one another, so images are resampled, each with those captions
        # of which it is the first image; an image without captions of its own has weight 0 there.
        first = np.full(len(texts), len(images))
        np.minimum.at(first, members, owners)
        own = np.bincount(first, minlength=len(images))
        both, weights = [], np.stack([np.ones(len(own)), own])
        for k in self._ks:
            there = 100.0 * (by_image < k)
            back = np.bincount(first, weights=100.0 * (by_text < k), minlength=len(images)) / np.maximum(own, 1)
            both.append(np.stack([there, back]))
            scored.intervals[f"image_to_text_recall@{k}"] = bootstrap.interval(there)
            scored.intervals[f"text_to_image_recall@{k}"] = bootstrap.interval(back, weights=own)
            scored.intervals[f"mean_recall@{k}"] = bootstrap.interval(both[-1], weights=weights)
        scored.intervals["mean_recall"] = bootstrap.interval(np.concatenate(both), weights=np.tile(weights, (len(both), 1)))
        means = retrieval.mean_recalls(scored.scores)
        chances = retrieval.mean_recalls({name: base["chance"] for name, base in scored.baselines.items()})
        scored.scores.update(means)
        scored.baselines.update({name: {"chance": chances[name]} for name in means})
        scored.sample_sizes.update(dict.fromkeys(means, len(images)))
        scored.details["warnings"] = self._warnings()
        scored.details["geometry"] = self._geometry(images, texts)
        scored.details["gallery"] = gallery = self.gallery(rows)
        scored.details["thumbnails"] = self.thumbnails(gallery)
        return scored

    def _warnings(self) -> list[str]:
        """Why the recalls may say little: a caption that many images share."""
        images_of: defaultdict[str, set[int]] = defaultdict(set)
        for image, text in zip(*self._pairs, strict=True):
            images_of[self.content.texts[text]].add(int(image))
        commonest = max(images_of, key=lambda text: len(images_of[text]))
        return shared_caption(len(self.content.images), len(images_of), commonest, len(images_of[commonest]))

    def _geometry(self, images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
        owners, members = self._pairs
        values = {
            "modality_gap": geometry.modality_gap(images, texts),
            "alignment": geometry.alignment(images[owners], texts[members]),
        }
        for name, rows in (("uniformity_images", images), ("uniformity_texts", texts)):
            if len(rows) > 1:
                values[name] = geometry.uniformity(rows[_evenly(len(rows), _SPREAD)])
        return values

    def gallery(self, rows: Rows) -> dict[str, Any]:
        """Evenly spaced captions with the images found for them, and the reverse.

        Images are named by their positions. `place` is that of the best right one, from 1; None where its score is NaN. `alt`
        says what each image shows that occurs: the first of its own captions. `errors`: see `_errors`.
        """
        images, texts, right = rows[self.images], rows[self.texts], self.content.texts_of_image
        owner, (owners, members) = self._owners(), self._pairs
        by_text, by_image = _evenly(len(texts), _SHOWN), _evenly(len(images), _SHOWN)
        found_images, found_texts = retrieval.top(texts[by_text], images, _FOUND), retrieval.top(images[by_image], texts, _FOUND)
        text_ranks = retrieval.ranks(texts[by_text], images, [owners[members == t] for t in by_text])
        image_ranks = retrieval.ranks(images[by_image], texts, [right[i] for i in by_image])
        errors = self._errors(images, texts)
        failed = [int(error["image"]) for error in errors]
        shown = sorted({*found_images.ravel().tolist(), *by_image.tolist(), *owner[by_text].tolist(), *failed})
        return {
            "errors": errors,
            "captions": [
                {
                    "caption": self.content.texts[t],
                    "right": str(owner[t]),
                    "found": [{"image": str(i), "hit": bool(t in right[i])} for i in found],
                    "place": _place(rank),
                }
                for t, found, rank in zip(by_text, found_images, text_ranks, strict=True)
            ],
            "images": [
                {
                    "image": str(i),
                    "right": list(dict.fromkeys(self.content.texts[t] for t in right[i])),
                    "found": [{"caption": self.content.texts[t], "hit": bool(t in right[i])} for t in found],
                    "place": _place(rank),
                }
                for i, found, rank in zip(by_image, found_texts, image_ranks, strict=True)
            ],
            "alt": {str(i): self.content.texts[int(next(iter(np.flatnonzero(owner == i)), right[i][0]))] for i in shown},
        }

    def _errors(self, images: np.ndarray, texts: np.ndarray) -> list[dict[str, Any]]:
        """Images whose first right caption comes just behind wrong ones, those that miss by least first.

        `wrong` is the caption that came first, `right` the first right one, at `place` from 1; `cosines` are of these two.
        """
        looked = _evenly(len(images), _LOOKED)
        near: list[tuple[float, dict[str, Any]]] = []
        for i, found in zip(looked, retrieval.top(images[looked], texts, _FOUND), strict=True):
            places = np.flatnonzero(np.isin(found, self.content.texts_of_image[i]))
            if len(places) and places[0] > 0:
                chosen = found[[0, places[0]]]
                norms = np.linalg.norm(images[i]) * np.linalg.norm(texts[chosen], axis=1)
                wrong, right = (texts[chosen] @ images[i] / norms).tolist()
                captions = {"wrong": self.content.texts[chosen[0]], "right": self.content.texts[chosen[1]]}
                near.append(
                    (wrong - right, {"image": str(i), **captions, "place": int(places[0]) + 1, "cosines": [wrong, right]})
                )
        return [error for _, error in sorted(near, key=lambda entry: entry[0])[:_ERRORS]]

    def thumbnails(self, gallery: dict[str, Any]) -> dict[str, str]:
        """The images that occur in a gallery, small, as data URIs by their names there."""
        images = self.content.images.read(np.asarray([int(name) for name in gallery["alt"]]))
        return {name: _thumbnail(image) for name, image in zip(gallery["alt"], images, strict=True)}

    @classmethod
    def block(cls, comparison: Comparison) -> html.Section:
        about = (
            "R@k: the percentage of queries with a right answer among the k nearest. The more candidates, the lower: compare "
            "only on the same set."
        )
        return comparison.section(cls.info, about, _of_set)

    def _owners(self) -> np.ndarray:
        """int64 [T]: the image that each caption was written for."""
        if self.content.image_of_text is not None:
            return self.content.image_of_text
        first, (owners, members) = np.full(len(self.content.texts), len(self.content.images)), self._pairs
        np.minimum.at(first, members, owners)
        return first


def _place(rank: int) -> int | None:
    return None if rank == retrieval.MISS else int(rank) + 1


def _evenly(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def _thumbnail(image: Image.Image) -> str:
    """A small image as a data URI."""
    small, buffer = image.copy(), io.BytesIO()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small.save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _of_set(comparison: Comparison, dataset: str) -> Markup:
    """Recalls and median ranks, geometry of the embeddings, and what the models find, side by side."""
    task, ways = Retrieval.info.name, (*retrieval.DIRECTIONS, "mean")
    results = comparison.of(task, dataset)
    scores = {score.partition("_recall@")[::2]: score for result in results.values() for score in result.scores}
    recalls = sorted((ways.index(way), int(k), score) for (way, k), score in scores.items() if way in ways and k.isdigit())
    rows = [comparison.row(task, dataset, score) for *_, score in recalls] + _median_ranks(comparison, results)
    about = html.small("no units, and no better or worse by themselves")
    groups = {"": rows, html.join("Geometry of the embeddings", about): _geometry(comparison, results)}
    warnings = dict.fromkeys(warning for result in results.values() for warning in result.details.get("warnings", ()))
    told = "At even distances through the set, not picked by hand. Framed and ticked: right. Dashed: a caption's own image."
    galleries = [_gallery_of(result, model) for model, result in results.items()]
    shown = gallery.examples(galleries, open=dataset == comparison.datasets(task)[0])
    elements = [html.tag("h3", dataset), *map(html.warning, warnings), score_table(comparison, groups)]
    return html.join(*elements, *([html.soft(told), *shown] if shown else []))


def _gallery_of(result: Result, model: html.Model) -> gallery.Gallery:
    sizes = result.sample_sizes
    first = next((score for score in sizes if score.startswith("image_to_text_recall@")), "")
    searched = {"images": sizes.get(first), "captions": sizes.get(first.replace("image_to_text", "text_to_image"))}
    return gallery.Gallery(result.details.get("gallery") or {}, result.details.get("thumbnails") or {}, searched, model)


def _median_ranks(comparison: Comparison, results: Mapping[html.Model, Result]) -> list[Row]:
    """Of the best right answer, a row a direction; infinite where half of the queries have none."""
    rows = []
    for way, title in retrieval.DIRECTIONS.items():
        ranks = {model: (result.details.get("median_rank") or {}).get(way) for model, result in results.items()}
        texts = {m: "none" if number(r) is None else f"{r:,.1f}".removesuffix(".0") for m, r in ranks.items() if r is not None}
        none = "; none: half of the queries or more have no right answer" if "none" in texts.values() else ""
        rows += comparison.not_compared(f"median rank, {title}", texts, f"1 is first; less is better{none}")
    return rows


def _geometry(comparison: Comparison, results: Mapping[html.Model, Result]) -> list[Row]:
    rows = []
    for key, (title, about) in _GEOMETRY.items():
        # Two decimals: these have no unit, and all that matters of them lies within 1.
        values = {m: number_format.value((r.details.get("geometry") or {}).get(key), digits=2) for m, r in results.items()}
        rows += comparison.not_compared(title, {model: text for model, text in values.items() if text}, about)
    return rows
