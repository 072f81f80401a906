"""What is asked for often, and what Ray starts most, imports none of the libraries that take seconds."""

import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent
SLOW = {"torch", "ray", "pandas", "timm", "torchvision", "transformers", "scipy", "sklearn", "optuna", "matplotlib"}
STEPS = {
    "the API": "import raylign",
    "help": "main(['--help'])",
    "a run's state": "main(['status', 'nowhere'])",
    "a sweep's config": "main(['sweep', 'smoke.yaml', '--show'])",
    "preparing": "import pipelines.prepare.prepare",
    "a task that reads": "import pipelines.prepare.shards, pipelines.dataset.stream",
}


def test_cheap_starts_import_nothing_slow() -> None:
    """In one process, one after the other: the first that imports one of them is named."""
    lines = ["import sys", "from raylign.__main__ import main"]
    for name, step in STEPS.items():
        lines += [step, f"print({name!r} + ':', *sorted({SLOW!r} & set(sys.modules)), file=sys.stderr)"]
    ended = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    found = [line for line in ended.stderr.splitlines() if line.partition(":")[0] in STEPS]
    assert found == [f"{name}:" for name in STEPS], ended.stderr
