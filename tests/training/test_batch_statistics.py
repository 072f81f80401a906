"""Towers that compute statistics over rows: refused if a step comes in parts, or if workers exchange no statistics."""

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
from torch import nn

from tests.refusals import refused
from tests.training.squares import planner, write_root
from training.dry_run import check_build
from training.plan import Plan
from training.towers.base import batch_statistics, synchronised
from training.towers.image import TimmSettings


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """The image tower is a network with BatchNorm, and trains."""
    root = tmp_path_factory.mktemp("statistics")
    write_root(root)
    make = planner(root)
    return lambda **overrides: make(**{"image_tower__mode": "trainable"} | overrides)


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"accumulate": 2}, "accumulate"),
        ({"accumulate": 2, "resources__num_workers": 2, "resources__use_gpu": True}, "accumulate"),
        ({"resources__num_workers": 2}, "resources.num_workers"),
        ({"resources__num_workers": [1, 2]}, "resources.num_workers"),
    ],
    ids=["parts", "parts-on-gpus", "workers", "range"],
)
def test_a_tower_with_batch_norm_that_trains_is_refused(
    plan_of: Callable[..., Plan], overrides: dict[str, Any], key: str
) -> None:
    with refused(key, "image_tower's network.", "BatchNorm", "2", f"{key}=1", remedy="image_tower.batch_norm=frozen"):
        check_build(plan_of(**overrides))


def test_a_block_that_runs_again_would_update_statistics_twice(plan_of: Callable[..., Plan]) -> None:
    with refused("image_tower.recompute", "image_tower's network.", "BatchNorm", remedy="image_tower.batch_norm=frozen"):
        check_build(plan_of(image_tower__recompute=True))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"image_tower__recompute": True, "image_tower__batch_norm": "frozen"},
        {"accumulate": 2, "image_tower__batch_norm": "frozen"},
        {"accumulate": 2, "image_tower__mode": "frozen"},
        {"accumulate": 2, "resources__num_workers": 2, "image_tower__mode": "locked"},
        {"accumulate": 2, "resources__num_workers": 2, "image_tower": {"name": "conv", "image_size": 16, "channels": [8, 16]}},
        {"resources__num_workers": 2, "resources__use_gpu": True},
    ],
    ids=["whole", "recomputed", "statistics-kept", "frozen", "locked", "group-norm", "synchronised"],
)
def test_what_is_exact_is_not_refused(plan_of: Callable[..., Plan], overrides: dict[str, Any]) -> None:
    if "image_tower" in overrides:
        overrides = {"image_tower__mode": "trainable"} | overrides
    check_build(plan_of(**overrides))


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (lambda: nn.BatchNorm2d(8), True),
        (lambda: nn.BatchNorm2d(8, affine=False, track_running_stats=False), True),
        (lambda: nn.BatchNorm2d(8).eval(), False),
        (lambda: timm.layers.BatchNormAct2d(8), True),
        (lambda: timm.layers.EvoNorm2dB0(8), True),
        (lambda: nn.InstanceNorm2d(8, track_running_stats=True), True),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)), True),
        (lambda: nn.InstanceNorm2d(8), False),
        (lambda: nn.GroupNorm(2, 8), False),
        (lambda: nn.Dropout(), False),
    ],
    ids=["batch", "without-running", "kept", "batch-act", "evo", "instance", "spectral", "plain-instance", "group", "dropout"],
)
def test_what_sees_more_than_a_row_is_found(layer: Callable[[], nn.Module], found: bool) -> None:
    tower: Any = nn.Sequential(nn.Conv2d(3, 8, 1), layer())
    assert bool(batch_statistics(tower, torch.randn(2, 3, 4, 4))) is found


def test_synchronised_batch_norm_computes_what_the_tower_did() -> None:
    """timm's BatchNorm brings its activation along, which torch's own conversion drops."""
    tower = TimmSettings(name="timm", model="test_efficientnet", image_size=32).build().eval()
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = tower(images)
        found = synchronised(tower)(images)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in tower.modules())
    torch.testing.assert_close(found, expected)
