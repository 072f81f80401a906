"""Preparing that is killed, in processes of its own: the same command resumes, redoes next to nothing, and ends the same."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray  # noqa: F401  brings psutil along
import yaml
from PIL import Image

from pipelines.dataset.prepared import Prepared
from tests.in_process import succeed
from tests.patience import PATIENCE, wait_until
from tests.training.program import listen

import psutil  # isort: skip

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
ROWS = 12_000
IMAGES = 400
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


class Preparing:
    """`python -m pipelines CONFIG.yaml output=...` with all that it starts; `stop`: where it waits (prepare_run.py)."""

    def __init__(self, config: Path, output: Path, stop: str):
        self._output = config.with_name(f"output-{time.time_ns()}.txt")
        program = [str(Path(__file__).with_name("prepare_run.py")), stop]
        with self._output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *program, str(config), f"output={output}"],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=listen,
            )

    def text(self) -> str:
        return self._output.read_text()

    def stop(self, number: signal.Signals) -> None:
        """Ask it to stop: it says in one line what is kept and how to resume, and nothing of its Ray stays."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        assert self.process.wait(PATIENCE) == 128 + number, self.text()
        last = self.text().splitlines()[-1]
        assert re.match(rf"{number.name}: .*\d+ of \d+ parts .*: python -m pipelines ", last), self.text()
        assert not psutil.wait_procs(family, timeout=PATIENCE)[1]

    def kill(self) -> None:
        """End the program and its Ray at one blow, so that nobody finishes anything."""
        if self.process.poll() is not None:
            return
        family = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in family:
            try:
                process.suspend()
            except psutil.Error:
                continue
        for process in family:
            try:
                process.kill()
            except psutil.Error:
                continue
        assert self.process.wait(PATIENCE) == -signal.SIGKILL
        psutil.wait_procs(family, timeout=PATIENCE)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 12,000 captions for 400 little photographs; every 1,000th image is not there."""
    folder = tmp_path_factory.mktemp("source")
    for i in range(IMAGES):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((16, 16)).save(folder / f"{i}.jpg", quality=80)
    lines = [f"{i % IMAGES if i % 1000 else 'gone'}.jpg\tthing number {i}\n" for i in range(ROWS)]
    (folder / "pairs.tsv").write_text("filepath\ttitle\n" + "".join(lines))
    tree = {
        "source": {"name": "table", "paths": str(folder / "pairs.tsv")},
        "output": "unused",
        "image": {"size": 16, "format": "jpeg"},
        "shard_rows": 256,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


Start = Callable[..., Preparing]


@pytest.fixture(scope="module")
def start(config: Path) -> Iterator[Start]:
    """Start preparing into a folder, as far as a stop. Same folder, same command."""
    programs: list[Preparing] = []

    def start(output: Path, stop: str) -> Preparing:
        programs.append(Preparing(config, output, stop))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    said = succeed("pipelines", str(config), f"output={output}")
    assert not re.search(r"\d+ of \d+ parts", said), "there was nothing to resume"
    return Prepared.open(output)


Identity = tuple[int, int]  # of a file: another one when it is written again


def done(output: Path) -> dict[str, dict[str, Identity]]:
    """The parts that are done, each with its files."""
    names = {path.name.split(".")[0] for path in output.glob("content-*/*.found.parquet")}
    return {name: {path.name: identity(path) for path in output.glob(f"content-*/{name}.*")} for name in names}


def identity(path: Path) -> Identity:
    return path.stat().st_ino, path.stat().st_mtime_ns


def begun(output: Path) -> set[Path]:
    """Files that somebody was writing to when it ended."""
    return set(output.glob("content-*/*.partial-*"))


def shards(output: Path) -> list[Path]:
    """Shards whose rows have their ids."""
    return [path for path in output.glob("content-*/*.parquet") if ".found." not in path.name]


def wait_for(program: Preparing, reached: Callable[[], bool]) -> None:
    """`reached` must come before its end."""

    def there() -> bool:
        assert program.process.poll() is None, f"ended too early:\n{program.text()}"
        return reached()

    wait_until(there, program.text, every=0.002)


def end_at_random(start: Start, output: Path, parts: int, choose: random.Random, number: signal.Signals) -> None:
    """Start, and end it while parts are being written; what was done before must not be touched."""
    before, left = done(output), begun(output)
    program = start(output, "reading")
    wanted = len(before) + choose.randint(1, (parts - len(before)) // 3)
    wait_for(program, lambda: len(list(output.glob("content-*/*.found.parquet"))) >= wanted)
    time.sleep(choose.uniform(0, 0.2))
    program.kill() if number == signal.SIGKILL else program.stop(number)
    after = done(output)
    assert len(before) < len(after) < parts and not (output / "manifest.json").exists()
    assert before.items() <= after.items(), "what was done is not done again"
    assert len({path.name.split(".")[0] for path in begun(output) - left}) <= (os.cpu_count() or 1), "and in flight are few"


def without_time(prepared: Prepared) -> dict[str, Any]:
    """What the data decide: not when it was done, nor by what is in the checkout meanwhile."""
    return {name: value for name, value in prepared.manifest.items() if name not in ("created", "code_version")}


def contents(prepared: Prepared) -> dict[str, bytes]:
    """All files but the manifest, which holds a time."""
    files = [path for path in prepared.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(prepared.path).as_posix(): path.read_bytes() for path in files}


def test_killed_at_any_moment_the_same_command_ends_with_the_same_dataset(
    start: Start, config: Path, undisturbed: Prepared, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    parts = len(undisturbed.manifest["shards"])
    assert parts >= 40
    choose = random.Random(20261125)
    for number in ENDS:
        end_at_random(start, output, parts, choose, number)
    before = done(output)

    # Between the parts and the manifest: as soon as all parts are done, and when the rows of some shards have ids.
    program = start(output, "ids")
    wait_for(program, lambda: len(list(output.glob("content-*/*.found.parquet"))) == parts)
    program.kill()
    every = done(output)
    assert before.items() <= every.items() and len(every) == parts
    for path in shards(output):
        path.unlink()
    program = start(output, "shards")
    wait_for(program, lambda: len(shards(output)) > 3)
    program.kill()
    assert len(shards(output)) > 3 and not (output / "manifest.json").exists()
    assert list(output.glob("rejected.parquet*")), "this is left too, and is no stranger's"

    said = succeed("pipelines", str(config), f"output={output}")
    assert f" {parts} of {parts} parts " in said
    after = Prepared.open(output)
    assert after.fingerprint == undisturbed.fingerprint and without_time(after) == without_time(undisturbed)
    kept = ROWS - ROWS // 1000
    counts = {"listed": ROWS, "found": kept, "read": ROWS, "kept": kept, "rejected": {"missing_image": ROWS // 1000}}
    assert after.manifest["counts"] == counts
    tars = {path.name: identity(path) for path in output.glob("content-*/*.tar")}
    assert tars.items() <= {name: found for files in every.values() for name, found in files.items()}.items()
    ours, theirs = contents(after), contents(undisturbed)
    assert ours.keys() == theirs.keys(), "nothing is left of what was begun"
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not [name for name in ours if ".partial-" in name or ".found." in name]


def test_what_was_prepared_is_left_alone(config: Path, undisturbed: Prepared) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.path.rglob("*")}
    assert "already prepared by this config" in succeed("pipelines", str(config), f"output={undisturbed.path}")
    assert {path: path.stat().st_mtime_ns for path in undisturbed.path.rglob("*")} == before
    assert json.loads((undisturbed.path / "manifest.json").read_text()) == undisturbed.manifest
