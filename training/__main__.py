"""`python -m training CONFIG.yaml`: one run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pipelines import interrupts

interrupts.install()  # importing torch takes seconds, in which somebody may think better of it

from pipelines.cli import begin, run_program  # noqa: E402

if TYPE_CHECKING:
    from pipelines.display import Display
    from training.config import TrainSettings

PURPOSE = """Train a dual encoder on a prepared dataset with Ray Train, score it on held-out pairs, and write a report.
The same command again goes on where an interrupted run was; a finished run says so."""


def _run(settings: TrainSettings, display: Display) -> None:
    from training.sources import check_sources

    # A run that has begun has what it needs. Before the rest is imported: that takes as long again.
    if settings.overwrite or not (settings.storage / settings.name / "config.yaml").exists():
        check_sources(settings)
    from training.run import run

    run(settings, display)


if __name__ == "__main__":
    begin("training", sys.argv[1:])
    from training.config import TrainSettings

    sys.exit(run_program("training", PURPOSE, TrainSettings, _run))
