"""Killed again and again, with another number of workers each time: every epoch still consumes the samples that an undisturbed
run does, each as often, though some images of the indexed dataset cannot be used.

RAYLIGN_KILLS=20 for more kills than a short test has patience for.
"""

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from program import Program

import training.plan
from tests.in_process import succeed
from tests.patience import wait_until
from tests.training import recording_run
from tests.training.recording_run import consumed_in

pytestmark = pytest.mark.e2e

WORKERS = (2, 1, 3)  # 2 -> 1, 1 -> 3, and again; 2 -> 2: test_resume.py
KILLS = int(os.environ.get("RAYLIGN_KILLS", 2))
PAIRS, BATCH = 100, 12
BROKEN = (7, 31, 55, 79)
LONGEST = 12  # steps that an attempt may do before it is killed

CONFIG: dict[str, Any] = {
    "image_tower": {"name": "conv", "image_size": 32, "channels": [16, 32, 64]},
    "text_tower": {"name": "bag", "width": 64, "max_tokens": 8},
    "embed_dim": 32,
    "optimizer": {"name": "adamw", "lr": 3e-4},
    "epochs": 3 + KILLS * LONGEST // 7,
    "global_batch_size": BATCH,
    "log_every": 3,
    "evaluation": {"every_epochs": 50, "templates": ["a picture of {}"]},
    "checkpoint": {"every_steps": 3},
    "resources": {"num_workers": 1, "cpus_per_worker": 0.3},
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def folder(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Indexed pairs, some of whose training images are broken afterwards."""
    root = tmp_path_factory.mktemp("chain")
    (root / "pairs").mkdir()
    for i in range(PAIRS):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pairs" / f"{i:03d}.png")
        (root / "pairs" / f"{i:03d}.txt").write_text(f"thing number {i}")
    config = {"source": {"name": "folder", "path": str(root / "pairs")}, "output": str(root / "data"), "mode": "index"}
    (root / "pairs.yaml").write_text(yaml.safe_dump(config))
    succeed("pipelines", str(root / "pairs.yaml"))
    for i in BROKEN:
        path = root / "pairs" / f"{i:03d}.png"
        path.write_bytes(path.read_bytes()[: 500 + i])
    return root


def config_of(folder: Path, name: str) -> Path:
    config = folder / f"{name}.yaml"
    tree = CONFIG | {"name": name, "storage": str(folder), "data": {"path": str(folder / "data")}}
    config.write_text(yaml.safe_dump(tree))
    return config


def start(folder: Path, workers: int, steps: int = 0) -> Program:
    """`steps`: after which the workers wait to be killed."""
    return Program(config_of(folder, "killed"), str(steps), f"resources.num_workers={workers}", run=(recording_run.__file__,))


def finish(folder: Path, name: str, workers: int) -> None:
    """Run to the end in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.plan, "Stream", training.plan.Stream)  # the program puts its own there
        assert recording_run.main(str(config_of(folder, name)), "0", f"resources.num_workers={workers}") == 0


def attempts(folder: Path, name: str) -> list[list[tuple[int, dict[str, Any]]]]:
    """(first step, record) of every whole line, attempt by attempt."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for path in sorted(consumed_in(folder, name).glob("*.jsonl")):
        attempt, first = path.name.split("-")[:2]
        records = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        found.setdefault(attempt, []).extend((int(first), record) for record in records)
    return list(found.values())


def consumed(folder: Path, name: str) -> Counter[tuple[int, int]]:
    """(epoch, sample id) that the final weights have seen, as often: an attempt undoes what comes after its start."""
    steps: dict[int, list[tuple[int, int]]] = {}
    for records in attempts(folder, name):
        for step in [s for s in steps if s >= min(first for first, _ in records)]:
            del steps[step]
        for _, record in records:
            steps.setdefault(record["step"], []).extend((record["epoch"], i) for i in record["ids"])
    assert sorted(steps) == list(range(len(steps)))
    return Counter(pair for pairs in steps.values() for pair in pairs)


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Counter[tuple[int, int]]:
    finish(folder, "undisturbed", 1)
    return consumed(folder, "undisturbed")


def test_broken_images_are_replaced_and_listed(folder: Path, undisturbed: Counter[tuple[int, int]]) -> None:
    keys = [f"{i:03d}.png" for i in range(PAIRS)]
    listed = [json.loads(line) for line in (folder / "undisturbed" / "unusable.jsonl").read_text().splitlines()]
    split = json.loads((folder / "data" / "manifest.json").read_text())["splits"]
    names = {row["sample_id"]: row["reason"] for row in listed}
    assert len(names) == len(listed) and set(names) <= set(BROKEN) and set(names.values()) == {"truncated"}
    assert len(names) >= 2 and len(keys) == sum(split.values())
    assert not {sample for _, sample in undisturbed} & set(names)
    epochs = Counter(epoch for epoch, _ in undisturbed.elements())
    assert set(epochs.values()) == {split["train"] // BATCH * BATCH}, "every batch kept its size"
    result = json.loads((folder / "undisturbed" / "result.json").read_text())
    assert result["dataset"]["counts"]["unusable"] == {"truncated": len(names)}


def test_any_number_of_kills_and_workers_consumes_the_same(folder: Path, undisturbed: Counter[tuple[int, int]]) -> None:
    random = np.random.default_rng(KILLS)
    plan = [WORKERS[i % len(WORKERS)] for i in range(KILLS + 1)]
    assert {(2, 1), (1, 3)} <= set(pairwise(plan))
    for kill, workers in enumerate(plan[:-1]):
        steps = int(random.integers(1, LONGEST))
        program = start(folder, workers, steps)
        try:
            wait_for_steps(program, folder, kill, steps)
        finally:
            program.kill()
        if kill in (0, 1):
            # As if the kill had come while Ray Train wrote its list of checkpoints, in place.
            snapshot = folder / "killed" / "checkpoint_manager_snapshot.json"
            snapshot.write_bytes(snapshot.read_bytes()[: 40 * kill])
    finish(folder, "killed", plan[-1])
    tried = attempts(folder, "killed")
    assert len(tried) == KILLS + 1
    starts = [min(first for first, _ in records) for records in tried]
    assert starts == sorted(starts) and starts[-1] > 0, "resumed from checkpoints"
    assert consumed(folder, "killed") == undisturbed


def wait_for_steps(program: Program, folder: Path, done: int, steps: int) -> None:
    """Wait until this attempt has consumed so many steps, and the run has a checkpoint."""

    def reached() -> bool:
        assert program.process.poll() is None, program.text()
        found = attempts(folder, "killed")
        consumed = max((record["step"] - first + 1 for first, record in found[done]), default=0) if len(found) > done else 0
        return consumed >= steps and (folder / "killed" / "checkpoint_manager_snapshot.json").exists()

    wait_until(reached, program.text)
