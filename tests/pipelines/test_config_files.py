"""Configs found by short names, and `base`: one config on top of another."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.program import config_files, yaml_text
from pipelines.program.cli import run_program
from pipelines.program.config_files import ROOT, find_config, short_name
from pipelines.program.settings import load, read_config
from tests.refusals import refused
from training.config import TrainSettings
from tuning.config import SweepSettings

BASE = {
    "name": "base",
    "data": {"path": "data/o", "augment": {"crop_scale": [0.5, 1.0]}},
    "image_tower": {"name": "conv", "image_size": 32},
    "text_tower": {"name": "bag"},
    "objective": {"name": "clip", "temperature": 0.1, "learn_temperature": False},
    "epochs": 3,
    "global_batch_size": 8,
}


def write(folder: Path, **files: Any) -> None:
    for name, tree in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml_text.dump(tree))


def merged(folder: Path, own: dict[str, Any]) -> dict[str, Any]:
    write(folder, base=BASE, own={"base": "base.yaml"} | own)
    return read_config(folder / "own.yaml", TrainSettings)


@pytest.mark.parametrize(
    ("own", "changed"),
    [
        ({"name": "mine"}, {"name": "mine"}),
        ({"data": {"path": "data/m"}}, {"data": {"path": "data/m", "augment": {"crop_scale": [0.5, 1.0]}}}),
        ({"data": {"augment": {"crop_scale": [0.9, 1.0]}}}, {"data": {"path": "data/o", "augment": {"crop_scale": [0.9, 1.0]}}}),
        ({"data": {"augment": None}}, {"data": {"path": "data/o", "augment": None}}),
        # The same class keeps its keys; another one drops them.
        ({"objective": {"temperature": 0.2}}, {"objective": BASE["objective"] | {"temperature": 0.2}}),  # type: ignore[operator]
        ({"objective": {"name": "clip", "max_scale": 50}}, {"objective": BASE["objective"] | {"max_scale": 50}}),  # type: ignore[operator]
        ({"objective": {"name": "psd"}}, {"objective": {"name": "psd"}}),
        ({"seed": 4}, {"seed": 4}),
    ],
)
def test_a_file_is_merged_over_its_base(tmp_path: Path, own: dict[str, Any], changed: dict[str, Any]) -> None:
    assert merged(tmp_path, own) == BASE | changed


def test_a_base_is_relative_to_its_file_whatever_the_working_directory_and_may_have_a_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write(tmp_path / "a", base=BASE)
    write(tmp_path / "b", middle={"base": "../a/base.yaml", "epochs": 5}, last={"base": "middle.yaml", "seed": 2})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = load(TrainSettings, Path("../b/last.yaml"), {"seed": 3})
    assert (settings.name, settings.epochs, settings.seed) == ("base", 5, 3)
    # --show prints all of it, without the key.
    assert run_program("training", "p", TrainSettings, lambda *_: None, ["../b/last.yaml", "seed=3", "--show"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert load(TrainSettings, tmp_path / "shown.yaml") == settings and "base" not in read_config(
        tmp_path / "shown.yaml", TrainSettings
    )


def test_a_base_may_be_an_included_config(tmp_path: Path) -> None:
    write(tmp_path, mine={"base": "openmoji.yaml", "name": "mine"})
    expected = load(TrainSettings, ROOT / "training/configs/openmoji.yaml", {"name": "mine"})
    assert load(TrainSettings, tmp_path / "mine.yaml") == expected


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"own": {"base": "gone.yaml"}}, ["gone.yaml", "own.yaml"]),
        ({"own": {"base": "."}}, ["folder", "own.yaml"]),
        ({"own": {"base": ["a.yaml"]}}, ["['a.yaml']", "own.yaml"]),
        ({"own": {"base": "own.yaml"}}, ["own.yaml -> own.yaml"]),
        ({"own": {"base": "b.yaml"}, "b": {"base": "own.yaml"}}, ["own.yaml -> b.yaml -> own.yaml"]),
        ({"own": {"base": "b.yaml"}, "b": {"base": "gone.yaml"}}, ["gone.yaml", "b.yaml"]),
    ],
)
def test_a_base_that_is_missing_or_its_own_base_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Any], named: list[str]
) -> None:
    write(tmp_path, **files)
    monkeypatch.chdir(tmp_path)
    with refused("base", *named):
        load(TrainSettings, "own.yaml")


def test_an_error_in_an_included_config_names_it_as_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed in an environment inside the working directory, as projects have it, and anywhere else."""
    installed = tmp_path / "work" / ".venv" / "site-packages"
    write(installed / "training" / "configs", mine={"name": "mine"})
    monkeypatch.setattr(config_files, "ROOT", installed)
    for folder in (tmp_path / "work", tmp_path):
        monkeypatch.chdir(folder)
        path = find_config("mine", "training")
        assert path.is_absolute() and short_name(path) == "training/configs/mine.yaml"
        with refused("epochs", "'ten'", "[training/configs/mine.yaml]") as caught:
            load(TrainSettings, path, {**BASE, "epochs": "ten"})
        assert str(installed) not in str(caught.value)
    # A file of the user's keeps the name that was typed.
    write(tmp_path, own={"epochs": "ten"})
    monkeypatch.chdir(tmp_path / "work")
    with refused("epochs", "[../own.yaml]"):
        load(TrainSettings, "../own.yaml", {key: value for key, value in BASE.items() if key != "epochs"})


def test_a_sweeps_base_is_relative_to_it_or_included(tmp_path: Path) -> None:
    write(tmp_path, base=BASE, sweep={"name": "s", "base": "base.yaml"}, other={"name": "s", "base": "openmoji.yaml"})
    assert load(SweepSettings, tmp_path / "sweep.yaml").base == tmp_path / "base.yaml"
    assert find_config(load(SweepSettings, tmp_path / "other.yaml").base, "training") == ROOT / "training/configs/openmoji.yaml"


@pytest.mark.parametrize("typed", ["openmoji", "openmoji.yaml", "training/configs/openmoji.yaml"])
def test_an_included_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(typed, "training") == ROOT / "training/configs/openmoji.yaml"
    # The user's own file of that name comes first.
    (tmp_path / typed).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / typed).write_text("name: mine\n")
    assert find_config(typed, "training") == Path(typed)


@pytest.mark.parametrize("typed", ["../configs/openmoji.yaml", "pipelines/configs/openmoji.yaml", "nowhere", ""])
def test_no_other_file_is_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(typed, "training") == Path(typed)
