"""The function that Tune runs, in a module without imports: an actor that loads torch while it starts loses its trial.

Tune hands a waiting trial to whichever actor is free first. If starting an actor takes longer than a trial, every new actor is
discarded in favour of a reused one, and all CPUs but one only start actors.
"""

from typing import Any


def run_trial(config: dict[str, Any]) -> None:
    """One trial; see `tuning.trial_runner`."""
    from tuning import trial_runner

    trial_runner.run_trial(config)
