"""Features of 100,000 texts, killed in processes of their own: computing them resumes, and ends the same to the last bit."""

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.dataset.prepared import Prepared
from pipelines.program.display import Display
from tests.patience import wait_until
from tests.pipelines.features_run import ROWS, TEXTS, WIDTH, Letters, features
from tests.training.program import Program

pytestmark = pytest.mark.e2e

RUN = ("-m", "tests.pipelines.features_run")
PARTS = 25
Start = Callable[..., Program]


@pytest.fixture(scope="module")
def undisturbed(stamps: Prepared) -> Path:
    """In this process, without actors."""
    return features(stamps, 0, Display(quiet=True))


@pytest.fixture
def dataset(stamps: Prepared, tmp_path: Path) -> Path:
    """A copy of the dataset, without stored features."""
    shutil.copytree(stamps.path, tmp_path / "dataset", ignore=shutil.ignore_patterns("features"))
    return tmp_path / "dataset"


@pytest.fixture
def start() -> Iterator[Start]:
    programs: list[Program] = []

    def start(dataset: Path, actors: int, *stop: int) -> Program:
        programs.append(Program(dataset, str(actors), *map(str, stop), run=RUN))
        return programs[-1]

    yield start
    for program in programs:
        program.kill()


def parts(dataset: Path) -> dict[str, tuple[int, int]]:
    """The parts that are done, and which file each is."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in dataset.glob("features/*.parts/*.npy")}


def wait_for(program: Program, dataset: Path, wanted: int) -> None:
    """Until so many parts are done."""
    wait_until(lambda: len(parts(dataset)) >= wanted or program.process.poll() is not None, program.text, every=0.002)


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("rows.npy", "features.json"))


def test_the_undisturbed_one_holds_what_the_encoder_gives_to_batches_of_64(undisturbed: Path) -> None:
    rows, encoder = np.load(undisturbed / "rows.npy"), Letters(7)
    assert rows.shape == (ROWS, WIDTH)
    for at in (0, 4032, 4096, 99_968):
        assert np.array_equal(rows[at : at + 64], encoder(np.asarray(TEXTS[at : at + 64])).astype(np.float16))


def test_killed_twice_it_resumes_and_ends_bit_identical(start: Start, undisturbed: Path, dataset: Path) -> None:
    choose, done = random.Random(20261125), 0
    for least, most, stop in ((1, 6, 9), (10, 16, 20)):
        before = parts(dataset)
        program, wanted = start(dataset, 2, stop), choose.randint(least, most)
        wait_for(program, dataset, wanted)
        time.sleep(choose.uniform(0, 0.3))
        program.kill()
        assert program.process.returncode == -9 and not list(dataset.glob("features/*/features.json"))
        assert f" {done} of {PARTS} parts " in program.text() or not done
        after = parts(dataset)
        assert len(before) < len(after) < PARTS and before.items() <= after.items(), "what was done is not done again"
        done = len(after)
    program = start(dataset, 2)
    assert program.wait() == 0, program.text()
    assert f" {done} of {PARTS} parts " in program.text()
    shown = [int(done) for done in re.findall(rf"(\d+)/{ROWS}", program.text())]
    assert shown[0] > done * 4096 and shown[-1] == ROWS, "only the missing parts are computed"
    (found,) = dataset.glob("features/*")
    assert found.name == undisturbed.name and same(found, undisturbed)


def test_two_processes_at_once_end_with_the_same_features(start: Start, undisturbed: Path, dataset: Path) -> None:
    programs = [start(dataset, 0), start(dataset, 0)]
    for program in programs:
        assert program.wait() == 0, program.text()
    (found,) = dataset.glob("features/*")
    assert same(found, undisturbed)


def test_half_a_part_is_computed_anew(start: Start, undisturbed: Path, dataset: Path) -> None:
    """A machine that goes down may leave a file without its content."""
    folder = dataset / "features" / f"{undisturbed.name}.parts"
    folder.mkdir(parents=True)
    rows = np.load(undisturbed / "rows.npy")
    for number in range(PARTS):
        np.save(folder / f"{number:05d}.npy", rows[number * 4096 : (number + 1) * 4096])
    (folder / "00003.npy").write_bytes((folder / "00003.npy").read_bytes()[:5000])
    (folder / "00004.npy").write_bytes(b"")
    program = start(dataset, 0)
    assert program.wait() == 0 and f" 23 of {PARTS} parts " in program.text()
    assert same(dataset / "features" / undisturbed.name, undisturbed)
