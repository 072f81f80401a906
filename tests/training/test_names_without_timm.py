"""Names of models and optimizers that are judged without importing timm, which takes seconds, are judged as timm judges them."""

import subprocess
import sys

import pytest
import timm
from timm.optim import create_optimizer_v2, list_optimizers
from torch import nn

from tests.patience import PATIENCE
from training import timm_names
from training.optimizer import OptimizerSettings


@pytest.mark.parametrize(
    ("name", "momentum", "timms"), [("adamw", 0.9, "adamw"), ("adam", 0.9, "adam"), ("sgd", 0.8, "sgd"), ("sgd", 0.0, "momentum")]
)
def test_usual_optimizers_are_timms(name: str, momentum: float, timms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2, bias=False)
    theirs = create_optimizer_v2(layer.parameters(), opt=timms, lr=0.1, weight_decay=0.2, momentum=momentum)
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    ours = OptimizerSettings(name=name, momentum=momentum, lr=0.1, weight_decay=0.2).build([layer])
    assert type(ours) is type(theirs)
    assert ours.state_dict() == theirs.state_dict(), "all options are in the groups"


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
