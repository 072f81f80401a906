"""Strong views: a function of their key, as told by what was drawn, and as torchvision makes them."""

import colorsys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from cykooz_resizer import CpuExtensions, Resizer
from PIL import Image
from scipy.ndimage import gaussian_filter
from torchvision.transforms import functional as tv  # type: ignore[import-untyped]

from pipelines.dataset import pixels
from pipelines.dataset.batch import Batch, Needs, columns
from pipelines.dataset.images import open_image
from pipelines.dataset.order import Order
from pipelines.dataset.prepared import Prepared
from pipelines.dataset.stream import Stream, Worker
from pipelines.dataset.strong_views import StrongAugment, StrongViews
from pipelines.dataset.views import UNCHANGED, Augment, Drawn, Jitter, apply, draw, draw_strong, eval_view
from pipelines.program.randomness import generator
from tests.pipelines.corpus import encoded
from tests.pipelines.pixels import gradient, noise

PLAIN = StrongAugment(jitter=0, gray=0, blur=0)
TWO = StrongViews(StrongAugment(crop_scale=(0.2, 1.0)), 2)


def drawn(augment: StrongAugment, count: int = 1000) -> list[Drawn]:
    return [draw_strong((100, 80), augment, generator("strong", 0, 0, sample, 0)) for sample in range(count)]


def show(image: Image.Image, size: int, one: Drawn) -> np.ndarray:
    (view,) = apply(image, size, [one])
    return view.transpose(1, 2, 0)


def test_each_change_is_made_as_often_and_as_much_as_was_asked_for() -> None:
    found = drawn(StrongAugment(), 2000)
    jitters = [one.jitter for one in found if one.jitter is not None]
    sigmas = [one.sigma for one in found if one.sigma is not None]
    for share, expected in [
        (len(jitters), 0.8),
        (sum(one.gray for one in found), 0.2),
        (len(sigmas), 0.5),
        (sum(one.flip for one in found), 0.5),
    ]:
        assert abs(share / 2000 - expected) < 0.05
    for values, low, high in [
        ([j.brightness for j in jitters], 0.6, 1.4),
        ([j.contrast for j in jitters], 0.6, 1.4),
        ([j.saturation for j in jitters], 0.6, 1.4),
        ([j.hue for j in jitters], -0.1, 0.1),
        (sigmas, 0.1, 2.0),
        ([(r - x) * (b - y) / (100 * 80) for x, y, r, b in (one.box for one in found)], 0.08, 1.0),
    ]:
        margin = 0.02 * (high - low)
        assert low <= min(values) < low + margin and high - 5 * margin < max(values) <= high + 1e-9
    assert len({j.order for j in jitters}) == 24, "colours change in any order"


def test_a_setting_changes_nothing_else_that_is_drawn() -> None:
    for one, other in zip(drawn(StrongAugment(), 50), drawn(PLAIN, 50), strict=True):
        assert replace(one, jitter=None, gray=False, sigma=None) == other


def differ(one: np.ndarray, other: Image.Image | np.ndarray) -> np.ndarray:
    """By how many levels."""
    return np.abs(one.astype(float) - np.asarray(other))


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_each_colour_changes_as_in_torchvision(factor: float) -> None:
    image = Image.fromarray(noise(32, 32))
    given = np.asarray(image)
    assert np.array_equal(pixels.brighter(given, factor), tv.adjust_brightness(image, factor))
    assert np.array_equal(pixels.contrasted(given, factor), tv.adjust_contrast(image, factor))
    assert (
        differ(pixels.saturated(given, factor), tv.adjust_saturation(image, factor)).max() <= 1
    )  # which cuts, and does not round
    assert differ(pixels.gray(given), tv.to_grayscale(image, 3)).max() <= 1


