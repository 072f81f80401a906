"""Figures of benchmarks: what has drifted is told, and noise is not."""

from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import figures
from benchmarks.figures import Figure, drift
from benchmarks.ingest_corpus import WAYS, generate, prepare_ways
from pipelines.dataset.prepared import Prepared
from pipelines.program.display import Display

KEPT = Figure("speed", [0.98, 0.99, 1.0, 1.01, 1.02])


def slowed(by: float) -> Figure:
    return Figure("speed", [value / by for value in KEPT.values])


def test_a_slower_step_is_told_and_noise_is_not() -> None:
    assert drift([KEPT], [KEPT]) == [] == drift([KEPT], [slowed(1.03)])
    (line,) = drift([KEPT], [slowed(1.2)])
    assert line.startswith("speed: worse, 0.833")
    assert drift([KEPT], [slowed(0.8)])[0].startswith("speed: better")
    noisy = Figure("speed", [0.7, 0.8, 0.9, 1.0, 1.1])
    assert drift([KEPT], [noisy]) == []  # further away, and within its own noise


def test_a_figure_is_written_with_three_digits() -> None:
    assert str(Figure("time", [2880.4, 2880.4, 2880.4], "ms")) == "2,880 (2,880 to 2,880)"
    assert str(Figure("time", [0.97512, 1.0, 0.95])) == "0.975 (0.95 to 1)"


def test_the_direction_of_a_figure_says_what_is_worse() -> None:
    cost = Figure("cost", [1.0, 1.0, 1.0], better="less")
    assert drift([cost], [Figure("cost", [1.2] * 3, better="less")])[0].startswith("cost: worse")
    assert drift([Figure("n", [1.0], better="")], [Figure("n", [2.0], better="")])[0].startswith("n: changed")


def test_seconds_are_not_compared_and_missing_ratios_are_told() -> None:
    seconds = Figure("time", [1.0], "s", "less")
    assert drift([seconds], [Figure("time", [9.0], "s", "less")]) == []
    assert drift([KEPT], [seconds]) == ["speed: not measured"]
    assert drift([], [KEPT]) == ["speed: not among the kept figures"]


def test_what_is_kept_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    figures.write("step", "python -m benchmarks step", [KEPT])
    told, found = figures.read("step")
    assert found == [KEPT] and told["command"] == "python -m benchmarks step" and told["versions"]["torch"]


def test_a_check_ends_with_an_error_if_a_ratio_drifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    with pytest.raises(SystemExit):  # before anything is measured
        program.main(["step", "--check"])
    assert "no figures of step are kept" in capsys.readouterr().err
    figures.write("step", "", [KEPT])
    before = (tmp_path / "step.json").read_text()
    for by, code in ((1.0, 0), (1.2, 1)):
        monkeypatch.setattr("benchmarks.step.measure", lambda rounds, by=by: [slowed(by)])
        assert program.main(["step", "--check"]) == code
    assert "step: speed: worse" in capsys.readouterr().out and (tmp_path / "step.json").read_text() == before


def test_every_benchmark_is_listed_and_those_with_figures_have_what_is_needed() -> None:
    text = "\n".join(program.listed())
    for path in Path(program.__file__).parent.glob("*.py"):
        if "def main(" in path.read_text() and path.stem not in ("__main__",):
            assert f"benchmarks.{path.stem}" in text or f"benchmarks {path.stem}" in text, path
    for name in program.RECORDED:
        module = __import__(f"benchmarks.{name}", fromlist=["measure"])
        assert module.ROUNDS and callable(module.measure) and callable(module.table)


@pytest.mark.slow
def test_the_corpus_of_ingest_is_prepared_both_ways(ray_session: None, tmp_path: Path) -> None:
    prepare_ways(generate(tmp_path, 12), 1, Display(quiet=True))
    assert [Prepared.open(tmp_path / output).manifest["counts"]["kept"] for output in WAYS] == [12, 12]
