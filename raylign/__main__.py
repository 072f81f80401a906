"""The command `raylign`: `prepare`, `train`, `evaluate` and `sweep`, each with a config and overrides, and others.

The same programs as `python -m pipelines`, `training`, `evaluation` and `tuning`, which `ray job submit` calls.
"""

import os
import sys
from collections.abc import Callable, Sequence

from pipelines.program.cli import VERBS, begin

_USAGE = """usage: raylign COMMAND CONFIG.yaml [key=value ...]

  raylign init NAME                 write a folder with four commented configs for data of your own
  raylign prepare CONFIG.yaml       pairs -> prepared dataset; --check looks at a sample first
  raylign train CONFIG.yaml         prepared dataset -> run: checkpoints, scores, a page
  raylign evaluate CONFIG.yaml      any embedder -> scores
  raylign sweep CONFIG.yaml         grid x search x seeds -> one report; raylign sweep report SWEEP writes it again
  raylign export RUN --to TARGET    a run as a model of huggingface, open_clip, onnx or safetensors
  raylign import open_clip "..."    an open_clip training command line as configs, key by key
  raylign compare RUN RUN ...       finished runs on one page: settings that differ, curves, scores with paired intervals
  raylign status RUN|STORAGE        what a run does, or all runs of a folder: state, speed, workers, restarts, time left

CONFIG.yaml is a file, or the name of an included one, such as openmoji.yaml. raylign COMMAND --help lists those and all
keys."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print(_USAGE)
        return 0
    if verb == "init":
        from raylign.starter import init

        return init(rest)
    if verb == "export":
        from training.export.__main__ import main as export

        return export(rest, "raylign export")
    if verb == "import":
        from training.importing.__main__ import main as import_

        return import_(rest, "raylign import")
    if verb == "compare":
        from raylign.compare import main as compare

        return compare(rest)
    if verb == "status":
        from training.status import main as status

        return status(rest, "raylign status")
    package = {name: package for package, name in VERBS.items()}.get(verb)
    if package is None:
        print(
            f"error: '{verb}' is not a command: init, {', '.join(VERBS.values())}, export, import, compare, status; "
            "see raylign --help",
            file=sys.stderr,
        )
        return 2
    # As with `python -m`: the user's own modules, which a config names by import strings, are found in this folder. Ray's
    # workers look there too.
    if os.getcwd() not in sys.path:  # noqa: PTH109  a string, as sys.path holds
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    if rest[:1] != ["report"]:
        begin(package, rest)
    return _program(package)(rest, "raylign")


def _program(package: str) -> Callable[[Sequence[str], str], int]:
    """A package's `main`, imported only when it is needed: most import torch."""
    if package == "pipelines":
        from pipelines.__main__ import main
    elif package == "training":
        from training.__main__ import main
    elif package == "evaluation":
        from evaluation.__main__ import main
    else:
        from tuning.__main__ import main
    return main


if __name__ == "__main__":
    sys.exit(main())
