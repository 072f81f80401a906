"""`python -m pipelines CONFIG.yaml --check`: told before anything is written, as a table, and as an exit code."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

from pipelines.prepare.check import check, scan_unit, wilson
from pipelines.prepare.config import PrepareSettings
from pipelines.prepare.prepare import prepare
from pipelines.program.display import Display
from pipelines.sources.folder import FolderSource
from tests.in_process import run_command
from tests.patience import PATIENCE
from tests.refusals import refused

ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)

Folder = Callable[..., Path]


@pytest.fixture
def pairs(folder_of: Callable, png_of: Callable) -> Folder:
    """A folder of so many different images with two-word captions, and other files in place of some."""

    def make(count: int, others: Mapping[str, bytes | str] | None = None) -> Path:
        files: dict[str, bytes | str] = {f"{i:03d}.png": png_of(np.roll(PIXELS, i)) for i in range(count)}
        files |= {f"{i:03d}.txt": f"thing {i}" for i in range(count)}
        return folder_of(files | dict(others or {}))

    return make


def settings_of(folder: Path, **keys: Any) -> PrepareSettings:
    source = {"name": "folder", "path": str(folder), "dataset": "things", "unpaired": "reject"}
    tree = {"source": source, "output": str(folder.parent / "out"), "image": {"size": 16, "format": "png"}}
    return PrepareSettings.model_validate(tree | keys)


def checked(settings: PrepareSettings, capsys: pytest.CaptureFixture) -> tuple[bool, dict[str, list[str]], str]:
    """The verdict, the table's lines by their first word, and everything that was said."""
    fine = check(settings, Display())
    said = capsys.readouterr().out
    return fine, {line.split()[0]: line.split() for line in said.splitlines() if line.strip()}, said


BROKEN = {f"{i:03d}.png": b"no image" for i in (7, 23, 24)} | {"030.png": b"", "031.txt": "", "032.txt": "\n"}


def test_what_would_be_left_out_is_told_with_reasons_counts_and_examples(
    ray_session: None, pairs: Folder, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    root = pairs(40, BROKEN)
    fine, lines, said = checked(settings_of(root), capsys)
    assert not fine and "things: 3 of 3 units scanned, 40 rows, 38 images decoded" in said
    assert lines["empty_caption"] == ["empty_caption", "headers", "2", "5.00%", str(root / "031.png")]
    # All 38 were decoded: there is nothing to be unsure of.
    assert lines["undecodable"] == ["undecodable", "images", "3", f"{3 / 38:.2%}", str(root / "007.png")]
    assert lines["empty"][:3] == ["empty", "images", "1"] and lines["empty"][-1] == str(root / "030.png")
    # 2 of 40 rows, and of the other 38 four: 15 %, as many as preparing would find.
    assert "unusable: about 15.0% of the rows, more than max_rejected_rate=0.1" in said
    with refused("max_rejected_rate", "6 of 40 rows", remedy="max_rejected_rate=0.16"):
        prepare(settings_of(root), Display(quiet=True))


def test_the_limit_is_the_one_of_preparing(ray_session: None, pairs: Folder, capsys: pytest.CaptureFixture) -> None:
    root = pairs(40, BROKEN)
    assert checked(settings_of(root, max_rejected_rate=0.15), capsys)[0]
    assert prepare(settings_of(root, max_rejected_rate=0.15), Display(quiet=True)).num_samples == 34


def test_filters_are_told_and_are_no_failure(ray_session: None, pairs: Folder, capsys: pytest.CaptureFixture) -> None:
    root = pairs(20, {f"{i:03d}.txt": "one word and more" for i in range(5)})
    fine, lines, said = checked(settings_of(root, filters={"min_words": 3}), capsys)
    assert fine and lines["too_few_words"][1:3] == ["images", "15"]
    assert "unusable: about 0.0% of the rows, within max_rejected_rate=0.1" in said


def test_what_is_there_is_described(ray_session: None, pairs: Folder, png_of: Callable, capsys: pytest.CaptureFixture) -> None:
    root = pairs(20, {"003.png": png_of(PIXELS), "004.png": png_of(PIXELS), "005.txt": "a caption of five words"})
    _, _, said = checked(settings_of(root), capsys)
    described = {line.rsplit("  ", 1)[0].strip(): line.rsplit("  ", 1)[-1].strip() for line in said.splitlines()}
    assert described["shorter side, pixels"] == "16, 16, 16" and described["words per caption"] == "2, 2, 2"
    assert described["formats"] == "PNG 100%" and described["duplicate images"] == "2 of 20"


def test_a_sample_of_a_unit_is_spread_over_it(pairs: Folder) -> None:
    """A file that breaks off in the middle is found, though few images are decoded."""
    settings = settings_of(pairs(16, {f"{i:03d}.png": b"no image" for i in range(8, 16)}))
    (unit,) = settings.source.units()
    found = scan_unit(unit.data, 4, settings)
    assert (found["rows"], found["sampled"], found["sample_reasons"]) == (16, 4, {"undecodable": 2})
    # An index of the same is judged by its images too.
    assert scan_unit(unit.data, 4, settings_of(settings.source.path, mode="index"))["sample_reasons"] == {"undecodable": 2}


def test_keys_that_come_twice_are_told(
    ray_session: None, tmp_path: Path, png_of: Callable, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(png_of(PIXELS))
    (tmp_path / "pairs.csv").write_text("id,image,caption\n" + "".join(f"{i % 9},a.png,thing {i}\n" for i in range(10)))
    source = {"name": "table", "paths": str(tmp_path / "pairs.csv"), "key": "id"}
    tree = {"source": source, "output": str(tmp_path / "out")}
    fine, lines, _ = checked(PrepareSettings.model_validate(tree), capsys)
    assert fine and lines["duplicate_key"] == ["duplicate_key", "headers", "1", "10.00%", "0"]
    assert not checked(PrepareSettings.model_validate(tree | {"max_rejected_rate": 0.09}), capsys)[0]


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    class Empty(FolderSource):
        def units(self) -> list:
            return []

    (tmp_path / "in").mkdir()
    empty = settings_of(tmp_path / "in").model_copy(update={"source": Empty(name="folder", path=tmp_path / "in", dataset="none")})
    with refused("source", "none"):
        check(empty, Display(quiet=True))


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 2000), (1, 2000), (7, 40), (20, 40), (2000, 2000)])
def test_wilson_is_the_interval_of_the_textbook(hits: int, n: int) -> None:
    expected = binomtest(hits, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_nothing_seen_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.e2e
@pytest.mark.parametrize("others", [{}, BROKEN], ids=["clean", "broken"])
def test_the_program_answers_with_its_exit_code_and_writes_nothing(
    ray_session: None, pairs: Folder, tmp_path: Path, others: dict
) -> None:
    """What refuses runs in a process of its own."""
    root = pairs(40, others)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings_of(root).model_dump(mode="json")))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    if others:
        command = [sys.executable, "-m", "pipelines", str(config), "--check"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
        code, printed = ended.returncode, ended.stdout
        assert "Traceback" not in ended.stderr
    else:
        code, printed = run_command("pipelines", str(config), "--check")
    assert code == bool(others) and "max_rejected_rate=0.1" in printed, printed
    assert ("undecodable" in printed) == bool(others)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
