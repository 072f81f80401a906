"""The wheel, built from the sdist and installed into a fresh environment, runs in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.patience import PATIENCE

pytestmark = pytest.mark.e2e  # all, so that one half of the tests builds the wheel, and the other does not

ROOT = Path(__file__).parents[2]
PARTS = ("raylign", "pipelines", "training", "evaluation", "tuning", "pyproject.toml", "README.md", "LICENSE")
SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output; with nothing of this checkout in the environment."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS"))
    }
    ended = subprocess.run(list(map(str, command)), cwd=cwd, env=clean, capture_output=True, text=True, timeout=3 * PATIENCE)
    assert ended.returncode == 0, f"{command}:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and sees what it depends on where it is installed already."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / "source" / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / "source")
    run(sys.executable, "-c", SDIST, folder, cwd=folder / "source")
    (sdist,) = folder.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, sdist, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # Not its .pth files, so not this checkout's editable install.
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return python.parent


def test_the_command_finds_its_configs_and_writes_yours(installed: Path, tmp_path: Path) -> None:
    shown = run(installed / "raylign", "train", "papers/slip-cc3m.yaml", "seed=3", "--show", cwd=tmp_path)
    assert "name: slip-cc3m" in shown and "seed: 3" in shown
    assert "raylign sweep report SWEEP" in run(installed / "raylign", cwd=tmp_path)


def test_all_programs_run_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Embedded data and a folder of images with captions; an objective of one's own beside them; ten lines of Python."""
    run(installed / "raylign", "init", "mine", cwd=tmp_path)
    assert "cosine" in run(installed / "python", ROOT / "tests/raylign/from_wheel.py", ROOT, cwd=tmp_path)
