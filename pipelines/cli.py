"""What the four programs have in common: CONFIG.yaml, key=value overrides, --quiet, --verbose, --show, and how errors end."""

import argparse
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

from pipelines import interrupts, yaml_text
from pipelines.causes import cause_of, innermost
from pipelines.display import Display
from pipelines.remote import shown
from pipelines.settings import Settings, UserError, describe, load, parse_overrides

S = TypeVar("S", bound=Settings)


class _Parser(argparse.ArgumentParser):
    """Argument errors in the same voice as all others."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("CONFIG.yaml, key=value", "CONFIG.yaml")  # the overrides are optional
        sys.stderr.write(f"error: {message}; see {self.prog} --help\n")
        raise SystemExit(2)


def run_program(
    package: str,
    purpose: str,
    model: type[S],
    action: Callable[[S, Display], None],
    arguments: Sequence[str] | None = None,
    check: Callable[[S, Display], bool] | None = None,
) -> int:
    """Parse, load, act. Exit code 0: done; 2: a mistake the user can put right, in one line; 128 + N: stopped by signal N.

    `check`: what --check does instead of `action`; exit code 1 where it is not content.
    """
    parser = _Parser(
        prog=f"python -m {package}",
        description=purpose,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(package, model),
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="what to do; the files that come along are listed below")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="set a key of the config, such as seed=1")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--verbose", action="store_true", help="print Ray's own output too, and tracebacks of errors")
    parser.add_argument("--show", action="store_true", help="print the config with every default filled in, and stop")
    if check is not None:
        parser.add_argument("--check", action="store_true", help="look at headers and a sample, tell what would happen, and stop")
    options = parser.parse_intermixed_args(arguments)
    display = Display(quiet=options.quiet, verbose=options.verbose)
    settings: S | None = None
    with interrupts.handled():
        try:
            settings = load(model, options.config, parse_overrides(options.overrides))
            if options.show:
                print(yaml_text.dump(settings.model_dump(mode="json")), end="")
                return 0
            if check is not None and options.check:
                return 0 if check(settings, display) else 1
            action(settings, display)
        except UserError as error:
            if options.verbose:
                sys.stderr.write(shown(traceback.format_exc()))
            display.close()
            # Raised inside a Ray task it comes back wrapped in the task's traceback.
            print(f"error: {shown(str(getattr(error, 'cause', error)))}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stopped:
            display.close()
            again = _again(package, sys.argv[1:] if arguments is None else arguments, getattr(settings, "overwrite", False))
            return _stop(str(stopped), again)
        except Exception as error:
            if options.verbose or not _lost(error):
                raise
            display.close()
            print(
                f"error: Ray: {shown(cause_of(error))}; the same command goes on from what is done, --verbose shows all",
                file=sys.stderr,
            )
            return 2
        finally:
            display.close()
    return 0


def _stop(kept: str, again: str) -> int:
    """The last line of a program that was asked to stop, and its exit code."""
    number = interrupts.received()
    with suppress(OSError):  # the terminal may be gone
        print(f"{number.name}: stopped{f', {shown(kept)}' if kept else ''}; to go on: {shown(again)}", file=sys.stderr)
    from pipelines import cluster

    cluster.stop()
    return 128 + number


def _again(package: str, arguments: Sequence[str], overwrites: bool) -> str:
    """The command that goes on: never by deleting what is there, whether an argument or the config asked for that."""
    kept = [argument for argument in arguments if not argument.startswith("overwrite=")]
    if overwrites and len(kept) == len(arguments):
        kept.append("overwrite=false")
    return shlex.join(["python", "-m", package, *kept])


def _lost(error: Exception) -> bool:
    """Whether a process or node of Ray was lost, or never there: not a bug, which shows its traceback."""
    exceptions, inner = sys.modules.get("ray.exceptions"), innermost(error)
    return exceptions is not None and isinstance(inner, exceptions.RayError) and not isinstance(inner, exceptions.RayTaskError)


def _epilog(package: str, model: type[Settings]) -> str:
    """Examples, the config files that come along with their first comment lines, and every key."""
    folder = "sweeps" if package == "tuning" else "configs"
    lines = ["config files:"]
    root = Path(__file__).parent.parent
    for path in sorted((root / package / folder).rglob("*.yaml")):
        comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").split("\n") if line.startswith("#")]
        lines.append(f"  {path.relative_to(root)}")
        lines += [f"      {comment}" for comment in comments[:2]]
    lines += ["", "keys (dots reach inside: optimizer.lr=1e-3):", describe(model)]
    return "\n".join(lines)
