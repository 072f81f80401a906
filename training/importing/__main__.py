"""`raylign import open_clip "ARGUMENTS"`: the command line of another library's training as configs of ours."""

import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.program.cli import Parser, refused
from pipelines.program.errors import UserError

_PURPOSE = """Turn an open_clip training command line into configs, key by key. Arguments without an equal are named in comments.
Without --output, the configs are printed."""


def main(arguments: Sequence[str], prog: str = "python -m training.importing") -> int:
    """Exit code 0, or 2 with one line that says what is wrong."""
    parser = Parser(prog=prog, description=_PURPOSE)
    parser.add_argument("library", choices=["open_clip"], help="whose command line it is")
    whole = "the arguments in quotes, with or without the command before them"
    parser.add_argument("command", metavar="ARGUMENTS", help=whole)
    parser.add_argument("--gpus", type=int, metavar="N", help="workers, where the command does not say how many it starts")
    parser.add_argument("--output", metavar="FOLDER", help="a new folder for the configs")
    options = parser.parse_args(_joined(arguments))
    folder = None if options.output is None else Path(options.output)
    try:
        if options.gpus is not None and options.gpus < 1:
            raise UserError("--gpus", f"{options.gpus} is no number of workers", "give 1 or more")
        if folder is not None and folder.exists():
            raise UserError("--output", f"{folder} exists", "give another folder")
        from training.importing.open_clip import imported

        files = imported(options.command, options.gpus)
    except UserError as error:
        return refused(error)
    if folder is None:
        print("\n".join(f"# --- {name} ---\n{text}" for name, text in files.items()), end="")
        return 0
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{folder}: {', '.join(files)}; read the comments in {folder / 'train.yaml'}, then")
    for name in files:
        print(f"    raylign {'train' if name == 'train.yaml' else 'prepare'} {folder / name}")
    return 0


def _joined(arguments: Sequence[str]) -> list[str]:
    """A command line that begins with an option is not one of ours: argparse would take it for one."""
    given = list(arguments)
    return [f" {each}" if i == 1 and each.startswith("--") and " " in each else each for i, each in enumerate(given)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
