"""Retrieval both ways, how the two clouds of embeddings lie, and images of what was found, for people to look at."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation import bootstrap, geometry, retrieval
from evaluation.data import base
from evaluation.data.subsets import shrunk
from evaluation.embeddings import Rows, Wanted
from evaluation.tasks.base import Scored

_SHOWN, _FOUND = 8, 5  # examples each way, and what is shown for each
_THUMBNAIL = 96  # pixels of the shorter side
_SPREAD = 5000  # rows at most of which uniformity, which is quadratic, is computed


class Retrieval:
    """Images among all images, captions among all captions."""

    name = "zeroshot_retrieval"

    def __init__(self, dataset: str, content: base.Retrieval, place: str, recall_at: Sequence[int]):
        self.dataset, self.place, self.content, self._ks = dataset, place, content, tuple(recall_at)
        self.images = Wanted("images", content.images, f"{place}/test")
        self.texts = Wanted("texts", tuple(content.texts), f"{place}/captions")
        owners = np.repeat(np.arange(len(content.images)), [len(texts) for texts in content.texts_of_image])
        self._pairs = owners, np.concatenate(content.texts_of_image).astype(np.int64)
        self.identity = [[texts.tolist() for texts in content.texts_of_image], self._ks]

    def wanted(self) -> Sequence[Wanted]:
        return self.images, self.texts

    def score(self, rows: Rows) -> Scored:
        images, texts, right = rows[self.images], rows[self.texts], self.content.texts_of_image
        by_image, by_text = retrieval.both_ranks(images, texts, right)
        owners, members = self._pairs
        images_of_text = np.bincount(members, minlength=len(texts))
        scored = Scored(f"mean_recall@{self._ks[0]}", {}, details={"median_rank": {}})
        for way, ranks, counts, others in (
            ("image_to_text", by_image, [len(r) for r in right], len(texts)),
            ("text_to_image", by_text, images_of_text.tolist(), len(images)),
        ):
            scored.details["median_rank"][way] = retrieval.median_rank(ranks)
            for k, value in retrieval.recalls(ranks, self._ks).items():
                name = f"{way}_recall@{k}"
                scored.scores[name], scored.sample_sizes[name] = value, len(ranks)
                scored.baselines[name] = {"chance": retrieval.chance(others, counts, k)}
        # An image's captions are not independent of one another, so the image is what is drawn again, with those captions
        # of which it is the first image; one that has none of its own counts for nothing on their side.
        first = np.full(len(texts), len(images))
        np.minimum.at(first, members, owners)
        own = np.bincount(first, minlength=len(images))
        for k in self._ks:
            there = 100.0 * (by_image < k)
            back = np.bincount(first, weights=100.0 * (by_text < k), minlength=len(images)) / np.maximum(own, 1)
            scored.intervals[f"image_to_text_recall@{k}"] = bootstrap.interval(there)
            scored.intervals[f"text_to_image_recall@{k}"] = bootstrap.interval(back, weights=own)
            name, parts = f"mean_recall@{k}", [f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image")]
            scored.scores[name] = sum(scored.scores[part] for part in parts) / 2
            scored.intervals[name] = bootstrap.interval(np.stack([there, back]), weights=np.stack([np.ones(len(own)), own]))
            scored.baselines[name] = {"chance": sum(scored.baselines[part]["chance"] for part in parts) / 2}
            scored.sample_sizes[name] = len(images)
        scored.details["geometry"] = self._geometry(images, texts)
        scored.details.update(self._gallery(images, texts))
        return scored

    def _geometry(self, images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
        owners, members = self._pairs
        found = {
            "modality_gap": geometry.modality_gap(images, texts),
            "alignment": geometry.alignment(images[owners], texts[members]),
        }
        for name, rows in (("uniformity_images", images), ("uniformity_texts", texts)):
            if len(rows) > 1:
                found[name] = geometry.uniformity(rows[_evenly(len(rows), _SPREAD)])
        return found

    def _gallery(self, images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
        """Evenly spaced captions with the images found for them, and the reverse."""
        right = self.content.texts_of_image
        owners, members = self._pairs
        by_text, by_image = _evenly(len(texts), _SHOWN), _evenly(len(images), _SHOWN)
        found_images = retrieval.top(texts[by_text], images, _FOUND)
        captions = retrieval.top(images[by_image], texts, _FOUND)
        owner = {int(t): int(i) for i, t in zip(owners[::-1], members[::-1], strict=True)}
        shown = sorted({*found_images.ravel().tolist(), *by_image.tolist(), *(owner[int(t)] for t in by_text)})
        return {
            "gallery": {
                "captions": [
                    {
                        "caption": self.content.texts[t],
                        "right": str(owner[int(t)]),
                        "found": [{"image": str(i), "hit": bool(t in right[i])} for i in found],
                    }
                    for t, found in zip(by_text, found_images, strict=True)
                ],
                "images": [
                    {
                        "image": str(i),
                        "right": [self.content.texts[t] for t in right[i]],
                        "found": [{"caption": self.content.texts[t], "hit": bool(t in right[i])} for t in found],
                    }
                    for i, found in zip(by_image, captions, strict=True)
                ],
            },
            "thumbnails": {
                str(i): _thumbnail(image) for i, image in zip(shown, self.content.images.read(np.asarray(shown)), strict=True)
            },
        }


def _evenly(total: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))


def _thumbnail(image: Any) -> str:
    """A small JPEG as a data URI."""
    buffer = io.BytesIO()
    shrunk(image, _THUMBNAIL).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
