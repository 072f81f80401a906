"""No program writes into a folder that holds something else, and `overwrite` deletes nothing but what the program made there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.__main__ import evaluate
from evaluation.config import EvaluateSettings
from pipelines.program import cluster
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.squares import tree_of, write_root
from training.config import TrainSettings
from training.run import run
from tuning.config import SweepSettings
from tuning.sweep import sweep

QUIET = Display(quiet=True)
CONTENTS: dict[str, list[str]] = {
    "thesis": ["thesis.tex", "figures/a.png", "config.yaml"],
    "run": [".lock", "config.yaml", "metrics.jsonl", "checkpoint_00000006/state.safetensors"],
    "copied run": ["config.yaml", "result.json", "best/best.json"],
    "sweep": [".lock", "sweep.json", "trials/a/trial.json"],
    "dataset": ["manifest.json", "content/a.parquet"],
    "killed": [".lock", "towers/image_tower/x"],
    "nothing": [".DS_Store"],
}
Start = Callable[[Path, bool], Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    write_root(root)
    return root


@pytest.fixture
def starts(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Start]:
    """Each program with its output in a given folder; `overwrite` where it has that key. Its Ray does not start."""

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("RAY_ADDRESS", "nobody answers", "start a cluster")

    monkeypatch.setattr(cluster, "start", fail)
    monkeypatch.chdir(tmp_path)
    tree = tree_of(root)
    del tree["name"]

    def train(folder: Path, overwrite: bool) -> None:
        keys = {"name": folder.name, "storage": str(folder.parent), "overwrite": overwrite}
        run(validate(TrainSettings, tree | keys, "run"), QUIET)

    def search(folder: Path, overwrite: bool) -> None:
        keys = {"name": folder.name, "storage": str(folder.parent), "overwrite": overwrite}
        overrides = {key: value for key, value in tree.items() if key != "data"} | {"data.path": tree["data"]["path"]}
        keys |= {"base": "openmoji.yaml", "overrides": overrides, "grid": {"schedule.warmup_steps": [1, 2]}}
        sweep(validate(SweepSettings, keys, "sweep"), QUIET, "")

    def score(folder: Path, overwrite: bool) -> None:
        keys = {"checkpoint": "runs/mine", "data": str(root / "squares"), "output": str(folder), "cache": str(tmp_path / "cache")}
        evaluate(validate(EvaluateSettings, keys, "evaluation"), QUIET)

    return {"train": train, "sweep": search, "evaluate": score}


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("program", "content", "named"),
    [
        ("train", "thesis", "config.yaml"),
        ("train", "sweep", "sweep.json"),
        ("train", "dataset", "manifest.json"),
        ("sweep", "thesis", "config.yaml"),
        ("sweep", "run", "checkpoint_00000006"),
        ("sweep", "copied run", "result.json"),
        ("sweep", "dataset", "manifest.json"),
        ("evaluate", "run", "checkpoint_00000006"),
        ("evaluate", "sweep", "sweep.json"),
        ("evaluate", "dataset", "manifest.json"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_stays(
    starts: dict[str, Start], tmp_path: Path, program: str, content: str, named: str, overwrite: bool
) -> None:
    folder = filled(tmp_path / "mine", content)
    before = files_of(folder)
    with refused("output" if program == "evaluate" else "name", folder, named):
        starts[program](folder, overwrite)
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("program", "content"),
    [("train", name) for name in ("run", "copied run", "killed", "nothing")] + [("sweep", name) for name in ("sweep", "nothing")],
)
def test_what_overwrite_replaces_stays_until_ray_has_started(
    starts: dict[str, Start], tmp_path: Path, program: str, content: str
) -> None:
    folder = filled(tmp_path / "mine", content)
    before = files_of(folder)
    with refused("RAY_ADDRESS"):
        starts[program](folder, True)
    after = files_of(folder) | {".lock": before.get(".lock")}  # in which the start has noted itself
    assert before.items() <= after.items()


def filled(folder: Path, content: str) -> Path:
    for name in CONTENTS[content]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("" if name == ".lock" else "{}")
    return folder
