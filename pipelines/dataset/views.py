"""Views: the crops and augmentations of an image that training and evaluation use.

The parameters of a random view are drawn first, from one generator, and then applied. So views are functions of (seed, epoch,
sample, view), an image is decoded once for all its views, and objectives can read what was done to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field

from pipelines.dataset import pixels
from pipelines.dataset.images import Box, Opened
from pipelines.dataset.rand_augment import Operation, RandAugment, operate
from pipelines.dataset.strong_views import StrongAugment, StrongViews
from pipelines.program.randomness import generator
from pipelines.program.settings_base import Settings


class Augment(Settings):
    """The random view of an image in training."""

    crop_scale: tuple[float, float] = Field((0.5, 1.0), description="area of the random crop, as a share of the image")
    crop_ratio: tuple[float, float] = Field((0.75, 1.3333), description="width / height of the random crop")
    flip: bool = Field(True, description="mirror every second view")
    rand_augment: RandAugment | None = Field(None, description="RandAugment after crop and mirror; null: none")


@dataclass(frozen=True)
class Jitter:
    """Changes of colour: three factors, a hue shift in turns of the colour circle, and the order in which they are applied."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    order: tuple[int, ...]


@dataclass(frozen=True)
class Drawn:
    """The parameters of one view, applied in this order: crop and resize, colours, gray, blur, mirror, RandAugment."""

    box: Box  # of the displayed image, in its pixels
    flip: bool = False
    jitter: Jitter | None = None
    gray: bool = False
    sigma: float | None = None  # of the blur, in pixels of the view
    operations: tuple[Operation, ...] = ()

    def code(self, size: tuple[int, int]) -> list[float]:
        """The augmentation code of an image of this width and height: thirteen numbers, as UniCLIP's head reads them.

        Left, top, width and height of the crop as shares of the image; mirrored; recoloured, with brightness, contrast and
        saturation less 1, and hue; gray; blurred, with half of sigma. RandAugment's operations are not included.
        """
        (width, height), (left, top, right, bottom), jitter = size, self.box, self.jitter
        crop = [left / width, top / height, (right - left) / width, (bottom - top) / height]
        colours = [0.0] * 5
        if jitter is not None:
            colours = [1.0, jitter.brightness - 1, jitter.contrast - 1, jitter.saturation - 1, jitter.hue]
        blur = [0.0, 0.0] if self.sigma is None else [1.0, self.sigma / 2]
        return [*crop, float(self.flip), *colours, float(self.gray), *blur]


# The code of an unchanged image.
UNCHANGED = (0.0, 0.0, 1.0, 1.0, *(0.0,) * 9)


def train_view(image: Opened | Image.Image, size: int, augment: Augment, random: np.random.Generator) -> np.ndarray:
    """A random crop of the chosen area and ratio, resized to `size`, perhaps mirrored; uint8 [3, size, size].

    A JPEG is decoded no larger than the crop needs.
    """
    return apply(image, size, [draw(image.size, augment, random)])[0]


