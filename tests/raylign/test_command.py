"""The command `raylign` without what it starts: `init`, verbs, and how it calls itself in messages."""

from pathlib import Path
from typing import Any

import pytest

from evaluation.config import EvaluateSettings
from pipelines.prepare.config import PrepareSettings
from pipelines.program.settings import load
from raylign.__main__ import main
from training.config import TrainSettings
from tuning.config import SweepSettings

MODELS = {"prepare": PrepareSettings, "train": TrainSettings, "evaluate": EvaluateSettings, "sweep": SweepSettings}


def test_init_writes_configs_that_load_and_fit_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    told = capsys.readouterr().out
    found: dict[str, Any] = {verb: load(model, f"mine/{verb}.yaml") for verb, model in MODELS.items()}
    assert all(f"raylign {verb} mine/{verb}.yaml" in told for verb in MODELS)
    assert found["prepare"].output == found["train"].data.path and found["prepare"].source.title() == "mine"
    assert found["evaluate"].checkpoint == found["train"].storage / found["train"].name
    assert found["sweep"].base == Path("mine/train.yaml")
    assert all(
        weights is None for weights in (found["train"].image_tower.weights_name(), found["train"].text_tower.weights_name())
    )
    # Nothing is written over.
    assert main(["init", "mine"]) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a b", "true", "1", ".x"])
def test_init_refuses_what_cannot_be_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", name]) == 2 and f"NAME: '{name}'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_it_calls_itself_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    assert main(["train", "mine/prepare.yaml"]) == 2
    assert "is a config of another program; raylign prepare mine/prepare.yaml" in capsys.readouterr().err
    assert main(["train", "mine/sweep.yaml"]) == 2
    assert "is a config of another program; raylign sweep mine/sweep.yaml" in capsys.readouterr().err
    assert main(["prepare", "opnmoji"]) == 2
    assert "did you mean" in capsys.readouterr().err
    assert main(["trian", "mine/train.yaml"]) == 2
    assert "'trian' is no command, those are init, prepare, train, evaluate, sweep" in capsys.readouterr().err
