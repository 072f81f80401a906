"""RandAugment: what is drawn how often and how strongly, and what each operation makes of a view."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv  # type: ignore[import-untyped]

from pipelines.dataset.rand_augment import NAMES, RandAugment, operate
from pipelines.dataset.views import Augment, draw, train_view
from pipelines.program.randomness import generator
from pipelines.program.settings import validate
from tests.pipelines.pixels import gradient, noise
from tests.refusals import refused
from training.config import TrainSettings


def test_every_operation_is_drawn_as_often_and_half_of_them_made() -> None:
    found = [RandAugment().draw(generator("view", 0, 0, sample)) for sample in range(4000)]
    counts = Counter(len(operations) for operations in found)
    assert all(abs(counts[made] / 4000 - share) < 0.03 for made, share in ((0, 0.25), (1, 0.5), (2, 0.25)))
    each = Counter(name for operations in found for name, _ in operations)
    assert set(each) == set(NAMES) and all(abs(count / 4000 - 0.1) < 0.02 for count in each.values())


def test_strengths_are_those_of_the_public_code_at_seven_of_ten() -> None:
    """A brightness and a sharpness of 1.36, slopes of 0.21, 7 pixels and 21 degrees, to both sides."""
    found: dict[str, set[float]] = {name: set() for name in NAMES}
    for sample in range(2000):
        for name, strength in RandAugment(operations=2, magnitude=7).draw(generator("view", 0, 0, sample)):
            found[name].add(round(strength, 6))
    assert found["brightness"] == found["sharpness"] == {1.36}
    assert found["shear_x"] == found["shear_y"] == {-0.21, 0.21}
    assert found["translate_x"] == found["translate_y"] == {-7.0, 7.0}
    assert found["rotate"] == {-21.0, 21.0}


@pytest.mark.parametrize(
    ("name", "strength", "reference"),
    [
        ("identity", 0.0, lambda t: t),
        ("autocontrast", 0.0, tv.autocontrast),
        ("equalize", 0.0, tv.equalize),
        ("brightness", 1.36, lambda t: tv.adjust_brightness(t, 1.36)),
        ("sharpness", 1.36, lambda t: tv.adjust_sharpness(t, 1.36)),
    ],
)
def test_colours_as_torchvisions_tensors(name: str, strength: float, reference: Any) -> None:
    """Which are computed by other code than Pillow's."""
    pixels = noise(32, 32) // 2 + 40
    found = np.asarray(operate(Image.fromarray(pixels), (name, strength))).astype(int)
    expected = reference(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_moves_every_pixel_to_its_place(sign: int) -> None:
    """On an image whose colours are coordinates: 0 to 255 from left to right in red, from top to bottom in green."""
    size = 256
    image = gradient(size, size)
    y, x = np.mgrid[:size, :size].astype(float)
    c, angle = (size - 1) / 2, np.deg2rad(sign * 21)
    turned = (
        c + np.cos(angle) * (x - c) - np.sin(angle) * (y - c),  # against the clock, where y goes down
        c + np.sin(angle) * (x - c) + np.cos(angle) * (y - c),
    )
    for name, strength, origin in [
        ("shear_x", sign * 0.21, (x - sign * 0.21 * y, y)),
        ("shear_y", sign * 0.21, (x, y - sign * 0.21 * x)),
        ("translate_x", sign * 7.0, (x - sign * 7, y)),
        ("translate_y", sign * 7.0, (x, y - sign * 7)),
        ("rotate", sign * 21.0, turned),
    ]:
        found = np.asarray(operate(image, (name, strength))).astype(float)
        inside = (origin[0] > 1) & (origin[0] < size - 2) & (origin[1] > 1) & (origin[1] < size - 2)
        outside = (origin[0] < -1) | (origin[0] > size) | (origin[1] < -1) | (origin[1] > size)
        assert 0.5 < inside.mean() < 1 and outside.mean() > 0.01
        for channel in (0, 1):
            assert np.abs(found[..., channel] - origin[channel])[inside].max() < 2, name
        assert (found[outside] == 128).all(), name


def test_a_view_has_it_and_is_else_what_it_was() -> None:
    """Same crop and mirror with and without; a function of the key; other pixels."""
    image = Image.fromarray(noise(40, 40))
    plain, more = Augment(), Augment(rand_augment=RandAugment())
    changed = 0
    for sample in range(40):
        one, other = (draw(image.size, a, generator("view", 0, 0, sample)) for a in (plain, more))
        assert (one.box, one.flip) == (other.box, other.flip) and one.operations == ()
        views = [train_view(image, 24, a, generator("view", 0, 0, sample)) for a in (plain, more, more)]
        assert np.array_equal(views[1], views[2])
        same = np.array_equal(views[0], views[1])
        assert same or other.operations
        changed += not same
    assert 20 < changed < 36


def test_a_head_that_is_told_what_was_done_would_not_be_told_of_it() -> None:
    tree: dict[str, Any] = {
        "name": "run",
        "data": {"path": "data", "augment": {"rand_augment": {}}},
        "image_tower": {"name": "conv"},
        "text_tower": {"name": "bag"},
        "objective": {"name": "uniclip"},
        "epochs": 1,
        "global_batch_size": 8,
    }
    with refused("data.augment.rand_augment", "objective.name=uniclip", remedy="objective.codes=false"):
        validate(TrainSettings, tree, "run")
    assert validate(TrainSettings, tree | {"objective": {"name": "uniclip", "codes": False}}, "run").heads[0].name == "linear"
