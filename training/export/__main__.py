"""`python -m training.export RUN --to TARGET`, or `raylign export`: a run as a model of another library."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.io import storage
from pipelines.program import interrupts
from pipelines.program.causes import of_storage
from pipelines.program.cli import refused
from pipelines.program.errors import UserError
from pipelines.program.path_keys import local_argument, place_argument

_TARGETS = ("huggingface", "open_clip", "onnx", "safetensors")
_PURPOSE = """Write a run's newest checkpoint as a model of another library, with its image processing, its tokenizer and a model
card. The export is loaded with that library and compared with the run on the held-out split before it gets its name."""


def main(arguments: Sequence[str], prog: str = "python -m training.export") -> int:
    """Exit code 0; 2 with one line that says what is wrong; 128 + N: stopped by signal N."""
    parser = argparse.ArgumentParser(prog=prog, description=_PURPOSE, formatter_class=argparse.RawDescriptionHelpFormatter)
    run = "a run, such as runs/demo or s3://bucket/runs/demo, or one of its checkpoints"
    parser.add_argument("run", type=place_argument, metavar="RUN", help=run)
    parser.add_argument("--to", required=True, choices=_TARGETS, help="the library that is to load it")
    new = "a new folder on a disk; by default RUN-TARGET, of a run in a store in this folder"
    parser.add_argument("--output", type=local_argument, metavar="FOLDER", help=new)
    data = "the prepared dataset, where it is no longer where it was"
    parser.add_argument("--data", type=place_argument, metavar="FOLDER", help=data)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of the rows from the run's; 1e-4")
    between = "weights between those that the run started from (0) and its own (1): WiSE-FT"
    parser.add_argument("--wise-ft", type=float, metavar="ALPHA", help=between)
    options = parser.parse_args(arguments)
    name = f"{storage.name_of(options.run)}-{options.to}"
    output = options.output or (Path(name) if isinstance(options.run, str) else options.run.with_name(name))
    if output.exists():  # before the seconds that imports take
        return refused(UserError("--output", f"{output} exists", "give another folder, or delete it"))
    print("export: loading", flush=True)
    from training.export.export import export

    _quiet()
    with interrupts.handled():
        try:
            export(options.run, options.to, output, options.data, options.tolerance, wise_ft=options.wise_ft)
        except UserError as error:
            return refused(error)
        except OSError as error:
            if (told := of_storage(error)) is None:
                raise
            return refused(told)
        except KeyboardInterrupt:
            number = interrupts.received()
            print(f"{number.name}: stopped; nothing is left of {output}", file=sys.stderr)
            return 128 + number
    print(f"export: {output}")
    return 0


def _quiet() -> None:
    """The libraries' progress bars and warnings about networks that are built without weights say nothing here."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger().setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
