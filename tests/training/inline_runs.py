"""What tests of runs in this process ask of them: where they stop, what they wrote, and whether two ended the same."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.in_process import fit_inline
from training.metrics_file import read_metrics
from training.plan import Plan
from training.tensor_tree import load_tree

TIMES = {"samples_per_second", "data_wait", "checkpoint_wait", "peak_memory_gib", "seconds", "time"}


class ProcessDiedError(Exception):
    """The process dies."""


def train(plan: Plan, folder: Path, until: int | None = None) -> tuple[dict[str, Any] | None, list[int]]:
    """What `fit_inline` returned, and the reported steps; the process dies after the report of step `until`."""
    folder.mkdir(exist_ok=True)
    reported: list[int] = []

    def report(line: dict[str, Any]) -> None:
        # The line is already in the file.
        assert read_metrics(folder / "metrics.jsonl")[-1] == line
        reported.append(line["step"])
        if line["step"] == until:
            raise ProcessDiedError

    try:
        return fit_inline(plan, folder, report), reported
    except ProcessDiedError:
        return None, reported


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints."""
    return sorted(int(path.name.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*"))


def curve(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]


def last(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Equal weights in the last checkpoint, and equal held-out embeddings at the end."""
    place = max(folder.glob("checkpoint_*"))
    return load_tree(place, "state")["encoder"], dict(np.load(folder / "held_out.npz"))


def assert_equal_runs(folder: Path, other: Path) -> None:
    assert curve(folder) == curve(other)
    for ours, theirs in zip(last(folder), last(other), strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 2
        assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())
    assert (folder / "best" / "best.json").read_text() == (other / "best" / "best.json").read_text()
    assert steps(folder) == steps(other)
