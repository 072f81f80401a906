"""`python -m tuning SWEEP.yaml`: many runs, one table."""

import sys

from pipelines.cli import run_program
from pipelines.display import Display
from tuning.config import SweepSettings

PURPOSE = """Run a training config for every cell of a grid of overrides and every seed, one after another, and tabulate the
scores: trials.csv, and summary.csv with mean and standard deviation over seeds. The same command again goes on."""


def _run(settings: SweepSettings, display: Display) -> None:
    from tuning.sweep import sweep

    sweep(settings, display)


if __name__ == "__main__":
    sys.exit(run_program("tuning", PURPOSE, SweepSettings, _run))
