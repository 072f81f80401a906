"""The programs in this process, on the session's Ray: a command without the seconds that a process and a Ray of its own take.

For tests of what a command does, not of how a process starts and ends. They ask for `ray_session`.
"""

import importlib
import io
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_command(program: str, *arguments: str) -> tuple[int, str]:
    """`python -m PROGRAM ARGUMENTS` in the repository's root: its exit code, and all that it told."""
    main = importlib.import_module(f"{program}.__main__").main
    told = io.StringIO()
    with chdir(ROOT), redirect_stdout(told), redirect_stderr(told):
        try:
            code = main(arguments)
        except SystemExit as ended:  # of what is no option
            code = int(ended.code or 0)
    return code, told.getvalue()


def succeed(program: str, *arguments: str) -> str:
    """What a command told that ended well."""
    code, told = run_command(program, *arguments)
    assert code == 0, f"{program} {arguments}\n{told}"
    return told
