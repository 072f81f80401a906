"""Objectives, sources, tasks and optimizers of one's own, by import strings: read, run, loaded again, refused in one line."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.config import EvaluateSettings
from evaluation.data.base import Content, Retrieval
from evaluation.embeddings import Rows
from evaluation.plan import plan
from pipelines.prepare.config import PrepareSettings
from pipelines.program.own_class import as_data
from pipelines.program.settings import load, validate
from pipelines.sources.base import Rejected
from tests.raylign.own_objective import Plain
from tests.raylign.own_parts import Squares
from tests.refusals import refused
from training.config import TrainSettings
from training.objectives.base import ForeignObjective
from training.objectives.clip import ClipSettings

CONFIG = Path(__file__).parents[2] / "training/configs/from-scratch.yaml"
PLAIN, SQUARES = "tests.raylign.own_objective:Plain", "tests.raylign.own_parts:Squares"
OBJECTIVE_BASE = "training.objectives.base:ObjectiveSettings"
OWN = {"objective.name": PLAIN, "objective.scale": 4, "optimizer.name": "tests.raylign.own_parts:Descent"}


def test_an_objective_of_ones_own_is_read_written_and_read_again() -> None:
    settings = load(TrainSettings, CONFIG, OWN)
    assert type(settings.objective) is Plain and settings.objective.scale == 4
    dumped = settings.model_dump(mode="json")
    assert dumped["objective"] == {"name": PLAIN, "scale": 4.0}
    assert validate(TrainSettings, dumped, "again") == settings
    assert Plain().name == PLAIN, "in Python, too, it is called by its place"
    # The others are as they were.
    assert type(load(TrainSettings, CONFIG).objective) is ClipSettings


def test_a_checkpoint_of_it_is_read_without_importing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may come from a stranger: its config is data, with the same values."""
    (tmp_path / "strange.py").write_text("raise SystemExit('it was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    tree = load(TrainSettings, CONFIG).model_dump(mode="json") | {"objective": {"name": "strange:Loss", "scale": 2}}
    with as_data():
        settings = validate(TrainSettings, tree, "checkpoint.json")
    assert isinstance(settings.objective, ForeignObjective) and "strange" not in sys.modules
    assert settings.model_dump(mode="json") == tree
    own = load(TrainSettings, CONFIG, OWN)
    with as_data():
        data = validate(TrainSettings, own.model_dump(mode="json"), "config.yaml")
    assert data.identity() == own.identity(), "a resumed run is the same run"


@pytest.mark.parametrize(
    ("changes", "key", "named", "remedy"),
    [
        ({"objective.name": "nowhere.to:Be"}, "objective.name", ["nowhere.to"], "nowhere"),
        ({"objective.name": "tests.raylign.own_objective:Gone"}, "objective.name", ["tests.raylign.own_objective", "'Gone'"], ""),
        ({"objective.name": "tests.raylign.own_objective:NoSettings"}, "objective.name", ["NoSettings"], OBJECTIVE_BASE),
        ({"objective.name": SQUARES}, "objective.name", [SQUARES], OBJECTIVE_BASE),
        ({"objective.name": PLAIN, "objective.scale": -1}, "objective.scale", ["0", "-1"], ""),
        ({"objective.name": PLAIN, "objective.scal": 1}, "objective.scal", ["1"], "'scale'"),
    ],
)
def test_an_error_in_a_class_of_ones_own_names_the_key(changes: dict[str, Any], key: str, named: list[str], remedy: str) -> None:
    with refused(key, *named, remedy=remedy):
        load(TrainSettings, CONFIG, changes)


def test_an_optimizer_of_ones_own() -> None:
    settings = load(TrainSettings, CONFIG, OWN | {"optimizer.options.factor": 2, "optimizer.weight_decay": 0}).optimizer
    settings.check()
    layer = nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    optimizer = settings.build([layer])
    layer(torch.tensor([[1.0, 3.0]])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight, before - settings.lr * 2 * torch.tensor([[1.0, 3.0]]))
    with refused("optimizer.name", "Descent", "'fact'", remedy="optimizer.options"):
        load(TrainSettings, CONFIG, OWN | {"optimizer.options.fact": 2}).optimizer.check()
    with refused("optimizer.name", "Tensor", remedy="torch.optim.Optimizer"):
        load(TrainSettings, CONFIG, {"optimizer.name": "tests.raylign.test_own_parts:no_optimizer"}).optimizer.check()


def no_optimizer(params: Any, lr: float, weight_decay: float) -> torch.Tensor:
    """Not an optimizer."""
    return torch.zeros(())


@pytest.mark.parametrize("mixed", [False, True])
def test_a_source_of_ones_own_alone_and_in_a_mix(mixed: bool) -> None:
    own = {"name": SQUARES, "count": 5}
    source = {"name": "mix", "sources": [{"source": own}]} if mixed else own
    settings = validate(PrepareSettings, {"source": source, "output": "data/o"}, "c.yaml")
    assert validate(PrepareSettings, settings.model_dump(mode="json"), "again") == settings
    rows = [row for unit in settings.source.units() for row in settings.source.read(unit.data, True)]
    assert [isinstance(row, Rejected) for row in rows] == [False, False, False, True, False]
    assert settings.source.title() == "squares" and Squares().name == SQUARES
    with refused("source.count", "integer", "'many'"):
        validate(PrepareSettings, {"source": {"name": SQUARES, "count": "many"}, "output": "data/o"}, "c.yaml")


class Two:
    """Two images."""

    fingerprint = "two"

    def __len__(self) -> int:
        return 2

    def read(self, indices: np.ndarray) -> Any:
        return (Image.new("RGB", (4, 4)) for _ in indices)

    def name(self, index: int) -> str:
        return str(index)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    content = Content(retrieval=Retrieval(Two(), ["a", "b"], [np.asarray([0]), np.asarray([1])]))
    tree = {"checkpoint": "runs/r", "data": "data/o", "output": "runs/e", "tasks": ["tests.raylign.own_parts:Same"]}
    settings = validate(EvaluateSettings, tree, "c.yaml")
    assert validate(EvaluateSettings, settings.model_dump(mode="json"), "again") == settings
    (task,) = plan(settings, {"o": content})
    rows = Rows("model", None)
    for inputs, array in zip(task.inputs(), (np.eye(2), np.eye(2)), strict=True):
        np.save(tmp_path / f"{inputs.kind}.npy", array.astype(np.float32))
        rows.add(inputs, tmp_path / f"{inputs.kind}.npy")
    assert task.score(rows).scores == {"nearer": 100.0}
    with refused("tasks", "tests.raylign.own_parts:Same"):
        plan(settings, {"o": Content()})
