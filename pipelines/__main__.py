"""`python -m pipelines CONFIG.yaml`: prepare a dataset, or compute stored features of a prepared one."""

import sys
from collections.abc import Sequence

from pipelines.prepare.check import check
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.cli import begin, run_program
from pipelines.program.config_files import find_config
from pipelines.program.display import Display
from pipelines.program.errors import UserError
from pipelines.program.settings import parse_overrides, read_config

PURPOSE = """Prepare a dataset: read image-text pairs from a source with Ray Data, decode and resize every image once into
shards (or only record where each image is), number the rows, and list the rejected ones. After an interruption the same command
resumes; if everything is done, it says so and returns.

A config with the key dataset instead of source computes stored features of that prepared dataset: frozen encoders'
features of all images and captions, once, for runs with locked towers or frozen encoders. After an interruption the same
command resumes. Its keys:
python -m pipelines pipelines/configs/openmoji-features.yaml --help"""

FEATURES = """Compute stored features: a frozen encoder's features of all images or captions of a prepared dataset, with Ray
Data actors, and the nearest neighbours that they give. Runs with the same encoders use them. After an interruption the same
command resumes; existing features are checked."""


def _run(settings: PrepareSettings, display: Display) -> None:
    prepare(settings, display)


def _of_features(arguments: Sequence[str]) -> bool:
    """Whether the config has the key `dataset`, and not `source`."""
    config, *overrides = [argument for argument in arguments if not argument.startswith("-")] or [""]
    try:
        tree = read_config(find_config(config, "pipelines"), PrepareSettings)
        keys = tree.keys() | {key.split(".")[0] for key in parse_overrides(overrides)}
    except UserError:  # `run_program` will raise it again
        return False
    return "dataset" in keys and "source" not in keys


def main(arguments: Sequence[str], prog: str = "python -m") -> int:
    """The exit code."""
    if not _of_features(arguments):
        return run_program("pipelines", PURPOSE, PrepareSettings, _run, arguments, check, prog)
    from training.features import FeatureSettings, compute_features  # imports torch and all encoders

    def run(settings: FeatureSettings, display: Display) -> None:
        compute_features(settings, display)

    return run_program("pipelines", FEATURES, FeatureSettings, run, arguments, prog=prog)


if __name__ == "__main__":
    begin("pipelines", sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
