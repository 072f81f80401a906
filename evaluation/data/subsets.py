"""Images derived from other images: a subset, random crops, or corrupted images."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from evaluation.corruptions import PARAMETERS, corrupt
from evaluation.data.base import Images, LabelledImages
from pipelines.dataset.views import Augment, apply, draw
from pipelines.program.randomness import generator
from pipelines.program.settings_base import digest

# The usual crop for training on ImageNet (Szegedy et al., arXiv 1409.4842).
_CROP = Augment(crop_scale=(0.08, 1.0), flip=True)


@dataclass(frozen=True, eq=False)
class Subset:
    """The images at `indices`, int64 [n], in that order."""

    images: Images
    indices: np.ndarray

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.images.fingerprint, self.indices.tolist()])

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        return self.images.read(self.indices[indices])

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))


@dataclass(frozen=True)
class Cropped:
    """A random crop of each image, resized to a square of the crop's area, half of them mirrored; `number` selects the draw."""

    images: Images
    number: int
    seed: int

    @cached_property
    def fingerprint(self) -> str:
        return digest([self.images.fingerprint, _CROP.model_dump(mode="json"), self.number, self.seed])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        for index, image in zip(indices, self.images.read(indices), strict=True):
            drawn = draw(image.size, _CROP, generator("crop", self.seed, self.number, int(index)))
            left, top, right, bottom = drawn.box
            (view,) = apply(image, max(1, round(math.sqrt((right - left) * (bottom - top)))), [drawn])
            yield Image.fromarray(view.transpose(1, 2, 0))

    def name(self, index: int) -> str:
        return f"{self.images.name(index)}, crop {self.number}"


@dataclass(frozen=True)
class Corrupted:
    """Images under a corruption. They are first shrunk to `size` pixels on the shorter side: corruptions act on pixels, and a
    model that shrinks a large image afterwards would average them away."""

    images: Images
    corruption: str
    severity: int
    seed: int
    size: int

    @cached_property
    def fingerprint(self) -> str:
        parameter = PARAMETERS[self.corruption][self.severity - 1]
        return digest([self.images.fingerprint, self.corruption, parameter, self.seed, self.size])

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        for index, image in zip(indices, self.images.read(indices), strict=True):
            yield corrupt(shrunk(image, self.size), self.corruption, self.severity, self.seed, int(index))

    def name(self, index: int) -> str:
        return f"{self.images.name(index)}, {self.corruption} {self.severity}"


def shrunk(image: Image.Image, size: int) -> Image.Image:
    """The image resized to `size` pixels on its shorter side; a smaller image does not change."""
    ratio = size / min(image.size)
    if ratio >= 1:
        return image
    return image.resize((round(image.width * ratio), round(image.height * ratio)), Image.Resampling.BICUBIC)


def with_labels(part: LabelledImages) -> LabelledImages:
    """Only the images that have a label."""
    labelled = np.flatnonzero(part.labels >= 0)
    if len(labelled) == len(part.labels):
        return part
    return LabelledImages(Subset(part.images, labelled), part.labels[labelled])
