"""Memory does not grow with the dataset: five times the data, decoded through an object store that holds less than the first.

Each process is measured for itself, and its own memory alone: how many of them there are at a time, and who is charged with the
pages that they share, depends on what else runs on the machine.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from tests.patience import PATIENCE

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ROWS = 15360  # 120 batches: enough for every process to have done its work several times


def peak_of(folder: Path, rows: int) -> dict[str, float]:
    """Prepare so many rows of forty images, and stream an epoch in a process of its own."""
    with (folder / f"{rows}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        writer.writerows([f"{i % 40}.jpg", f"thing {i}"] for i in range(rows))
    tree = {
        "source": {"name": "table", "paths": str(folder / f"{rows}.csv")},
        "output": folder / f"data-{rows}",
        "mode": "index",
        "splits": {},
    }
    prepare(PrepareSettings.model_validate(tree), Display(quiet=True))
    script = str(Path(__file__).parent / "memory_run.py")
    command = [sys.executable, script, str(folder / f"data-{rows}")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_memory_is_flat_from_one_to_five_times_the_data(ray_session: None, tmp_path: Path) -> None:
    for i in range(40):
        pixels = np.random.default_rng(i).integers(0, 256, (75, 100, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
    small, large = peak_of(tmp_path, ROWS), peak_of(tmp_path, 5 * ROWS)
    print(small, large)
    assert large["rows"] == 5 * small["rows"]
    more = large["decoded"] - small["decoded"]
    assert small["decoded"] > 2 * small["capacity"] and more > 10 * small["capacity"], "more than the object store holds"
    assert small["spilled"] == large["spilled"] == 0 < large["store"] < large["capacity"], (small, large)
    assert large["consumer"] - small["consumer"] < 0.02 * more, (small, large)
    assert large["task"] - small["task"] < 0.02 * more, (small, large)
