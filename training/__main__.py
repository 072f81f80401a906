"""`python -m training CONFIG.yaml`: trains one run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.program.cli import begin, run_program

if TYPE_CHECKING:
    from pipelines.program.display import Display
    from training.config import TrainSettings

PURPOSE = """Train a dual encoder on a prepared dataset with Ray Train, score it on held-out pairs, and write a report.
The same command resumes an interrupted run; a finished run says so."""


def _run(settings: TrainSettings, display: Display) -> None:
    from training.run import run

    run(settings, display)


def main(arguments: Sequence[str], prog: str = "python -m") -> int:
    """Run the program, and return its exit code."""
    from training.config import TrainSettings

    return run_program("training", PURPOSE, TrainSettings, _run, arguments, prog=prog)


if __name__ == "__main__":
    begin("training", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
