"""Runs the programs in this process on the session's Ray, which saves the seconds that a process and a Ray of its own take.

For tests of what a command does, not of how a process starts and ends. They ask for `ray_session`. Run as a script it does so for
`Apart`.
"""

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
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


class Apart:
    """Another process, with an environment and a Ray of its own, that runs one command after another."""

    def __init__(self, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.in_process"],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def succeed(self, program: str, *arguments: str) -> str:
        """As the function."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([program, *arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{program} {arguments}: the process ended"
        code, output = json.loads(answer)
        assert code == 0, f"{program} {arguments}\n{output}"
        return output

    def close(self) -> None:
        self._process.communicate()


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run_command(*json.loads(line))), flush=True)
