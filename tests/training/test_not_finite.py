"""Losses, gradients, weights and embeddings that are not finite: skipped and counted, or the end of the run, with its reason."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.dataset.batch import Batch
from pipelines.dataset.stream import Stream, Unusable
from tests.refusals import refused
from tests.training.inline_runs import assert_equal_runs, curve, steps, train
from tests.training.squares import BATCH, STEPS, Poison
from training import loop
from training.loop import DivergenceError
from training.plan import Plan
from training.tensor_tree import load_tree


def test_a_loss_that_is_not_finite_ends_the_run_with_the_reason(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of(optimizer__name="sgd", optimizer__lr=1e30)
    with refused("", "step", remedy="optimizer.lr") as caught:
        train(plan, tmp_path)
    assert isinstance(caught.value, DivergenceError)
    assert all(np.isfinite(line.get("loss", 0.0)) for line in curve(tmp_path)) and len(curve(tmp_path)) < STEPS
    # The next start ends in the same way.
    with pytest.raises(DivergenceError):
        train(plan, tmp_path)


def test_a_poisoned_batch_is_skipped_and_counted(plan_of: Callable[..., Plan], tmp_path: Path, poison: Poison) -> None:
    """Its line has no loss, and the run goes on; a run that was interrupted after it ends the same."""
    poison(4, 9)
    result, _ = train(plan_of(), tmp_path / "straight")
    assert result is not None and (result["step"], result["skipped"]) == (STEPS, 2)
    lines = curve(tmp_path / "straight")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [line["step"] for line in lines if "loss" not in line] == [4, 9]
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, int | float))
    for until in (4, 5, 9):
        folder = tmp_path / f"until-{until}"
        train(plan_of(), folder, until)
        assert train(plan_of(), folder)[0] == result
        assert_equal_runs(folder, tmp_path / "straight")


def test_a_run_whose_steps_keep_being_skipped_ends_with_the_reason(
    plan_of: Callable[..., Plan], tmp_path: Path, poison: Poison
) -> None:
    """Before the next report, and at the next start again; the checkpoints before it are kept."""
    poison(*range(6, STEPS + 1))
    plan = plan_of(log_every=100, checkpoint__every_steps=4)
    for _ in range(2):
        with refused("", "6 of 11", "step 11", "nan", remedy="optimizer.lr"):
            train(plan, tmp_path)
    assert steps(tmp_path) == [4, 6], "saved at 6, where it was scored, and not at 8"
    saved = load_tree(tmp_path / "checkpoint_00000006", "state")
    assert saved["skipped"] == saved["failing"] == 1
    assert all(bool(value.isfinite().all()) for value in saved["encoder"].values())


def test_a_run_whose_steps_are_all_skipped_has_failed(plan_of: Callable[..., Plan], tmp_path: Path, poison: Poison) -> None:
    poison(*range(1, STEPS + 1))
    with refused("", "every step", "step 2", "nan", remedy="optimizer.lr"):
        train(plan_of(epochs=1, evaluation__every_epochs=1), tmp_path)


@pytest.mark.parametrize("part", ["weights", "embeddings"])
def test_what_is_not_finite_is_neither_saved_nor_scored(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A step that counted may overflow a weight, and finite weights may overflow an embedding."""
    step = loop.train_step

    def overflow(state: Any, *rest: Any) -> Any:
        found = step(state, *rest)
        if state.step == 6:
            with torch.no_grad():
                next(iter(state.encoder.image_head.parameters())).fill_(torch.inf if part == "weights" else 3e38)
        return found

    monkeypatch.setattr(loop, "train_step", overflow)
    with refused("", part, "step 6", remedy="optimizer.lr"):
        train(plan_of(), tmp_path)
    assert steps(tmp_path) == [2, 4] and curve(tmp_path)[-1]["step"] == 5


def test_too_many_unusable_rows_end_a_run_that_did_not_diverge(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep's samplers avoid settings that diverge; broken images say nothing about the settings."""
    stream = Stream.training

    def broken(self: Stream, *arguments: Any) -> Iterator[Batch]:
        *_, failed = arguments
        for number, batch in enumerate(stream(self, *arguments)):
            failed(Unusable(number, "truncated"))
            yield batch

    monkeypatch.setattr(Stream, "training", broken)
    monkeypatch.setattr(loop, "_ENOUGH", 2 * BATCH)
    with refused("data.max_unusable_rate", f"2 of {2 * BATCH}", "0.1", remedy="unusable.jsonl") as caught:
        train(plan_of(), tmp_path)
    assert not isinstance(caught.value, DivergenceError) and steps(tmp_path) == [2], "the step is saved"