def eval_view(image: Opened | Image.Image, size: int) -> np.ndarray:
    """The centre square, resized to `size`; uint8 [3, size, size].

    Decoded at full size, so that scores do not depend on how a decoder reduces images, and resized by Pillow's bicubic, as in
    the papers' and open_clip's evaluation.
    """
    rgb = image.rgb() if isinstance(image, Opened) else image
    return np.asarray(ImageOps.fit(rgb, (size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def draw(size: tuple[int, int], augment: Augment, random: np.random.Generator) -> Drawn:
    """A plain view of an image of this width and height."""
    box = _box(size, augment.crop_scale, augment.crop_ratio, random)
    flip = augment.flip and bool(random.random() < 0.5)
    return Drawn(box, flip, operations=augment.rand_augment.draw(random) if augment.rand_augment else ())


def draw_strong(size: tuple[int, int], augment: StrongAugment, random: np.random.Generator) -> Drawn:
    """A strong view of an image of this width and height."""
    box = _box(size, augment.crop_scale, augment.crop_ratio, random)
    # All numbers are drawn, whether used or not, so no setting changes what another one draws.
    flip, jitter, gray, blur = random.random(4)
    strengths = np.asarray([augment.brightness, augment.contrast, augment.saturation, augment.hue])
    brightness, contrast, saturation, hue = ([1, 1, 1, 0] + strengths * random.uniform(-1, 1, 4)).tolist()
    order, sigma = tuple(random.permutation(4).tolist()), float(random.uniform(*augment.blur_sigma))
    return Drawn(
        box,
        augment.flip and bool(flip < 0.5),
        Jitter(brightness, contrast, saturation, hue, order) if jitter < augment.jitter else None,
        bool(gray < augment.gray),
        sigma if blur < augment.blur else None,
    )


def draw_views(
    size: tuple[int, int], augment: Augment | None, strong: StrongViews | None, key: tuple[int, int, int]
) -> list[Drawn]:
    """The random views of an image of this width and height: the plain one, if there is an `augment`, and strong ones.

    `key`: seed, epoch and sample.
    """
    drawn: list[Drawn] = []
    if augment is not None and strong is not None and strong.all_strong:
        drawn.append(draw_strong(size, strong.augment, generator("strong", *key, strong.count)))
    elif augment is not None:
        drawn.append(draw(size, augment, generator("view", *key, 0)))
    if strong is not None:
        drawn += [draw_strong(size, strong.augment, generator("strong", *key, number)) for number in range(strong.count)]
        if strong.whole is not None:
            drawn.append(draw_strong(size, strong.whole, generator("whole", *key)))
    return drawn


def apply(image: Opened | Image.Image, size: int, drawn: Sequence[Drawn]) -> list[np.ndarray]:
    """Views of an image, uint8 [3, size, size] each, from decoding it once, as small as the narrowest crop allows."""
    boxes = [view.box for view in drawn]
    if isinstance(image, Opened):
        width, height = image.size
        across = max(size / (right - left) for left, _, right, _ in boxes)
        down = max(size / (bottom - top) for _, top, _, bottom in boxes)
        rgb = image.rgb((width * across, height * down))
        boxes = [image.reduced(box, rgb) for box in boxes]
    else:
        rgb = image
    return [_view(rgb, box, size, view) for box, view in zip(boxes, drawn, strict=True)]


def _box(size: tuple[int, int], scale: tuple[float, float], ratios: tuple[float, float], random: np.random.Generator) -> Box:
    """A crop of random area and aspect ratio; the whole image if ten tries do not fit."""
    width, height = size
    for _ in range(10):
        area = random.uniform(*scale) * width * height
        ratio = np.exp(random.uniform(*np.log(ratios)))
        w, h = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if w <= width and h <= height:
            x, y = random.uniform(0, width - w), random.uniform(0, height - h)
            return x, y, x + w, y + h
    return 0.0, 0.0, float(width), float(height)


def _view(image: Image.Image, box: Box, size: int, drawn: Drawn) -> np.ndarray:
    view = pixels.resized(image, box, size)
    if drawn.jitter is not None:
        view = _jittered(view, drawn.jitter)
    if drawn.gray:
        view = pixels.gray(view)
    if drawn.sigma is not None:
        view = pixels.blurred(view, drawn.sigma)
    if drawn.flip:
        view = view[:, ::-1]
    if drawn.operations:
        operated = Image.fromarray(view)
        for operation in drawn.operations:
            operated = operate(operated, operation)
        view = np.asarray(operated)
    return view.transpose(2, 0, 1)  # not contiguous: it is copied into the batch anyway


def _jittered(view: np.ndarray, jitter: Jitter) -> np.ndarray:
    factors = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    changes = (pixels.brighter, pixels.contrasted, pixels.saturated, pixels.hue_shifted)
    for step in jitter.order:
        view = changes[step](view, factors[step])
    return view
