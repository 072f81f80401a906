"""The version of the code, which datasets, checkpoints and results are stamped with."""

import importlib.metadata
import subprocess
from pathlib import Path

_GIT = 300  # seconds before a hanging git is ignored; long enough for a slow disk or a busy machine


def code_version() -> str:
    """Version of raylign, and the commit if it is a checkout."""
    try:
        version = importlib.metadata.version("raylign")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=_GIT, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{commit}"
