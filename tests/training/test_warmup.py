"""The warning about a warm-up that takes half of the run or more names a shorter one."""

from collections.abc import Callable

import pytest

from pipelines.program.display import Display
from tests.training.squares import STEPS
from training.plan import Plan
from training.run import _announce
from training.warmup import warmup_warning


@pytest.mark.parametrize(
    ("warmup", "steps", "shorter"),
    [(0, 1, None), (0, 1000, None), (20, 1000, None), (14, 30, None), (15, 30, 3), (30, 30, 3), (31, 30, 3), (20, 2, 0)],
)
def test_a_warm_up_of_half_the_run_or_more_is_reported(warmup: int, steps: int, shorter: int | None) -> None:
    warning = warmup_warning(warmup, steps)
    if shorter is None:
        assert warning is None
        return
    assert warning is not None and warning.startswith("schedule.warmup_steps: ")
    assert f"{warmup} of {steps}" in warning and f"schedule.warmup_steps={shorter}," in warning
    assert ("optimizer.lr" in warning) == (warmup > steps), "it never reaches the peak"


@pytest.mark.parametrize("warmup", [0, STEPS])
def test_a_run_says_so_before_it_starts(plan_of: Callable[..., Plan], capsys: pytest.CaptureFixture, warmup: int) -> None:
    _announce(plan_of(schedule__warmup_steps=warmup), Display())
    printed = capsys.readouterr().out
    assert printed.count("\n") == (2 if warmup else 1)
    assert (f"schedule.warmup_steps: {STEPS} of {STEPS} steps" in printed) == bool(warmup)
