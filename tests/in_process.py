"""The programs in this process, on the session's Ray: a command without the seconds that a process and a Ray of its own take.

For tests of what a command does, not of how a process starts and ends. They ask for `ray_session`.
"""

import io
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from evaluation.__main__ import _run as run_evaluation
from evaluation.config import EvaluateSettings
from pipelines.__main__ import _run as run_pipelines
from pipelines.prepare.check import check
from pipelines.prepare.config import PrepareSettings
from pipelines.program.cli import run_program
from training.__main__ import _run as run_training
from training.config import TrainSettings
from tuning.__main__ import _run as run_tuning
from tuning.config import SweepSettings

ROOT = Path(__file__).parent.parent
PROGRAMS: dict[str, Any] = {
    "pipelines": (PrepareSettings, run_pipelines),
    "training": (TrainSettings, run_training),
    "evaluation": (EvaluateSettings, run_evaluation),
    "tuning": (SweepSettings, run_tuning),
}


def run_command(program: str, *arguments: str) -> tuple[int, str]:
    """`python -m PROGRAM ARGUMENTS` in the repository's root: its exit code, and all that it told."""
    model, action = PROGRAMS[program]
    told = io.StringIO()
    with chdir(ROOT), redirect_stdout(told), redirect_stderr(told):
        try:
            code = run_program(program, "", model, action, arguments, check if program == "pipelines" else None)
        except SystemExit as ended:  # of what is no option
            code = int(ended.code or 0)
    return code, told.getvalue()


def succeed(program: str, *arguments: str) -> str:
    """What a command told that ended well."""
    code, told = run_command(program, *arguments)
    assert code == 0, f"{program} {arguments}\n{told}"
    return told
