"""The checkpoints of a run in one process: which are kept, and which are passed over because they are incomplete or damaged."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refusals import refused
from tests.training.inline_runs import ProcessDiedError, assert_equal_runs, curve, steps, train
from tests.training.squares import BEST, STEPS
from training.checkpoint import Snapshot
from training.checkpoint_registry import settle
from training.held_out import read_held_out
from training.in_process import fit_inline
from training.plan import Plan
from training.tensor_tree import load_tree


@pytest.mark.parametrize("step", [2, 6, 12])
def test_an_incomplete_checkpoint_is_ignored(
    plan_of: Callable[..., Plan],
    straight: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """The process dies while it writes a checkpoint: an incomplete folder is left, which is never read.

    Training goes on meanwhile, to the next checkpoint at most.
    """
    whole = Snapshot.write

    def half(snapshot: Snapshot, folder: Path) -> None:
        whole(snapshot, folder)
        if snapshot.step == step:
            (folder / "state.safetensors").write_bytes(b"half")
            raise ProcessDiedError

    with monkeypatch.context() as patched:
        patched.setattr(Snapshot, "write", half)
        assert train(plan_of(), tmp_path)[0] is None
    assert len(curve(tmp_path)) == min(step + 2, STEPS)
    assert max(steps(tmp_path), default=0) == step - 2 and len(list(tmp_path.glob("partial-*"))) == 1
    result, reported = train(plan_of(), tmp_path)
    assert reported[0] == step - 1 and result == straight[1] and not list(tmp_path.glob("partial-*"))
    assert_equal_runs(tmp_path, straight[0])


def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_previous_one(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """One bit of the weights is flipped: loaded as they are, they would be other weights without notice."""
    train(plan_of(), tmp_path, until=9)
    weights = tmp_path / "checkpoint_00000008" / "state.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with refused("checkpoint", tmp_path / "checkpoint_00000008", "state.safetensors", remedy=tmp_path / "checkpoint_00000006"):
        train(plan_of(), tmp_path)
    printed: list[str] = []
    assert settle(tmp_path, printed.append) == tmp_path / "checkpoint_00000006" and "state.safetensors" in printed[0]
    result, reported = train(plan_of(), tmp_path)
    assert reported[0] == 7 and result == straight[1]
    assert_equal_runs(tmp_path, straight[0])


def test_steps_go_on_while_a_checkpoint_is_saved(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written only once the next step has been reported; what it holds is as it was at its own step."""
    whole, reported = Snapshot.write, {step: threading.Event() for step in range(1, STEPS + 1)}

    def late(snapshot: Snapshot, folder: Path) -> None:
        assert snapshot.step == STEPS or reported[snapshot.step + 1].wait(60)
        whole(snapshot, folder)

    for name in ("run", "late"):
        (tmp_path / name).mkdir()
    fit_inline(plan_of(checkpoint__keep=STEPS), tmp_path / "run", lambda line: None)
    monkeypatch.setattr(Snapshot, "write", late)
    fit_inline(plan_of(checkpoint__keep=STEPS), tmp_path / "late", lambda line: reported[line["step"]].set())
    assert steps(tmp_path / "late") == steps(tmp_path / "run") == [2, 4, 6, 8, 10, 12]
    for step in steps(tmp_path / "run"):
        ours, theirs = (load_tree(tmp_path / name / f"checkpoint_{step:08d}", "state")["encoder"] for name in ("late", "run"))
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [10, 12]),
        ({"checkpoint__keep": 1}, [12]),
        ({"checkpoint__keep": 50}, [2, 4, 6, 8, 10, 12]),
        ({"checkpoint__every_steps": None}, [6, 12]),
        ({"checkpoint__every_steps": 5, "checkpoint__keep": 9}, [5, 6, 10, 12]),
    ],
    ids=str,
)
def test_the_newest_checkpoints_are_kept(plan_of: Callable[..., Plan], tmp_path: Path, changes: dict, kept: list[int]) -> None:
    most = changes.get("checkpoint__keep", 2)
    counts: list[int] = []
    fit_inline(plan_of(**changes), tmp_path, lambda line: counts.append(len(steps(tmp_path))))
    assert steps(tmp_path) == kept and max(counts) <= most + 1, "one more while the oldest is being replaced"
    # The held-out embeddings are those of the end, and are in the run's folder.
    assert read_held_out(tmp_path)["step"] == STEPS and [path.parent for path in tmp_path.rglob("*.npz")] == [tmp_path]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("metric", [BEST, "loss"])
def test_the_best_checkpoint_outlives_the_newest(plan_of: Callable[..., Plan], tmp_path: Path, metric: str, mode: str) -> None:
    every, best_of = tmp_path / "every", tmp_path / "best_of"
    every.mkdir()
    best_of.mkdir()
    fit_inline(plan_of(checkpoint__keep=STEPS), every, lambda line: None)
    fit_inline(plan_of(checkpoint__best=metric, checkpoint__mode=mode, checkpoint__keep=1), best_of, lambda line: None)
    found = {line["step"]: line[metric] for line in curve(best_of) if line["step"] in steps(every) and metric in line}
    value = (max if mode == "max" else min)(found.values())
    step = next(step for step in found if found[step] == value)
    assert len(found) > 1 and json.loads((best_of / "best" / "best.json").read_text()) == {
        "metric": metric,
        "value": value,
        "step": step,
    }
    best, saved = (load_tree(folder, "state")["encoder"] for folder in (best_of / "best", every / f"checkpoint_{step:08d}"))
    assert best.keys() == saved.keys() and all(torch.equal(tensor, saved[name]) for name, tensor in best.items())
    left = {"metrics.jsonl", "best", "newest_checkpoint.json", f"checkpoint_{STEPS:08d}", "held_out.json", "held_out.npz"}
    assert {path.name for path in best_of.iterdir()} == left
