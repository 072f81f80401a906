"""The table of docs/stopping.md: a signal at the start of a run, in its features, in an evaluation. What is printed, the exit
code, what is kept, and what the next start says. No Ray; training, preparing, sweeps and jobs have tests of their own.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.held import Held
from tests.stopped import assert_stopped
from tests.training.squares import tree_of, write_root

KILL = signal.SIGKILL
SIGNALS = (signal.SIGINT, signal.SIGTERM, KILL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stops")
    write_root(root)
    return root


@pytest.fixture(scope="module")
def held(root: Path) -> Iterator[Held]:
    held = Held(root)
    yield held
    held.close()


def code_of(number: signal.Signals) -> int:
    """The exit code as Python's multiprocessing has it; a killed process has none of its own."""
    return -number if number == KILL else 128 + number


def resumes_at_0(line: str, run: Path) -> bool:
    return line.startswith(f"{run}: ") and "no checkpoint" in line and line.endswith(" step 0")


def resumes_features(line: str) -> bool:
    return line.startswith("features of the images: ") and "2 of 3 parts" in line


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_at_the_start_in_the_features_and_before_the_first_step(
    held: Held, root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "runs" / "run"
    config.write_text(json.dumps(tree_of(root) | {"storage": str(tmp_path / "runs")}))

    code, printed = held("training", "start", [str(config)], number)
    assert code == code_of(number) and not any(resumes_at_0(line, run) for line in printed)
    if number == KILL:
        assert printed == []
    else:
        assert_stopped(printed[-1], number, f"python -m training {config}", "no checkpoint")

    if number == signal.SIGINT:  # the others find its features
        code, printed = held("training", "features", [str(config)], number)
        assert code == code_of(number) and resumes_at_0(printed[0], run)
        assert_stopped(printed[-1], number, f"python -m training {config}", "features of the images: 2 of 3 parts")
        code, printed = held("training", "features", [str(config)], KILL)
        assert code == -KILL and resumes_at_0(printed[0], run) and resumes_features(printed[1])
        assert not any(str(config) in line for line in printed), "a killed program prints nothing about its end"
        code, printed = held("training", "features", [str(config)], signal.SIGTERM)
        assert code == 143 and resumes_at_0(printed[0], run) and resumes_features(printed[1])
        assert_stopped(printed[-1], signal.SIGTERM, f"python -m training {config}", "features of the images: 2 of 3 parts")

    code, printed = held("training", "fit", [str(config)], number)
    assert code == code_of(number) and resumes_at_0(printed[0], run)
    if number != KILL:
        assert_stopped(printed[-1], number, f"python -m training {config}", "no checkpoint")
    assert not list(run.glob("checkpoint*")) and not (run / "result.json").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_an_evaluation(held: Held, root: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "c.yaml"
    tree = {
        "name": "m",
        "embedder": "tests.evaluation.stranger:known",
        "embedder_arguments": {"seen": str(tmp_path / "seen")},
        "data": {"squares": {"name": "prepared", "path": str(root / "squares")}},
        "tasks": ["zero_shot", "retrieval"],
        "output": str(tmp_path / "out"),
        "cache": str(tmp_path / "cache"),
    }
    config.write_text(json.dumps(tree))
    results = lambda: {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}  # noqa: E731

    code, printed = held("evaluation", "embedding", [str(config)], number)
    assert code == code_of(number) and not results()
    parts = len(list((tmp_path / "cache").glob("*.parts/*.npy")))
    assert parts == 1
    if number != KILL:
        total = printed[-1].split("of ")[1].split()[0]
        assert_stopped(printed[-1], number, f"python -m evaluation {config}", f"embed m: 1 of {total} parts")

    code, printed = held("evaluation", "scoring", [str(config)], number)
    assert code == code_of(number) and any(line.startswith("embed m: ") and " 1 of " in line for line in printed)
    kept = results()
    assert len(kept) == 1
    if number != KILL:
        assert_stopped(printed[-1], number, f"python -m evaluation {config}", "m: 1 of 2 results")

    shown = (tmp_path / "seen").read_text()
    code, printed = held("evaluation", None, [str(config)])
    assert code == 0 and not any(line.startswith("embed m: ") for line in printed)
    assert len(results()) == 2 and kept.items() <= results().items(), "what was scored is not scored again"
    assert (tmp_path / "seen").read_text() == shown, "nor embedded"
