"""1,797 handwritten digits of 8 x 8 pixels, a part of scikit-learn: a classification set that needs no download.

They are the test set of UCI's Optical Recognition of Handwritten Digits. Of every ten images of a digit the first six are for
training, two for validation and two for the test, so that class frequencies are equal. All three have digits of the same writers.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from evaluation.data.base import Classification, Content, LabelledImages
from pipelines.program.settings_base import digest

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TRAIN, _VALIDATION, _TEST = range(6), range(6, 8), range(8, 10)  # of every ten images of a digit
_ATTRIBUTION = (
    "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, CC BY 4.0 "
    "(https://archive.ics.uci.edu/dataset/80); its test set, as packaged with scikit-learn"
)


def digits() -> Content:
    """The ten digits, named by word and numeral, with CLIP's template for MNIST."""
    _, labels = _loaded()
    order = np.zeros(len(labels), dtype=np.int64)  # number of each image among those of its digit
    for digit in range(10):
        order[labels == digit] = np.arange((labels == digit).sum())

    def part(numbers: range) -> LabelledImages:
        indices = np.flatnonzero(np.isin(order % 10, numbers))
        images = _Digits(indices, digest(["scikit-learn's digits", indices.tolist()]))
        return LabelledImages(images, labels[indices])

    classes = tuple((word, str(digit)) for digit, word in enumerate(_WORDS))
    classification = Classification(
        classes, ('a photo of the number: "{}".',), "top1", part(_TEST), part(_TRAIN), part(_VALIDATION)
    )
    return Content({"": classification}, attribution=_ATTRIBUTION)


@dataclass(eq=False)
class _Digits:
    """Selected images, white on black."""

    indices: np.ndarray
    fingerprint: str

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"digit {self.indices[index]}"

    def read(self, indices: np.ndarray) -> Iterator[Image.Image]:
        pixels, _ = _loaded()
        for index in self.indices[indices]:
            yield Image.fromarray(pixels[index]).convert("RGB")


@functools.lru_cache(maxsize=1)
def _loaded() -> tuple[np.ndarray, np.ndarray]:
    """Grey values uint8 [n, 8, 8], and digits int64 [n]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8), data.target.astype(np.int64)
