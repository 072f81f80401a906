"""The command line shared by the four programs: CONFIG.yaml, key=value overrides, the options, and how errors are printed."""

import argparse
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pipelines.io.retry import is_remote, shown, shown_place
from pipelines.program import interrupts, yaml_text
from pipelines.program.causes import cause_of, innermost, of_storage
from pipelines.program.config_files import ROOT, find_config, shipped, short_name
from pipelines.program.config_keys import alike
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import describe, example_of, hint_of, load, parse_overrides, read_config, read_yaml
from pipelines.program.settings_base import Settings

S = TypeVar("S", bound=Settings)
_MOST_NAMES = 10  # configs listed in one error
# Keys by which a config belongs to a program: only its configs have all of them.
_OWN = {
    "pipelines": {"source", "output"},
    "training": {"data", "global_batch_size"},
    "evaluation": {"data", "output"},
    "tuning": {"base"},
}
_SWEEP = {"grid", "space", "overrides", "seeds"}  # keys of a sweep, as any program's config may have a `base`
VERBS = {"pipelines": "prepare", "training": "train", "evaluation": "evaluate", "tuning": "sweep"}
"""The programs' names in the command `raylign`."""


class Parser(argparse.ArgumentParser):
    """Prints argument errors like all other errors."""

    def error(self, message: str) -> NoReturn:
        message = message.replace("CONFIG.yaml, key=value", "CONFIG.yaml")  # the overrides are optional
        sys.stderr.write(f"error: {shown(message)}; see {self.prog} --help\n")
        raise SystemExit(2)


