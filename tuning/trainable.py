"""Tune's function, in a module that imports nothing: an actor that has torch to load before it counts as started loses its trial.

Tune hands a waiting trial to whichever actor is free first. If starting one takes longer than a trial, every new actor is thrown
away for a reused one, and all but one CPU do nothing else.
"""

from typing import Any


def run_trial(config: dict[str, Any]) -> None:
    """One trial; see `tuning.trial_runner`."""
    from tuning import trial_runner

    trial_runner.run_trial(config)
