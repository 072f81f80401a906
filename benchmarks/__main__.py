"""`python -m benchmarks`: all benchmarks, with their commands.

    python -m benchmarks                  # the list
    python -m benchmarks step             # run it, and write its page and its figures into docs/benchmarks/
    python -m benchmarks step --check     # run it, and compare its ratios with those that are kept there

`--check` writes nothing, and ends with exit code 1 if a ratio has moved beyond the noise of both.
"""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import figures

HERE = Path(__file__).parent
RECORDED = ("step",)  # those with figures: they have `measure` and `table`


def listed() -> list[str]:
    """The commands of all benchmarks, with what they say of themselves, and their first line."""
    lines = []
    for path in sorted(HERE.glob("*.py")):
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        starts = (f"    python -m benchmarks.{path.stem}", f"    python -m benchmarks {path.stem}")
        commands = [line.strip() for line in told.splitlines() if line.startswith(starts)]
        if commands:
            lines += [told.splitlines()[0], *(f"    {command}" for command in commands), ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(RECORDED)}; the others have commands of their own"
    )
    parser.add_argument("--rounds", type=int, help="by default each benchmark's own")
    parser.add_argument("--check", action="store_true", help="compare ratios with those that are kept; writes nothing")
    told = parser.parse_args(arguments)
    if unknown := [name for name in told.names if name not in RECORDED]:
        parser.error(f"{unknown[0]} keeps no figures; choose from {', '.join(RECORDED)}")
    if told.check and (lacking := [name for name in told.names if not (figures.FOLDER / f"{name}.json").exists()]):
        parser.error(f"no figures of {lacking[0]} are kept; run it without --check first")
    if not told.names:
        print("\n".join(listed()))
        return 0
    moved = []
    for name in told.names:
        module = importlib.import_module(f"benchmarks.{name}")
        rounds = told.rounds or module.ROUNDS
        found = module.measure(rounds)
        if told.check:
            moved += [f"{name}: {line}" for line in figures.drift(figures.read(name)[1], found)]
            continue
        command = f"python -m benchmarks {name} --rounds {rounds}"
        page = figures.write(name, command, found).with_suffix(".md")
        page.write_text("\n".join(module.table(command, found)) + "\n", encoding="utf-8")
        print(page)
    print("\n".join(moved) if moved else "no ratio has drifted" if told.check else "")
    return 1 if moved else 0


if __name__ == "__main__":
    sys.exit(main())
