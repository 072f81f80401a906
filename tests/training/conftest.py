"""What the tests of training share: one thread for tiny networks, runs on squares in this process, and one through Ray Train."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from pipelines.dataset.prepared import Prepared
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.training.inline_runs import train
from tests.training.squares import STEPS, Poison, planner, write_root
from training import loop
from training.config import TrainSettings
from training.plan import Plan
from training.run import run

SMALL: dict[str, Any] = {
    "image_tower": {"name": "conv", "image_size": 32, "channels": [8, 16]},
    "text_tower": {"name": "bag", "width": 16, "max_tokens": 16},
    "embed_dim": 16,
    "global_batch_size": 16,
    "resources": {"num_workers": 1, "cpus_per_worker": 0.5},
    "tensorboard": False,
}
"""Keys of a run with small towers that train, through Ray Train."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """For networks in this process: with tiny ones, one thread is faster than several that wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that goes to another node: one with a cache of its own."""

    def go(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    go("first")
    return go


@pytest.fixture(scope="session")
def chosen(tiny_dataset: Prepared, tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """A finished run on emojis that chose a checkpoint on a validation split and scored it on the test split."""
    tree = SMALL | {
        "name": "chosen",
        "storage": str(tmp_path_factory.mktemp("runs")),
        "data": {"path": str(tiny_dataset.path), "validation": 0.3},
        "epochs": 3,
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "evaluation": {"split": "validation", "test_split": "test"},
        "checkpoint": {"best": "retrieval/openmoji/mean_recall"},
    }
    settings = validate(TrainSettings, tree, "chosen")
    run(settings, Display(quiet=True))
    return settings


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets and towers of tests.training.squares."""
    folder = tmp_path_factory.mktemp("squares")
    write_root(folder)
    return folder


@pytest.fixture(scope="session")
def plan_of(squares: Path) -> Callable[..., Plan]:
    """A function from overrides to the plan of a run on squares."""
    return planner(squares)


@pytest.fixture(scope="session")
def straight(plan_of: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    result, reported = train(plan_of(), folder)
    assert result is not None and reported == list(range(1, STEPS + 1))
    return folder, result


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without CPUs, to which a test adds nodes."""
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0}, connect=True)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """A function that makes an image's features NaN in the given steps, counted from 1."""
    step, at = loop.train_step, []

    def sick(state: Any, batch: Any, *rest: Any) -> Any:
        if state.step + 1 in at:
            batch = batch | {"image_features": batch["image_features"].clone()}
            batch["image_features"][2] = torch.nan
        return step(state, batch, *rest)

    monkeypatch.setattr(loop, "train_step", sick)
    return lambda *steps: at.extend(steps)