@pytest.mark.parametrize("turns", [-0.4, -0.1, 0.03, 0.1, 0.5])
def test_hue_turns_by_as_much_as_in_torchvision_and_is_as_exact(turns: float) -> None:
    """Both have 256 steps of hue, saturation and value, and differ in how they round. The reference has real numbers."""
    image = Image.fromarray(noise(32, 32))
    exact = np.empty((32, 32, 3))
    for place in np.ndindex(32, 32):
        hue, saturation, value = colorsys.rgb_to_hsv(*(np.asarray(image)[place] / 255))
        exact[place] = 255 * np.asarray(colorsys.hsv_to_rgb((hue + int(turns * 255) / 256) % 1, saturation, value))
    ours, theirs = (
        differ(pixels.hue_shifted(np.asarray(image), turns), exact),
        differ(np.asarray(tv.adjust_hue(image, turns)), exact),
    )
    assert ours.max() < 10 and ours.mean() < theirs.mean() < 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)])
def test_colours_change_in_the_order_that_was_drawn(order: tuple[int, ...]) -> None:
    image = Image.fromarray(noise(40, 40)).resize((32, 32))
    for seed in range(10):
        factors = np.random.default_rng(seed).uniform(0.6, 1.4, 3).tolist()
        hue = float(np.random.default_rng(seed).uniform(-0.1, 0.1))
        steps = [
            lambda image, f=factors: tv.adjust_brightness(image, f[0]),
            lambda image, f=factors: tv.adjust_contrast(image, f[1]),
            lambda image, f=factors: tv.adjust_saturation(image, f[2]),
            lambda image, h=hue: tv.adjust_hue(image, h),
        ]
        images = {}
        for chosen in (order, order[::-1]):
            images[chosen] = image
            for step in chosen:
                images[chosen] = steps[step](images[chosen])
        found = show(image, 32, Drawn((0, 0, 32, 32), jitter=Jitter(*factors, hue, order)))
        assert differ(found, images[order]).mean() < min(1.5, differ(found, images[order[::-1]]).mean())


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.5, 2.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    """Not Pillow's, which is made of boxes: at a sigma of 0.3 that is off by 30 levels."""
    given = noise(32, 32)
    exact = np.stack([gaussian_filter(given[..., c].astype(float), sigma, mode="nearest") for c in range(3)], axis=-1)
    assert differ(pixels.blurred(given, sigma), exact).max() < 1.5
    assert np.array_equal(show(Image.fromarray(given), 32, Drawn((0, 0, 32, 32), sigma=sigma)), pixels.blurred(given, sigma))


def test_gray_has_no_colour() -> None:
    image = Image.fromarray(noise(32, 32))
    gray = show(image, 32, Drawn((0, 0, 32, 32), gray=True))
    assert np.array_equal(gray, pixels.gray(np.asarray(image))) and np.ptp(gray, axis=2).max() == 0


