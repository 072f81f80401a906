"""`python -m evaluation.reporting OUTPUT`: write the comparison of saved results again, without Ray and without embedding."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.plan import own_task
from evaluation.report import write_report
from pipelines.program.cli import Parser, run_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(
        prog="python -m evaluation.reporting",
        description="Write report.html, report.md and results.csv of a folder of results again, from the result files alone.",
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the output of python -m evaluation, such as runs/evaluation")
    parser.add_argument("--task", action="append", default=[], metavar="MODULE:CLASS", help="a task of your own that has results")
    return run_page(parser, _write, arguments)


def _write(options: argparse.Namespace) -> Path:
    write_report(options.output, [own_task(name, "--task") for name in options.task])
    return options.output / "report.html"


if __name__ == "__main__":
    sys.exit(main())
