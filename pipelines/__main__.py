"""`python -m pipelines CONFIG.yaml`: prepare a dataset."""

import sys

from pipelines.check import check
from pipelines.cli import run_program
from pipelines.config import PrepareSettings
from pipelines.display import Display
from pipelines.prepare import prepare

PURPOSE = """Prepare a dataset: read image-text pairs from a source with Ray Data, decode and resize every picture once into
shards (or only note where each lies), number the rows, and list the rejected ones. Killed, the same command goes on; asked again
for the same, it says so and returns."""


def _run(settings: PrepareSettings, display: Display) -> None:
    prepare(settings, display)


if __name__ == "__main__":
    sys.exit(run_program("pipelines", PURPOSE, PrepareSettings, _run, check=check))
