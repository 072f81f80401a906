"""The marked blocks of the tutorials run as a reader runs them: page after page, in a folder with only the reader's data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.blocks import ROOT, blocks_of

TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NEEDS_RAY = ["photos.md", "objectives.md"]  # the second goes on where the first ends


def run(folder: Path, page: str) -> None:
    """Save the page's files and run its marked blocks, in their order. A block that fails ends the test with what it printed."""
    shim = folder / ".bin" / "raylign"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m raylign "$@"\n')
    shim.chmod(0o755)
    python_path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = os.environ | {"PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": python_path}
    count = 0
    for block in blocks_of(f"docs/tutorials/{page}"):
        if block.file:
            (folder / block.file).parent.mkdir(exist_ok=True)
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.mark == "run":
            command = ["bash", "-euc"] if block.language == "bash" else [sys.executable, "-c"]
            done = subprocess.run([*command, block.text], cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{block.place}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            count += 1
    assert count, f"{page} has no block that is marked to run"


@pytest.mark.e2e
def test_photos_then_five_objectives(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(240):
        pixels = draws.integers(0, 256, (2, 2, 3), dtype=np.uint8).repeat(16, 0).repeat(20, 1)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i:03}.jpg")
        (tmp_path / "photos" / f"{i:03}.txt").write_text(f"photo {i} of a {('red', 'green', 'blue')[i % 3]} thing")
    for page in NEEDS_RAY:
        run(tmp_path, page)
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.glob("runs/*/report.html")}
    assert pages == {"runs/try/report.html", "runs/try-five/report.html"}
    assert (tmp_path / "runs" / "try-five" / "summary.csv").read_text().count("cyclip") > 0


def test_an_open_clip_command_line_becomes_configs(tmp_path: Path) -> None:
    run(tmp_path, "open_clip.md")
    assert {file.name for file in (tmp_path / "cc3m").glob("*.yaml")} >= {"prepare.yaml", "train.yaml"}


def test_no_marked_block_is_forgotten() -> None:
    marked = {page.name for page in TUTORIALS if any(block.mark == "run" for block in blocks_of(f"docs/tutorials/{page.name}"))}
    others = {p for p in (ROOT / "docs").glob("*.md") if any(b.mark == "run" for b in blocks_of(str(p.relative_to(ROOT))))}
    assert marked == {*NEEDS_RAY, "open_clip.md"} and not others
