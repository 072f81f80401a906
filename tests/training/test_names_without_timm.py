"""Names of models and optimizers that are judged without importing timm, which takes seconds, are judged as timm judges them."""

import subprocess
import sys

import pytest
import timm
from timm.optim import list_optimizers

from tests.patience import PATIENCE
from training import timm_names
from training.optimizer import _USUAL


def test_usual_optimizers_are_timms() -> None:
    assert set(_USUAL) <= set(list_optimizers())


def test_names_are_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm")
    assert timm_names.models() == set(timm.list_models())
    # Deprecated names too: configs and checkpoints of earlier years have them.
    known = [*timm.models._registry._model_entrypoints, "vit_small_patch16_224.dino", "tv_resnet50"]
    assert len(known) > len(timm_names.models()) + 100
    assert all(timm_names.is_model(name) for name in known)
    others = ["", "resnet51", "_create_vision_transformer", "register_model", "checkpoint_filter_fn", "a|b", "("]
    assert not any(timm_names.is_model(name) for name in others)
    assert all(name in timm_names.optimizers(name) for name in list_optimizers())
    assert all(name not in timm_names.optimizers(name) for name in ("adamww", "betas", "OptimInfo", "params", ""))


def test_a_model_of_ones_own_is_known_once_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "my_own_tower", timm.models.resnet18)
    assert timm_names.is_model("my_own_tower")


def test_a_config_is_read_without_timm_and_ray() -> None:
    code = (
        "import sys; from pipelines.program.settings import load; from training.config import TrainSettings; "
        "load(TrainSettings, 'training/configs/openmoji.yaml'); print({'timm', 'ray', 'transformers'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert ended.stdout == "set()\n"
