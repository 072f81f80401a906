"""Whether an export gives what the run gives: the held-out split, from image files and texts, by the target's library alone."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.suite import HeldOut, Scores, held_out, score
from pipelines.dataset.image_formats import PILLOW
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.sample_images import whole_images
from pipelines.dataset.views import eval_view
from pipelines.io.storage import Missing
from training.checkpoint import load_embedder
from training.export.model import Model

_BATCH = 64  # images or texts embedded at a time


@dataclass(frozen=True)
class Parity:
    """Rows of the run and of its export, compared."""

    data: HeldOut
    images: float  # largest difference of two numbers
    texts: float
    cosine: float  # the smallest, of a row and its counterpart
    squares: float | None  # `images`, of the same images given as the run's own squares; None if it was not needed
    ours: Scores
    theirs: Scores

    @property
    def largest(self) -> float:
        return max(self.images, self.texts)

    def lines(self, target: str) -> list[str]:
        """What is printed."""
        about = f"{len(self.data.sample_ids):,} images and {len(self.data.texts):,} captions of split {self.data.settings.split}"
        rows = f"largest difference {self.images:.1e} (images) and {self.texts:.1e} (texts), smallest cosine {self.cosine:.7f}"
        names = [name for name in self.ours.metrics if "_recall@" in name] or list(self.ours.metrics)
        scores = [f"  {name}: run {self.ours.metrics[name]:.2f}, {target} {self.theirs.metrics[name]:.2f}" for name in names]
        return [f"parity on {about}: {rows}", *scores]


def held_out_of(model: Model, prepared: Prepared) -> HeldOut:
    """The split that the run was scored on. Raises `UserError` if the dataset does not have it."""
    settings = model.settings
    return held_out(prepared, settings.evaluation, settings.data.split_seed, settings.data.validation)


def compare(model: Model, data: HeldOut, prepared: Prepared, usage: Any, folder: Path, tolerance: float) -> Parity:
    """Embed the split with the run and with its export. `usage`: the target's module of `training.export.usage`.

    Raises `UserError` for an image that cannot be used.
    """
    run, loaded = load_embedder(str(model.checkpoint), model.wise_ft), usage.load(str(folder))
    ours, theirs, images, squares = [], [], 0.0, 0.0
    size = model.settings.image_tower.image_size
    for ids in _batches(data.sample_ids):
        decoded = list(whole_images(prepared, ids))
        ours.append(run.embed_images(decoded))
        theirs.append(np.asarray(usage.embed_images(loaded, _files(prepared, ids, decoded))))
        difference = _difference(ours[-1], theirs[-1])
        if difference > tolerance and images <= tolerance:
            square = [_png(Image.fromarray(np.ascontiguousarray(eval_view(image, size).transpose(1, 2, 0)))) for image in decoded]
            squares = _difference(ours[-1], np.asarray(usage.embed_images(loaded, square)))
        images = max(images, difference)
    texts, prompts = (
        (_embedded(run.embed_texts, strings, model), _embedded(lambda some: usage.embed_texts(loaded, some), strings, model))
        for strings in (data.texts, data.prompts)
    )
    first = (np.concatenate(ours), texts[0], prompts[0])
    second = (np.concatenate(theirs), texts[1], prompts[1])
    return Parity(
        data,
        images,
        max(_difference(*texts), _difference(*prompts)),
        float(min((a * b).sum(1).min(initial=1.0) for a, b in zip(first, second, strict=True))),
        squares if images > tolerance else None,
        score(data, *first),
        score(data, *second),
    )


def _batches(items: Any) -> Iterator[Any]:
    return (items[start : start + _BATCH] for start in range(0, len(items), _BATCH))


def _embedded(embed: Callable[[list[str]], Any], texts: Sequence[str], model: Model) -> np.ndarray:
    rows = [np.zeros((0, model.settings.embed_dim), dtype=np.float32)]
    return np.concatenate(rows + [np.asarray(embed(list(batch))) for batch in _batches(texts)])


def _files(prepared: Prepared, ids: np.ndarray, decoded: list[Image.Image]) -> list[io.BytesIO]:
    """The images as files; one in a format that Pillow does not read, such as SVG, as a PNG."""
    files = []
    for data, image in zip(prepared.images(ids), decoded, strict=True):
        assert not isinstance(data, Missing)  # it was decoded
        try:
            Image.open(io.BytesIO(data), formats=PILLOW).close()
            files.append(io.BytesIO(data))
        except OSError:
            files.append(_png(image))
    return files


def _png(image: Image.Image) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def _difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).max(initial=0.0))
