"""The table of docs/stopping.md: a signal at the start of a run, in its features, in an evaluation. What is told, the exit code,
what is kept, and what the next start says. No Ray; training, preparing, sweeps and jobs are in the tests of what they are.
"""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.held import Held
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
    """As Python's multiprocessing has it: nobody has a say in a kill."""
    return -number if number == KILL else 128 + number


def last_line(number: signal.Signals, package: str, config: Path, kept: str) -> str:
    return f"{number.name}: stopped, {kept}; to go on: python -m {package} {config}"


@pytest.mark.parametrize("number", SIGNALS)
def test_at_the_start_in_the_features_and_before_the_first_step(
    held: Held, root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "runs" / "run"
    config.write_text(json.dumps(tree_of(root) | {"storage": str(tmp_path / "runs")}))
    told_before = f"{run}: started before, but there is no checkpoint to go on from; training begins at step 0"

    code, told = held("training", "start", [str(config)], number)
    assert code == code_of(number) and told_before not in told
    assert told[-1:] == [] if number == KILL else [last_line(number, "training", config, "no checkpoint was saved yet")]

    if number == signal.SIGINT:  # the others find its features
        code, told = held("training", "features", [str(config)], number)
        assert code == code_of(number) and told[0] == told_before
        assert told[-1] == last_line(number, "training", config, "bank of images: 2 of 3 parts are kept")
        code, told = held("training", "features", [str(config)], KILL)
        assert code == -KILL and told[:2] == [told_before, "bank of images: going on, 2 of 3 parts are done"]
        assert not any("stopped" in line for line in told)
        code, told = held("training", "features", [str(config)], signal.SIGTERM)
        assert code == 143 and told[:2] == [told_before, "bank of images: going on, 2 of 3 parts are done"]
        assert told[-1] == last_line(signal.SIGTERM, "training", config, "bank of images: 2 of 3 parts are kept")

    code, told = held("training", "fit", [str(config)], number)
    assert code == code_of(number) and told[0] == told_before
    assert number == KILL or told[-1] == last_line(number, "training", config, "no checkpoint was saved yet")
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

    code, told = held("evaluation", "embedding", [str(config)], number)
    assert code == code_of(number) and not results()
    parts = len(list((tmp_path / "cache").glob("*.parts/*.npy")))
    assert parts == 1
    if number != KILL:
        total = told[-1].split("of ")[1].split()[0]
        assert told[-1] == last_line(number, "evaluation", config, f"embed m: 1 of {total} parts are kept")

    code, told = held("evaluation", "scoring", [str(config)], number)
    assert code == code_of(number) and any(line.startswith("embed m: going on, 1 of ") for line in told)
    kept = results()
    assert len(kept) == 1
    assert number == KILL or told[-1] == last_line(number, "evaluation", config, "m: 1 of 2 results are kept")

    shown = (tmp_path / "seen").read_text()
    code, told = held("evaluation", None, [str(config)])
    assert code == 0 and "going on" not in "".join(told)
    assert len(results()) == 2 and kept.items() <= results().items(), "what was scored is not scored again"
    assert (tmp_path / "seen").read_text() == shown, "nor embedded"
