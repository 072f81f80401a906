"""The last line of a program that a signal has stopped, checked by what it names, never by its wording."""

import signal


def assert_stopped(line: str, number: signal.Signals, command: str, kept: str = "") -> None:
    """The line names the signal, what is kept, and last the command that resumes."""
    assert line.startswith(f"{number.name}: ") and kept in line and line.endswith(f": {command}"), line
