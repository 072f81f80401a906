"""A warm-up that fills its run is told, with one that would not."""

import pytest

from training.warmup import warmup_warning


@pytest.mark.parametrize(
    ("warmup", "steps", "said"),
    [
        (0, 1, None),
        (0, 1000, None),
        (20, 1000, None),
        (14, 30, None),
        (
            15,
            30,
            "15 of 30 steps, so that the learning rate is at its peak in the second half only; pass schedule.warmup_steps=3",
        ),
        (30, 30, "at its peak in the second half only"),
        (31, 30, "ends before it has reached optimizer.lr"),
        (20, 2, "20 of 2 steps, so that the learning rate ends before it has reached optimizer.lr; pass schedule.warmup_steps=0"),
    ],
)
def test_a_warm_up_of_half_the_run_or_more_is_told(warmup: int, steps: int, said: str | None) -> None:
    found = warmup_warning(warmup, steps)
    assert found is None if said is None else said in str(found)
