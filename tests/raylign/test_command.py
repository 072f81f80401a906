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
    printed = capsys.readouterr().out
    settings: dict[str, Any] = {verb: load(model, f"mine/{verb}.yaml") for verb, model in MODELS.items()}
    assert all(f"raylign {verb} mine/{verb}.yaml" in printed for verb in MODELS)
    assert settings["prepare"].output == settings["train"].data.path and settings["prepare"].source.title() == "mine"
    assert settings["evaluate"].checkpoint == settings["train"].storage / settings["train"].name
    assert settings["sweep"].base == Path("mine/train.yaml")
    assert all(
        weights is None for weights in (settings["train"].image_tower.weights_name(), settings["train"].text_tower.weights_name())
    )
    # Nothing is overwritten.
    assert main(["init", "mine"]) == 2 and capsys.readouterr().err.startswith("error: mine: ")


@pytest.mark.parametrize("name", ["a b", "true", "1", ".x"])
def test_init_refuses_what_cannot_be_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", name]) == 2 and f"NAME: '{name}'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["init"], ["init", "a", "b"], ["init", "--name", "x"], ["sweep", "report"]])
def test_wrong_arguments_are_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: ") and f"raylign {arguments[0]}" in said.err and "--help" in said.err


def test_it_calls_itself_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine"]) == 0
    assert main(["train", "mine/prepare.yaml"]) == 2
    assert "raylign prepare mine/prepare.yaml" in capsys.readouterr().err
    assert main(["train", "mine/sweep.yaml"]) == 2
    assert "raylign sweep mine/sweep.yaml" in capsys.readouterr().err
    assert main(["prepare", "opnmoji"]) == 2
    assert "pipelines/configs/openmoji.yaml" in capsys.readouterr().err
    assert main(["trian", "mine/train.yaml"]) == 2
    said = capsys.readouterr().err
    assert "'trian'" in said and "init, prepare, train, evaluate, sweep" in said and "raylign --help" in said
