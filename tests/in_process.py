"""Runs the programs in this process on the session's Ray, which saves the seconds that a process and a Ray of its own take.

For tests of what a command does, not of how a process starts and ends. They ask for `ray_session`.
"""

import importlib
import io
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_command(program: str, *arguments: str) -> tuple[int, str]:
    """`python -m PROGRAM ARGUMENTS` in the repository's root: its exit code and output."""
    main = importlib.import_module(f"{program}.__main__").main
    output = io.StringIO()
    with chdir(ROOT), redirect_stdout(output), redirect_stderr(output):
        try:
            code = main(arguments)
        except SystemExit as ended:  # by argparse
            code = int(ended.code or 0)
    return code, output.getvalue()


def succeed(program: str, *arguments: str) -> str:
    """The output of a command, which must succeed."""
    code, output = run_command(program, *arguments)
    assert code == 0, f"{program} {arguments}\n{output}"
    return output