def test_a_cpu_without_simd_makes_the_same_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nodes of different kinds read the same pixels, but for the rounding of saturation and hue."""
    image, given = Image.fromarray(noise(90, 120)), noise(32, 32)

    def made() -> list[np.ndarray]:
        resized = [pixels.resized(image, (3.3, 4.4, 83.1, 61.9), size) for size in (24, 48, 96)]
        recoloured = [pixels.brighter(given, 1.3), pixels.contrasted(given, 1.3), pixels.gray(given), pixels.blurred(given, 1.2)]
        return [*resized, *recoloured, pixels.saturated(given, 1.3), pixels.hue_shifted(given, 0.1)]

    class Plain(Resizer):
        def __init__(self) -> None:
            super().__init__()
            self.cpu_extensions = CpuExtensions.none

    fast = made()
    monkeypatch.setattr(pixels, "Resizer", Plain)
    cv2.setUseOptimized(False)
    try:
        slow = made()
    finally:
        cv2.setUseOptimized(True)
    *same, saturation, hue = [differ(one, other).max() for one, other in zip(fast, slow, strict=True)]
    assert max(same) == 0 and saturation <= 1 and hue <= 1


def test_what_was_drawn_tells_the_view() -> None:
    """On an image whose colours are coordinates: the crop that is told is the crop that is shown."""
    image, size = gradient(256, 128), 32
    centres = (np.arange(size) + 0.5) / size
    for one in [draw_strong(image.size, PLAIN, generator("strong", 0, 0, sample, 0)) for sample in range(50)]:
        left, top, right, bottom = one.box
        across = left + centres * (right - left)
        view = show(image, size, one).astype(float)
        pixels = np.asarray(image).astype(float)
        expected_x = np.interp((across[::-1] if one.flip else across) - 0.5, np.arange(256), pixels[0, :, 0])
        expected_y = np.interp(top + centres * (bottom - top) - 0.5, np.arange(128), pixels[:, 0, 1])
        inside = slice(3, -3)
        assert np.abs(view[size // 2, inside, 0] - expected_x[inside]).max() < 3
        assert np.abs(view[inside, size // 2, 1] - expected_y[inside]).max() < 3


def test_a_code_is_enough_to_make_the_view_again() -> None:
    """Of all that a code holds: colours change here in one order, which it does not tell."""
    image = Image.fromarray(noise(24, 30)).resize((240, 192), Image.Resampling.BICUBIC)
    for sample in range(40):
        one = draw_strong(image.size, StrongAugment(), generator("strong", 0, 0, sample, 0))
        if one.jitter is not None:
            one = replace(one, jitter=replace(one.jitter, order=(0, 1, 2, 3)))
        code = np.asarray(one.code(image.size), dtype=np.float32)
        assert code.shape == (len(UNCHANGED),)
        x, y, w, h, flip, recoloured, brightness, contrast, saturation, hue, gray, blurred, half = code.tolist()
        again = Drawn(
            (x * 240, y * 192, (x + w) * 240, (y + h) * 192),
            bool(flip),
            Jitter(brightness + 1, contrast + 1, saturation + 1, hue, (0, 1, 2, 3)) if recoloured else None,
            bool(gray),
            2 * half if blurred else None,
        )
        difference = np.abs(show(image, 32, one).astype(float) - show(image, 32, again))
        assert difference.max() <= 8 and difference.mean() < 0.2
    assert Drawn((0, 0, 240, 192)).code(image.size) == list(UNCHANGED)


def test_one_decoding_serves_all_views() -> None:
    """Of a PNG each is what it would be alone; a JPEG is decoded as large as the smallest crop needs."""
    one = draw((200, 160), Augment(), generator("view", 0))
    others = [draw_strong((200, 160), TWO.augment, generator("strong", 0, number)) for number in range(3)]
    png = encoded(Image.fromarray(noise(160, 200)), "PNG")
    together = apply(open_image(png), 24, [one, *others])
    for view, alone in zip(together, [one, *others], strict=True):
        assert np.array_equal(view, apply(open_image(png), 24, [alone])[0])
    smooth = Image.fromarray(noise(20, 25)).resize((200, 160), Image.Resampling.BICUBIC)
    jpeg = encoded(smooth, "JPEG", quality=95)
    for view, expected in zip(apply(open_image(jpeg), 24, [one, *others]), apply(smooth, 24, [one, *others]), strict=True):
        assert np.abs(view.astype(float) - expected).mean() < 4


def batches(stamps: Prepared, strong: StrongViews | None, augment: Augment | None, worker: Worker, first: int = 0) -> list[Batch]:
    """With codes where there are strong views."""
    order = Order(stamps, "train", None, seed=2, global_batch_size=8)
    wanted = columns(Needs(sample_id=True, strong=strong, codes=strong is not None), False, True) - {"text_features"}
    stream = Stream(stamps, frozenset(wanted), 2, 12, augment, strong=strong)
    return list(stream.training(order, first, 2 * order.steps_per_epoch, worker))


def test_strong_views_of_a_stream_do_not_depend_on_workers(stamps: Prepared) -> None:
    """They are those of their key, the plain view stays what it is without them, and epochs differ."""
    alone = batches(stamps, TWO, Augment(), Worker(0, 1, torch.device("cpu"), 1))
    plain = batches(stamps, None, Augment(), Worker(0, 1, torch.device("cpu"), 1))
    halves = [batches(stamps, TWO, Augment(), Worker(rank, 2, torch.device("cpu"), 1), first=1) for rank in range(2)]
    for whole, left, right in zip(alone[1:], *halves, strict=True):
        assert torch.equal(whole["strong"], torch.cat([left["strong"], right["strong"]]))
    seen: dict[int, list[torch.Tensor]] = {}
    images = dict(zip(range(stamps.num_samples), stamps.images(np.arange(stamps.num_samples)), strict=True))
    for step, (batch, without) in enumerate(zip(alone, plain, strict=True)):
        assert torch.equal(batch["image"], without["image"])
        assert batch["strong"].shape == (8, 2, 3, 12, 12) and batch["strong"].dtype == torch.uint8
        epoch = step // (len(alone) // 2)
        for sample, views, codes in zip(batch["sample_id"].tolist(), batch["strong"], batch["codes"], strict=True):
            seen.setdefault(sample, []).append(views)
            data = images[sample]
            assert isinstance(data, bytes)
            image = open_image(data)
            for number in range(2):
                one = draw_strong(image.size, TWO.augment, generator("strong", 2, epoch, sample, number))
                assert np.array_equal(views[number].numpy(), apply(open_image(data), 12, [one])[0])
                torch.testing.assert_close(codes[1 + number], torch.tensor(one.code(image.size), dtype=torch.float32))
            plain_one = draw(image.size, Augment(), generator("view", 2, epoch, sample, 0))
            torch.testing.assert_close(codes[0], torch.tensor(plain_one.code(image.size), dtype=torch.float32))
    assert any(not torch.equal(found[0], found[1]) for found in seen.values() if len(found) > 1)


def test_all_views_may_be_strong(stamps: Prepared) -> None:
    """The plain one is then one more of them, by the next number."""
    (batch, *_) = batches(stamps, replace(TWO, all_strong=True), Augment(), Worker(0, 1, torch.device("cpu"), 1))
    (sample, *_), (data, *_) = batch["sample_id"].tolist(), stamps.images(batch["sample_id"][:1].numpy())
    assert isinstance(data, bytes)
    for number, view in enumerate([*batch["strong"][0], batch["image"][0]]):
        one = draw_strong(open_image(data).size, TWO.augment, generator("strong", 2, 0, sample, number))
        assert np.array_equal(view.numpy(), apply(open_image(data), 12, [one])[0])


def test_views_may_begin_late_and_have_another_among_them(stamps: Prepared) -> None:
    """Batches before have the plain view only, and the same; one more view has an augmentation and a key of its own."""
    order = Order(stamps, "train", None, seed=2, global_batch_size=8)
    strong, steps = replace(TWO, whole=PLAIN, begin=0.4), 2 * order.steps_per_epoch
    start, worker = strong.first_step(steps), Worker(0, 1, torch.device("cpu"), 1)
    assert 0 < start == round(0.4 * steps) < steps - 1
    needs = Needs(sample_id=True, strong=strong)
    wanted = frozenset(columns(needs, False, True) - {"text_features"})
    late = Stream(stamps, wanted, 2, 12, Augment(), strong=strong, strong_from=start)
    found = list(late.training(order, 0, steps, worker))
    always = list(replace(late, strong_from=0).training(order, start - 1, steps, worker))
    resumed = list(late.training(order, start - 1, steps, worker))
    assert [set(batch) for batch in found] == [{"sample_id", "image"}] * start + [wanted] * (steps - start)
    assert torch.equal(found[start - 1]["image"], always[0]["image"])
    for batch, one, other in zip(found[start:], always[1:], resumed[1:], strict=True):
        assert all(torch.equal(batch[name], one[name]) and torch.equal(batch[name], other[name]) for name in wanted)  # type: ignore[literal-required]
    sample, epoch = int(found[-1]["sample_id"][0]), order.epoch_of(steps - 1)
    (data,) = stamps.images(np.asarray([sample]))
    assert isinstance(data, bytes)
    whole = draw_strong(open_image(data).size, PLAIN, generator("whole", 2, epoch, sample))
    assert np.array_equal(found[-1]["whole"][0].numpy(), apply(open_image(data), 12, [whole])[0])
    assert found[-1]["strong"].shape == (8, 2, 3, 12, 12)


def test_strong_views_beside_the_centre_view(stamps: Prepared) -> None:
    (batch, *_) = batches(stamps, TWO, None, Worker(0, 1, torch.device("cpu"), 1))
    (data,) = stamps.images(batch["sample_id"][:1].numpy())
    assert isinstance(data, bytes)
    assert np.array_equal(batch["image"][0].numpy(), eval_view(open_image(data), 12))
    assert batch["strong"][0].float().std() > 0
    assert batch["codes"][0, 0].tolist() == list(UNCHANGED)
