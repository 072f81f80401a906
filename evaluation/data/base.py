"""What a reader of evaluation data returns for the tasks: images in a fixed order, and their labels or captions.

A reader is a settings class with `name`, and `read(key)`, which inspects the files but decodes no image. `key` is the entry of
the config, such as `data.flickr30k`: the key of every `UserError` begins with it. Nothing is ever downloaded: where files are
missing, the error says which files belong where.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from evaluation.sugarcrepe import Item


class Images(Protocol):
    """Images in a fixed order. Picklable and small, because it is sent to the processes that read them."""

    @property
    def fingerprint(self) -> str:
        """A digest that changes where any image, or their order, may have changed."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        """RGB, upright, of any size; one by one. Raises `UserError` that names an image that cannot be used."""

    def name(self, index: int) -> str:
        """The image's name for people: a file, or a key in a file."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and the class of each."""

    images: Images
    labels: np.ndarray  # int64 [n], positions of classes; -1 for none of them: scores leave such images out


@dataclass(frozen=True)
class Classification:
    """A classification set."""

    classes: tuple[tuple[str, ...], ...]  # names of each class
    templates: tuple[str, ...]
    metric: str  # the main score: top1 or mean_per_class
    test: LabelledImages
    train: LabelledImages | None = None  # for probes
    validation: LabelledImages | None = None
    imagenet: tuple[tuple[int, ...], ...] | None = None  # ImageNet's classes of each class


@dataclass(frozen=True)
class Retrieval:
    """Images and captions, and which of them belong together."""

    images: Images
    texts: list[str]
    texts_of_image: list[np.ndarray]  # for each image the positions of its right captions; every caption has an image
    image_of_text: np.ndarray | None = None  # int64 [T], each caption's own image; None: the first for which it is right


@dataclass(frozen=True)
class SugarCrepe:
    """Items of SugarCrepe's subsets, and their images, each once."""

    images: Images
    items: dict[str, list[Item]]  # by subset
    image_of: dict[str, np.ndarray]  # subset -> int64 [n], positions in `images`


@dataclass(frozen=True)
class Content:
    """Everything in one entry of a config's `data`; each task uses the parts that suit it."""

    classifications: dict[str, Classification] = field(default_factory=dict)  # by label; "" where there is only one
    retrieval: Retrieval | None = None
    sugarcrepe: SugarCrepe | None = None
    attribution: str = ""
    coverage: dict[str, int] = field(default_factory=dict)  # rows listed, found and kept, where they were counted
