"""The warning about a warm-up that takes most of its run."""


def warmup_warning(warmup: int, steps: int, key: str = "schedule.warmup_steps") -> str | None:
    """A warning if warm-up takes half of the run or more; else None. `key`: that sets it."""
    if 2 * warmup < max(2, steps):
        return None
    problem = "never reaches optimizer.lr" if warmup > steps else "only reaches its peak in the second half"
    remedy = f"pass {key}={steps // 10}, or train longer"
    return f"{key}: {warmup:,} of {steps:,} steps, so the learning rate {problem}; {remedy}"
