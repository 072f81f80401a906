"""`python -m tuning SWEEP.yaml` runs a sweep; `python -m tuning report SWEEP` writes its report again from its tables."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipelines.io.retry import is_remote
from pipelines.program.cli import Parser, begin, command_of, run_page, run_program
from pipelines.program.display import Display
from tuning.config import SweepSettings

PURPOSE = """Compare the cells of a grid (such as objective x optimizer) on equal terms: in every cell search hyperparameters on a
validation split with Ray Tune and Optuna, train the best point with several seeds, test, and report which differences are
distinguishable from chance. Writes trials.csv, summary.csv, pairwise.csv and report.html while it runs. The same command resumes
an interrupted sweep, and extends a finished one with more cells, trials or seeds. `python -m tuning report SWEEP` writes the
report again."""


def _run(settings: SweepSettings, display: Display, command: str = "") -> None:
    from tuning.sweep import sweep

    sweep(settings, display, command)


def report(arguments: Sequence[str], prog: str = "python -m") -> int:
    """Write the report of a sweep again, from its tables alone. Exit code 0, or 2 with one line that says what is wrong."""
    from tuning.reporting import write_report

    def write(options: argparse.Namespace) -> Path | str:
        if not isinstance(options.sweep, str):
            print(write_report(options.sweep))
            return options.sweep / "report.html"
        from training.working_copy import working_copy
        from tuning.trials import Folder, pull

        with working_copy(options.sweep, Display(), "sweep", pull) as copy:
            print(write_report(copy))
            Folder(options.sweep).keep()
        return f"{options.sweep}/report.html"

    command = f"{command_of(prog, 'tuning')} report"
    parser = Parser(prog=command, description="Write a sweep's report again, from its tables.")
    parser.add_argument("sweep", type=_place, metavar="SWEEP", help="the sweep's folder, such as runs/smoke-sweep, or its URI")
    return run_page(parser, write, arguments)


def _place(text: str) -> Path | str:
    return text.rstrip("/") if is_remote(text) else Path(text)


def main(arguments: Sequence[str], prog: str = "python -m") -> int:
    """Run the program and return its exit code."""
    if list(arguments[:1]) == ["report"]:
        return report(arguments[1:], prog)
    # The report shows this command as the one that resumes: it must not delete results.
    kept = [argument for argument in arguments if not argument.startswith("overwrite=")]
    command = shlex.join([*command_of(prog, "tuning").split(), *kept])
    return run_program("tuning", PURPOSE, SweepSettings, partial(_run, command=command), arguments, prog=prog)


if __name__ == "__main__":
    if sys.argv[1:2] != ["report"]:
        begin("tuning", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
