"""A preset's one optimizer step at toy size, by the loop that a run's workers run, in this process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.dataset.stream import Worker
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from training import loop
from training.config import TrainSettings
from training.loop import Save
from training.plan import Plan, plan_of
from training.state import TrainState


def one_step(settings: TrainSettings, folder: Path) -> tuple[Plan, dict[str, Any], TrainState]:
    """The plan, the step's metrics and the state after it, whose gradients are still there. A checkpoint is left in `folder`."""
    plan = plan_of(settings, Pool(0), Display(quiet=True))
    assert plan.total_steps == 1
    reported: list[dict[str, Any]] = []
    states: list[TrainState] = []
    step = loop.train_step

    def remember(state: TrainState, *rest: Any) -> Any:
        states.append(state)
        return step(state, *rest)

    def report(metrics: dict[str, Any], save: Save | None) -> None:
        if not metrics["step"]:  # of the start
            return
        reported.append(metrics)
        assert save is not None
        folder.mkdir(exist_ok=True)
        save().write(folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", remember)
        ended = loop.train(plan, Worker(0, 1, torch.device("cpu"), 1.0), report)
    assert ended["step"] == 1 and len(reported) == len(states) == 1
    return plan, reported[0], states[0]
