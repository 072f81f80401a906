"""What the tests of training share: one thread for tiny networks, and one small run that chose and tested a checkpoint."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipelines.dataset.prepared import Prepared
from pipelines.program.display import Display
from pipelines.program.settings import validate
from training.config import TrainSettings
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
