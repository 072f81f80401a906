"""Whether a warm-up fits its run."""


def warmup_warning(warmup: int, steps: int) -> str | None:
    """A warning if half of the run or more is warm-up; else None."""
    if 2 * warmup < max(2, steps):
        return None
    never = "ends before it has reached optimizer.lr" if warmup > steps else "is at its peak in the second half only"
    way = f"pass schedule.warmup_steps={steps // 10}, or train longer"
    return f"schedule.warmup_steps: {warmup:,} of {steps:,} steps, so that the learning rate {never}; {way}"
