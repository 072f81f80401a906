"""Names of models and optimizers that are judged without importing timm, which takes seconds, are judged as timm judges them."""

import subprocess
import sys

import pytest
import timm
from timm.optim import list_optimizers

from tests.patience import PATIENCE
from training.optimizer import _USUAL
from training.towers.image import _registered


def test_usual_optimizers_are_timms() -> None:
    assert set(_USUAL) <= set(list_optimizers())


@pytest.mark.parametrize("name", [*timm.list_models()[::97], "vit_small_patch16_224.dino", "resnet50.a1_in1k"])
def test_models_that_timm_has_are_found_in_its_source(name: str) -> None:
    assert timm.is_model(name) and _registered(name)


@pytest.mark.parametrize(
    "name", ["", "resnet51", "_create_vision_transformer", "register_model", "checkpoint_filter_fn", "a|b", "("]
)
def test_others_are_not(name: str) -> None:
    assert not timm.is_model(name) and not _registered(name)


def test_a_config_is_read_without_timm_and_ray() -> None:
    code = (
        "import sys; from pipelines.program.settings import load; from training.config import TrainSettings; "
        "load(TrainSettings, 'training/configs/openmoji.yaml'); print({'timm', 'ray', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert ended.stdout == "set()\n"
