"""`python -m training CONFIG.yaml`: one run."""

import sys

from pipelines import interrupts

interrupts.install()  # importing torch takes seconds, in which somebody may think better of it

from pipelines.cli import run_program  # noqa: E402
from pipelines.display import Display  # noqa: E402
from training.config import TrainSettings  # noqa: E402

PURPOSE = """Train a dual encoder on a prepared dataset with Ray Train, score it on held-out pairs, and write a report.
The same command again goes on where an interrupted run was; a finished run says so."""


def _run(settings: TrainSettings, display: Display) -> None:
    from training.run import run

    run(settings, display)


if __name__ == "__main__":
    sys.exit(run_program("training", PURPOSE, TrainSettings, _run))
