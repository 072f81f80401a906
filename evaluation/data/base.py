"""What a reader of data hands to the tasks: images in a fixed order, and what is right about them.

A reader is a settings class with `name`, and `read(key)`, which looks at what is on disk and decodes no image yet. `key` is
where the config names it, such as `data.flickr30k`: every `UserError` begins with it. Nothing is ever downloaded: where files
are missing, the error says what belongs where.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from PIL import Image

from evaluation.sugarcrepe import Item


class Images(Protocol):
    """Images in a fixed order. Picklable and small: it travels to the processes that read them."""

    @property
    def fingerprint(self) -> str:
        """Another one where any image, or their order, may have changed."""

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        """RGB, upright, of whatever size; one by one. Raises `UserError` naming an image that cannot be used."""

    def name(self, index: int) -> str:
        """What people call the image: a file, or a key inside one."""


@dataclass(frozen=True)
class LabelledImages:
    """Images and the class of each."""

    images: Images
    labels: np.ndarray  # int64 [n], positions of classes; -1: none of them, which no score counts


@dataclass(frozen=True)
class Classification:
    """A classification set."""

    classes: tuple[tuple[str, ...], ...]  # names of each class
    templates: tuple[str, ...]
    metric: str  # the main one: top1 or mean_per_class
    test: LabelledImages
    train: LabelledImages | None = None  # for probes
    validation: LabelledImages | None = None
    imagenet: tuple[tuple[int, ...], ...] | None = None  # for each class the ImageNet classes that it is


@dataclass(frozen=True)
class Retrieval:
    """Images and captions, and which belong together."""

    images: Images
    texts: list[str]
    texts_of_image: list[np.ndarray]  # for each image the positions of all captions that are right; every caption is somewhere
    image_of_text: np.ndarray | None = None  # int64 [T], whose each caption is; None: of the first image that it is right for


@dataclass(frozen=True)
class SugarCrepe:
    """Items of SugarCrepe's subsets, and the images that they are about, each once."""

    images: Images
    items: dict[str, list[Item]]  # by subset
    image_of: dict[str, np.ndarray]  # subset -> int64 [n], positions in `images`


@dataclass(frozen=True)
class Content:
    """All that one entry of a config's `data` has to offer; whatever tasks can use it do."""

    classifications: dict[str, Classification] = field(default_factory=dict)  # by label; "" where there is only one
    retrieval: Retrieval | None = None
    sugarcrepe: SugarCrepe | None = None
    attribution: str = ""
    coverage: dict[str, int] = field(default_factory=dict)  # rows listed, found, kept, where somebody counted
