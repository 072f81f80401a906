"""Pictures made of other pictures: some of them, or all of them cropped or corrupted."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from evaluation.corruptions import PARAMETERS, corrupt
from evaluation.data.base import LabelledPictures, Pictures
from pipelines.dataset.views import Augment, apply, draw
from pipelines.program.randomness import generator
from pipelines.program.settings import digest

# As classifiers are trained on ImageNet since Szegedy et al., arXiv 1409.4842.
_CROP = Augment(crop_scale=(0.08, 1.0), flip=True)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some pictures, in the order of `indices`, int64 [n]."""

    pictures: Pictures
    indices: np.ndarray

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.pictures.fingerprint, self.indices.tolist()])

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        return self.pictures.read(self.indices[indices])

    def name(self, index: int) -> str:
        return self.pictures.name(int(self.indices[index]))


@dataclass(frozen=True)
class Cropped:
    """A random crop of each picture, stretched to a square of its own area, every second mirrored; others for each `number`."""

    pictures: Pictures
    number: int
    seed: int

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.pictures.fingerprint, _CROP.model_dump(mode="json"), self.number, self.seed])

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        for index, image in zip(indices, self.pictures.read(indices), strict=True):
            drawn = draw(image.size, _CROP, generator("crop", self.seed, self.number, int(index)))
            left, top, right, bottom = drawn.box
            (view,) = apply(image, max(1, round(math.sqrt((right - left) * (bottom - top)))), [drawn])
            yield Image.fromarray(view.transpose(1, 2, 0))

    def name(self, index: int) -> str:
        return f"{self.pictures.name(index)}, crop {self.number}"


@dataclass(frozen=True)
class Corrupted:
    """Pictures under a corruption. They are shrunk to `size` pixels of the shorter side first: corruptions act on pixels, and
    a model that shrinks a large picture afterwards would not see them."""

    pictures: Pictures
    corruption: str
    severity: int
    seed: int
    size: int

    @cached_property
    def fingerprint(self) -> str:
        parameter = PARAMETERS[self.corruption][self.severity - 1]
        return digest([self.pictures.fingerprint, self.corruption, parameter, self.seed, self.size])

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        for index, image in zip(indices, self.pictures.read(indices), strict=True):
            yield corrupt(shrunk(image, self.size), self.corruption, self.severity, self.seed, int(index))

    def name(self, index: int) -> str:
        return f"{self.pictures.name(index)}, {self.corruption} {self.severity}"


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """The picture with `size` pixels on its shorter side, or as it is where it has no more."""
    ratio = size / min(image.size)
    if ratio >= 1:
        return image
    return image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)


def with_labels(part: LabelledPictures) -> LabelledPictures:
    """Without the pictures that show none of the classes."""
    kept = np.flatnonzero(part.labels >= 0)
    if len(kept) == len(part.labels):
        return part
    return LabelledPictures(Chosen(part.pictures, kept), part.labels[kept])
