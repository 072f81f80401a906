"""Reads an open_clip training command line: what starts the program, with how many processes, and its arguments."""

import argparse
import re
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from pipelines.program.errors import UserError
from training.importing.arguments import ARGUMENTS

_KEY = "ARGUMENTS"  # for errors
_PROGRAM = re.compile(r"(open_clip_train|training)(\.main|/main\.py)$|(^|/)main\.py$")


def split(command: str) -> tuple[list[str], list[str]]:
    """What starts the program, and its arguments."""
    try:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise UserError(_KEY, f"cannot be read as a command line ({error})", "give it in quotes, as for a shell") from None
    at = next((i for i, word in enumerate(words) if _PROGRAM.search(word)), None)
    if at is not None:
        return words[:at], words[at + 1 :]
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    if words[:first]:
        raise UserError(
            _KEY, f"'{words[0]}' is not open_clip's training", "give the command with open_clip_train.main, or its arguments"
        )
    return [], words


def workers_of(launcher: Sequence[str]) -> int:
    """The number of processes that a launcher starts. Raises `UserError` if it does not say it."""
    joined = " ".join(launcher)

    def number(*names: str) -> int | None:
        found = [re.search(rf"(?:^|\s)-*{name}(?:=|\s+)(\S+)", joined) for name in names]
        value = next((match[1] for match in found if match), None)
        if value is not None and not value.isdigit():
            raise UserError(_KEY, f"it starts {value} processes, which is not one number", "pass --gpus N")
        return None if value is None else int(value)

    starts = re.search(r"torchrun|distributed\.(launch|run)|srun|mpirun|horovodrun|accelerate|deepspeed", joined)
    if not starts:
        return 1
    nodes = number("nnodes", "N", "nodes") or 1
    total = number("n", "ntasks", "np")
    each = number("nproc[_-]per[_-]node", "ntasks-per-node")
    if total is None and each is None:
        raise UserError(_KEY, f"{starts[0]} does not say here how many processes it starts", "pass --gpus N")
    return total if total is not None else nodes * (each or 1)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(_KEY, f"not arguments of open_clip 3.3: {message}", "docs/open_clip.md lists all of them")


def given_in(words: Sequence[str]) -> dict[str, Any]:
    """The arguments that are given, by name."""
    parser = _Parser(prog="open_clip", add_help=False, argument_default=argparse.SUPPRESS)
    types: dict[str, Any] = {"whole": int, "number": float, "numbers": float, "text": str, "pairs": str}
    for argument in ARGUMENTS:
        if argument.kind == "flag":
            parser.add_argument(argument.name, dest=argument.name, action="store_true")
        else:
            many: dict[str, Any] = {"numbers": {"nargs": "+"}, "pairs": {"nargs": "*"}}.get(argument.kind, {})
            parser.add_argument(argument.name, dest=argument.name, type=types[argument.kind], **many)
    return vars(parser.parse_args(list(words)))
