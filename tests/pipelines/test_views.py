"""Views: a function of their key, the same whatever way an image came, and the right part of it."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset import pixels
from pipelines.dataset.images import Box, decode, open_image
from pipelines.dataset.views import Augment, eval_view, train_view
from pipelines.program.randomness import generator
from tests.pipelines.corpus import encoded
from tests.pipelines.pixels import UPRIGHT, exif, gradient, noise, oriented_jpeg

BICUBIC = Image.Resampling.BICUBIC


@pytest.mark.parametrize(("width", "height"), [(256, 256), (256, 128)])
def test_a_training_view_is_a_crop_of_the_chosen_area_and_ratio(width: int, height: int) -> None:
    """On an image whose colours are coordinates the crop's corners can be read back from the view."""
    image, size, augment = gradient(width, height), 32, Augment(crop_scale=(0.2, 0.6), crop_ratio=(0.8, 1.25))
    shares, ratios, mirrored = [], [], []
    for sample in range(200):
        view = train_view(image, size, augment, generator("view", 0, 0, sample)).astype(float)
        assert view.shape == (3, size, size)
        # Edges are blurred against the border, so slopes are read from the inside.
        slope_x = (view[0, size // 2, -5] - view[0, size // 2, 4]) / (size - 9)
        slope_y = (view[1, -5, size // 2] - view[1, 4, size // 2]) / (size - 9)
        mirrored.append(slope_x < 0)
        w, h = abs(slope_x) * size, slope_y * size
        shares.append(w * h / (width * height))
        ratios.append(w / h)
    assert 0.18 < min(shares) < 0.26 and 0.54 < max(shares) < 0.63
    assert 0.76 < min(ratios) < 0.88 and 1.13 < max(ratios) < 1.31
    assert 70 < sum(mirrored) < 130


def test_views_are_a_function_of_the_key_alone() -> None:
    image, augment = Image.fromarray(noise(40, 40)), Augment()
    first = train_view(image, 24, augment, generator("view", 3, 1, 7))
    np.random.seed(1)
    assert np.array_equal(first, train_view(image, 24, augment, generator("view", 3, 1, 7)))
    for key in [(4, 1, 7), (3, 2, 7), (3, 1, 8)]:
        assert not np.array_equal(first, train_view(image, 24, augment, generator("view", *key)))


def test_without_flip_nothing_is_mirrored_and_the_whole_may_be_shown() -> None:
    image, augment = gradient(64, 64), Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    for sample in range(8):
        assert np.array_equal(train_view(image, 64, augment, generator("view", sample)), np.asarray(image).transpose(2, 0, 1))


def test_a_crop_that_never_fits_falls_back_to_the_whole_image() -> None:
    """A very wide image holds no square of its whole area."""
    image, augment = gradient(200, 10), Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    view = train_view(image, 20, augment, generator("view", 0))
    assert view[0, 10, 0] < 12 and view[0, 10, -1] > 188


def by_pillow(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """Bicubic, columns before rows: Pillow chooses the order by the sizes if it does both in one call."""
    left, top, right, bottom = box
    columns = image.resize((image.width, size), BICUBIC, box=(0, top, image.width, bottom))
    return np.asarray(columns.resize((size, size), BICUBIC, box=(left, 0, right, size)))


def differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By how many levels."""
    return np.abs(one.astype(np.int64) - other)


def view_by_hand(data: bytes, size: int, augment: Augment, random: np.random.Generator) -> np.ndarray:
    """What a view must be, to a level, of an image without transparency or orientation: ten tries for a box, x before y."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = (0.0, 0.0, float(image.width), float(image.height))
    for _ in range(10):
        area = random.uniform(augment.crop_scale[0], augment.crop_scale[1]) * image.width * image.height
        ratio = np.exp(random.uniform(np.log(augment.crop_ratio[0]), np.log(augment.crop_ratio[1])))
        width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if width <= image.width and height <= image.height:
            left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
            box = (left, top, left + width, top + height)
            break
    view = by_pillow(image, box, size)
    if augment.flip and random.random() < 0.5:
        view = view[:, ::-1]
    return view.transpose(2, 0, 1)


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {}), ("BMP", {}), ("JPEG", {})])
@pytest.mark.parametrize(("height", "width"), [(90, 120), (300, 200), (20, 200)])
def test_a_view_is_what_it_always_was(file_format: str, options: dict, height: int, width: int) -> None:
    """Runs can be repeated years later: the same draws in the same order, the same pixels to one level, also where the view is
    larger than the crop. A JPEG's if it comes out whole."""
    data, augment, size = encoded(Image.fromarray(noise(height, width)), file_format, **options), Augment(crop_scale=(0.3, 1)), 24
    for sample in range(12):
        expected = view_by_hand(data, size, augment, generator("view", sample))
        whole = train_view(decode(data), size, augment, generator("view", sample))
        assert differ(whole, expected).max() <= 1
        if file_format != "JPEG":
            assert np.array_equal(train_view(open_image(data), size, augment, generator("view", sample)), whole)


@pytest.mark.parametrize("size", [24, 64, 224])
def test_a_crop_of_a_photo_is_pillows_bicubic(size: int) -> None:
    """Rows or columns first is the same but where sharp edges overshoot: two levels at most on what is like a photo."""
    random, image, found = np.random.default_rng(size), Image.fromarray(photo(320, 200)), []
    for _ in range(10):
        width, height = random.uniform(0.3, 1, 2) * image.size
        left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
        box = (left, top, left + width, top + height)
        found.append(differ(pixels.resized(image, box, size), np.asarray(image.resize((size, size), BICUBIC, box=box))))
    assert np.max(found) <= 2 and np.mean(found) < 0.3


def photo(width: int, height: int) -> np.ndarray:
    """Like a photograph: neighbours are alike, at all scales (amplitudes fall with frequency), on a slope that tells places."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    spectrum = np.fft.rfft2(np.random.default_rng(0).normal(size=(height, width))) / np.maximum(frequency, 1 / width)
    texture = np.fft.irfft2(spectrum, (height, width))
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x / width, y / height, 1 - x / width], axis=-1)
    return (160 * slopes + 48 + 12 * (texture / texture.std())[..., None]).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("width", "height"), [(1203, 801), (797, 1001)])
def test_a_view_of_a_jpeg_that_comes_out_smaller_shows_the_same(orientation: int, width: int, height: int) -> None:
    """Colours are coordinates here, 160 steps for a side: a box that is off by one decoded pixel shows as 1.1 to 1.6 steps.

    The sides are no multiples of 8: what a decoder reduces is then larger than 1/8, and its last pixels stand for less.
    """
    pixels, augment, size = photo(width, height), Augment(crop_scale=(0.3, 0.9)), 48
    data = oriented_jpeg(pixels, orientation)
    for sample in range(6):
        view = train_view(open_image(data), size, augment, generator("view", sample)).astype(float)
        whole = train_view(decode(data), size, augment, generator("view", sample)).astype(float)
        difference = view - whole
        assert difference.any()  # it was decoded smaller
        assert np.abs(difference).mean() < 1 and np.abs(difference.mean(axis=(1, 2))).max() < 0.3
        # At the ends, too: a box of a wrong size would be off by opposite amounts.
        for end in (difference[:, :, :4], difference[:, :, -4:], difference[:, :4], difference[:, -4:]):
            assert np.abs(end.mean(axis=(1, 2))).max() < 0.4


def test_the_crop_of_a_smaller_jpeg_still_has_the_pixels_of_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """No view is enlarged from a decoder's shortcut: the box that is resized is at least as large as the view."""
    data, size, boxes, resized = oriented_jpeg(photo(640, 427), 6), 100, [], pixels.resized

    def noted(image: Image.Image, box: Box, to: int) -> np.ndarray:
        boxes.append((image.size, box))
        return resized(image, box, to)

    monkeypatch.setattr(pixels, "resized", noted)
    for sample in range(100):
        train_view(open_image(data), size, Augment(crop_scale=(0.1, 1.0)), generator("view", sample))
    sides = np.array([(right - left, bottom - top) for _, (left, top, right, bottom) in boxes])
    assert sides.min() >= size and len({image_size for image_size, _ in boxes}) >= 3  # decoded whole, by half, by a quarter


def test_the_whole_of_a_smaller_jpeg_ends_where_the_image_ends() -> None:
    """Also where it was mirrored: a box past the last pixel, be it by a rounding error, would be refused."""
    augment = Augment(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=False)
    for width in range(65, 300):
        for orientation in (1, 3):
            data = encoded(Image.new("RGB", (width, 64)), "JPEG", exif=exif(orientation))
            assert train_view(open_image(data), 15, augment, generator("view", 0)).shape == (3, 15, 15)


def test_the_evaluation_view_is_never_decoded_smaller() -> None:
    data = oriented_jpeg(photo(600, 400), 6)
    assert np.array_equal(eval_view(open_image(data), 32), eval_view(decode(data), 32))


def test_the_evaluation_view_is_the_centre_square() -> None:
    wide = noise(20, 40)
    assert np.array_equal(eval_view(Image.fromarray(wide), 20), wide[:, 10:30].transpose(2, 0, 1))
    assert np.array_equal(eval_view(Image.fromarray(wide.transpose(1, 0, 2)), 20), wide[:, 10:30].transpose(2, 1, 0))
    small = eval_view(gradient(256, 128), 32)
    assert small.shape == (3, 32, 32) and small.dtype == np.uint8
    # Columns 64 to 192 and all rows: four pixels each, whose middles are at 64 + 4 i + 1.5.
    assert np.abs(small[0, 16, 2:-2].astype(float) - (65.5 + 4 * np.arange(2, 30))).max() <= 1
    assert np.abs(small[1, 2:-2, 16].astype(float) - (1.5 + 4 * np.arange(2, 30))).max() <= 1


@pytest.mark.parametrize("size", [12, 24, 100])
def test_the_evaluation_view_is_exactly_what_it_always_was(size: int) -> None:
    """Published scores can be computed again years later: bicubic, from the whole of the centre square."""
    image = Image.fromarray(noise(48, 64))
    expected = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=(8, 0, 56, 48))).transpose(2, 0, 1)
    assert np.array_equal(eval_view(image, size), expected)


@pytest.mark.parametrize("changed", [{"crop_scale": (0.5,)}, {"crop_scale": "half"}, {"flip": "perhaps"}])
def test_augmentation_settings_of_a_wrong_kind_are_refused(changed: dict) -> None:
    with pytest.raises(ValueError, match=r"crop_scale|flip"):
        Augment.model_validate(changed)