class _ProgramParser(Parser):
    """`model` has the keys of the config, which are not options."""

    model: type[Settings] = Settings

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # called by every other method that parses
        self._no_stray_options(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _no_stray_options(self, given: Sequence[str]) -> None:
        """An error for `--epochs 3`: keys of a config are not options."""
        options = [option for action in self._actions for option in action.option_strings]
        for position, argument in enumerate(given):
            if argument.startswith("-") and argument not in options:
                if again := self._config_first(given, position):
                    self.error(f"'{argument}' is not an option; the config comes first: run {again}")
                hint = hint_of(given[position:], self.model)
                meant = f"; {hint}" if hint.startswith("did") else ""
                self.error(f"'{argument}' is not an option ({', '.join(options)}); set keys of the config as key=value{meant}")

    def _config_first(self, given: Sequence[str], position: int) -> str:
        """The command that was meant by `--config F`, or any option with a file of YAML and no config beside it; else ""."""
        option, _, value = given[position].partition("=")
        own = 1 if value else 2
        value = value or " ".join(given[position + 1 : position + 2])
        others = [*given[:position], *given[position + own :]]
        is_file, called = value.endswith((".yaml", ".yml")), option in ("-c", "--config")
        alone = all(other.startswith("-") or "=" in other for other in others)
        if not value or value.startswith("-") or is_file + called + alone < 2:
            return ""
        return shlex.join([*self.prog.split(), value, *others])


def run_program(
    package: str,
    purpose: str,
    model: type[S],
    action: Callable[[S, Display], None],
    arguments: Sequence[str] | None = None,
    check: Callable[[S, Display], bool] | None = None,
    prog: str = "python -m",
) -> int:
    """Parse, load, act. Exit code 0: done; 2: a mistake that the user can fix, in one line; 128 + N: stopped by signal N.

    A program whose cluster has lost its head ends with 3, wherever it is (cluster.py).

    Args:
        check: what --check does instead of `action`; exit code 1 if it returns False.
        prog: how the program was called, `python -m` or `raylign`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    command = command_of(prog, package)
    parser = _ProgramParser(
        prog=command,
        description=purpose,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Only if help is shown: the defaults of some keys take seconds to import.
        epilog=_epilog(package, model) if {"-h", "--help"}.intersection(given) else None,
        allow_abbrev=False,
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="what to do; the included files are listed below")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"set a key of the config, such as {example_of(model)}")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--verbose", action="store_true", help="print Ray's own output too, and tracebacks of errors")
    parser.add_argument("--show", action="store_true", help="print the config with every default filled in, and stop")
    if check is not None:
        parser.add_argument("--check", action="store_true", help="look at headers and a sample, say what would happen, and stop")
    parser.model = model
    options = parser.parse_intermixed_args(arguments)
    display = Display(quiet=options.quiet, verbose=options.verbose)
    settings: S | None = None
    with interrupts.handled():
        try:
            settings = _read(prog, package, model, options)
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
            return refused(error)
        except KeyboardInterrupt as stopped:
            display.close()
            again = _again(command, given, getattr(settings, "overwrite", False))
            return _stop(str(stopped), again)
        except Exception as error:
            told = of_storage(error) or _lost(error)
            if options.verbose or told is None:
                raise
            display.close()
            print(f"error: {shown(str(told))}", file=sys.stderr)
            return 2
        finally:
            display.close()
    return 0


def run_page(parser: Parser, write: Callable[[argparse.Namespace], Path | str], arguments: Sequence[str] | None = None) -> int:
    """A program that writes a page again, from files alone: parse, write, print where it is. Exit codes as of `run_program`."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    with interrupts.handled():
        try:
            page = write(options)
        except UserError as error:
            return refused(error)
        except KeyboardInterrupt:
            return _stop("", shlex.join([*parser.prog.split(), *given]))
        except Exception as error:
            told = of_storage(error)
            if told is None:
                raise
            return refused(told)
    print(f"report: {page}")
    return 0


def refused(error: UserError) -> int:
    """Print a mistake that the user can fix, in one line. Returns the exit code."""
    # One raised inside a Ray task is wrapped in the task's traceback.
    print(f"error: {shown(str(getattr(error, 'cause', error)))}", file=sys.stderr)
    return 2


def command_of(prog: str, package: str) -> str:
    """`python -m training` or `raylign train`."""
    return f"{prog} {VERBS[package] if prog == 'raylign' else package}"


def _stop(kept: str, again: str) -> int:
    """Print the last line of a program that was asked to stop, leave the cluster, and return the exit code."""
    number = interrupts.received()
    with suppress(OSError):  # the terminal may be gone
        print(f"{number.name}: stopped{f', {shown(kept)}' if kept else ''}; to resume: {shown(again)}", file=sys.stderr)
    from pipelines.program import cluster

    cluster.stop()
    return 128 + number


def _again(command: str, arguments: Sequence[str], overwrites: bool) -> str:
    """The command that resumes: it never deletes anything, even if an argument or the config asked for it."""
    kept = [argument for argument in arguments if not argument.startswith("overwrite=")]
    if overwrites and len(kept) == len(arguments):
        kept.append("overwrite=false")
    return shlex.join([*command.split(), *kept])


def _lost(error: Exception) -> UserError | None:
    """The user's error, if a Ray process or node was lost or did not start; None for a bug, which is shown with its traceback."""
    exceptions, inner = sys.modules.get("ray.exceptions"), innermost(error)
    if exceptions is None or not isinstance(inner, exceptions.RayError) or isinstance(inner, exceptions.RayTaskError):
        return None
    return UserError("Ray", cause_of(error), "the same command resumes from what is done, --verbose shows all")


def _read(prog: str, package: str, model: type[S], options: argparse.Namespace) -> S:
    """The validated config with its overrides. Raises `UserError`."""
    path = find_config(options.config, package)
    if is_remote(options.config):
        raise UserError(shown_place(options.config), "is not on a disk, as a config must be", _configs_like(path, package, model))
    _check_file(path, prog, package, model)
    return load(model, path, parse_overrides(options.overrides, model))


def _check_file(path: Path, prog: str, package: str, model: type[Settings]) -> None:
    """Raises `UserError` if there is no file, or it is another program's."""
    name = short_name(path)
    if not path.is_file():
        if "=" in str(path):
            raise UserError(f"'{path}'", "the config comes first", f"run {command_of(prog, package)} CONFIG.yaml {path}")
        raise UserError(name, "is a folder" if path.is_dir() else "no such file", _configs_like(path, package, model))
    owner = package
    if "base" in (raw := read_yaml(path)) and _SWEEP & raw.keys():
        owner = "tuning"
    elif not _OWN[package] <= (keys := read_config(path, model).keys()):
        owner = next((other for other, own in _OWN.items() if other != package and own <= keys), package)
    if owner != package:
        raise UserError(name, "is a config of another program", f"run {command_of(prog, owner)} {name}")


def _configs_like(path: Path, package: str, model: type[Settings]) -> str:
    """A remedy with configs of this program: the included ones, and those in the folder of the path."""
    folder = path if path.is_dir() else path.parent
    beside = sorted(folder.glob("*.yaml")) if folder.is_dir() else []
    configs = [*(file for file in beside if _reads(file, model)), *shipped(package)]
    names = list(dict.fromkeys(short_name(file) for file in configs))
    by_stem = {Path(name).stem: name for name in reversed(names)}
    near = [] if path.is_dir() else alike(path.stem, by_stem)
    if near:
        return f"did you mean {by_stem[near[0]]}?"
    more = f" and {len(names) - _MOST_NAMES} more, see --help" if len(names) > _MOST_NAMES else ""
    return f"there are: {', '.join(names[:_MOST_NAMES])}{more}"


def _reads(file: Path, model: type[Settings]) -> bool:
    """Whether a file looks like a config of this program."""
    try:
        keys = read_config(file, model).keys()
    except UserError:
        return False
    return bool(keys) and keys <= model.model_fields.keys()


def begin(package: str, arguments: Sequence[str]) -> None:
    """Print a line and install signal handlers at once: what follows imports torch, which takes seconds."""
    interrupts.install()
    if not {"-h", "--help", "--quiet", "--show"}.intersection(arguments):
        print(f"{package}: loading", flush=True)


def _epilog(package: str, model: type[Settings]) -> str:
    """The included config files with their first comment lines, and every key, for --help."""
    lines = ["config files:"]
    for path in shipped(package):
        comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").split("\n") if line.startswith("#")]
        lines.append(f"  {path.relative_to(ROOT)}")
        lines += [f"      {comment}" for comment in comments[:2]]
    lines += ["", f"keys (dots reach inside: {example_of(model)}):", describe(model)]
    return "\n".join(lines)
