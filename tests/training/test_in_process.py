"""A run in one process: the same curve whatever interrupts it; its checkpoints, its time limit, its extra datasets.

Real locked towers, tiny and untrained, on datasets of a few coloured squares. No Ray.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.suite import score
from pipelines.dataset.batch import Batch
from pipelines.dataset.stream import Stream, Unusable
from tests.refusals import refused
from tests.training.squares import BATCH, BEST, EPOCHS, STEPS, TEST, planner, write_root
from training import in_process, loop
from training.checkpoint_registry import settle
from training.held_out import read_held_out
from training.in_process import fit_inline
from training.loop import DivergenceError
from training.metrics_file import read_metrics
from training.plan import Plan
from training.stopping import Stopped

TIMES = {"samples_per_second", "data_wait", "peak_memory_gib", "seconds", "time"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inline")
    write_root(root)
    return root


@pytest.fixture(scope="module")
def plan_of(root: Path) -> Callable[..., Plan]:
    return planner(root)


class ProcessDiedError(Exception):
    """The process dies."""


def train(plan: Plan, folder: Path, until: int | None = None) -> tuple[dict[str, Any] | None, list[int]]:
    """What `fit_inline` returned, and the reported steps; the process dies after the report of step `until`."""
    folder.mkdir(exist_ok=True)
    reported: list[int] = []

    def report(line: dict[str, Any]) -> None:
        # The line is already in the file.
        assert read_metrics(folder / "metrics.jsonl")[-1] == line
        reported.append(line["step"])
        if line["step"] == until:
            raise ProcessDiedError

    try:
        return fit_inline(plan, folder, report), reported
    except ProcessDiedError:
        return None, reported


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints."""
    return sorted(int(path.name.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*"))


def curve(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]


def last(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
    """Equal weights in the last checkpoint, and equal held-out embeddings at the end."""
    place = max(folder.glob("checkpoint_*"))
    return torch.load(place / "state.pt", weights_only=True)["encoder"], dict(np.load(folder / "held_out.npz"))


@pytest.fixture(scope="module")
def straight(plan_of: Callable[..., Plan], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    result, reported = train(plan_of(), folder)
    assert result is not None and reported == list(range(1, STEPS + 1))
    return folder, result


def assert_equal_runs(folder: Path, other: Path) -> None:
    assert curve(folder) == curve(other)
    for ours, theirs in zip(last(folder), last(other), strict=True):
        assert ours.keys() == theirs.keys() and len(ours) > 2
        assert all(np.array_equal(value, theirs[name]) for name, value in ours.items())
    assert (folder / "best" / "best.json").read_text() == (other / "best" / "best.json").read_text()
    assert steps(folder) == steps(other)


def test_a_run_writes_its_curve_and_returns_the_loops_result(straight: tuple[Path, dict[str, Any]]) -> None:
    folder, result = straight
    assert (result["step"], result["samples"]) == (STEPS, STEPS * BATCH) and result["device"].startswith("CPU")
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["epoch"] for line in lines] == [pytest.approx(step / 3) for step in range(1, STEPS + 1)]
    assert [line["step"] for line in lines if BEST in line] == [6, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert all(line["seconds"] >= before["seconds"] for before, line in pairwise(lines))


@pytest.mark.parametrize("until", range(1, STEPS + 1))
def test_an_interrupted_run_ends_the_same(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path, until: int
) -> None:
    """After any report. It resumes from the last checkpoint, of an even step, and the lines after that step are repeated."""
    folder, result = straight
    assert train(plan_of(), tmp_path, until) == (None, list(range(1, until + 1)))
    saved = until - until % 2
    assert steps(tmp_path) == [step for step in (saved - 2, saved) if step > 0]
    assert train(plan_of(), tmp_path) == (result, list(range(saved + 1, STEPS + 1)))
    assert_equal_runs(tmp_path, folder)


Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """A function that makes an image's features NaN in the given steps, counted from 1."""
    step, at = loop.train_step, []

    def sick(state: Any, batch: Any, *rest: Any) -> Any:
        if state.step + 1 in at:
            batch = batch | {"image_features": batch["image_features"].clone()}
            batch["image_features"][2] = torch.nan
        return step(state, batch, *rest)

    monkeypatch.setattr(loop, "train_step", sick)
    return lambda *steps: at.extend(steps)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A function that asks the next run to stop before its n-th step, counted from its start."""

    def at(step: int) -> None:
        questions = iter(range(1, 1000))
        monkeypatch.setattr(in_process, "Asked", lambda folder: nullcontext(lambda: next(questions) >= step))

    return at


@pytest.mark.parametrize("until", [1, 2, 3, 6, 9])
def test_a_run_that_is_asked_to_stop_saves_the_step_and_later_ends_the_same(
    plan_of: Callable[..., Plan],
    straight: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    ask: Callable[[int], None],
    poison: Poison,
    until: int,
) -> None:
    """Whether a checkpoint is due there or not."""
    folder, result = straight
    ask(until)
    with pytest.raises(Stopped) as stopped:
        train(plan_of(), tmp_path)
    assert stopped.value.step == until == max(steps(tmp_path))
    assert [line["step"] for line in curve(tmp_path)] == list(range(1, until + 1))
    ask(1000)
    assert train(plan_of(), tmp_path) == (result, list(range(until + 1, STEPS + 1)))
    assert_equal_runs(tmp_path, folder)
    # A line and a checkpoint are written even if neither is due for long, but not at a step that is skipped.
    rare = {"log_every": 100, "checkpoint__every_steps": None, "evaluation__every_epochs": EPOCHS}
    poison(until)
    ask(until)
    other = tmp_path / "rare"
    with pytest.raises(Stopped):
        train(plan_of(**rare), other)
    assert steps(other) == [until + 1] == [line["step"] for line in curve(other)]


def test_a_run_that_is_asked_in_its_last_step_ends(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path, ask: Callable[[int], None]
) -> None:
    ask(STEPS)
    assert train(plan_of(), tmp_path)[0] == straight[1]


def test_a_run_that_dies_again_and_again_ends_the_same(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, result = straight
    for until in (1, 3, 3, 4, 7, 11, 12):
        train(plan_of(), tmp_path, until)
    assert train(plan_of(), tmp_path) == (result, [])
    assert_equal_runs(tmp_path, folder)


@pytest.mark.parametrize("step", [2, 6, 12])
def test_an_incomplete_checkpoint_is_ignored(
    plan_of: Callable[..., Plan],
    straight: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """The process dies while it writes a checkpoint, after the step's line: an incomplete folder is left, which is never read."""
    whole = loop.save_checkpoint

    def half(folder: Path, state: Any, **rest: Any) -> None:
        whole(folder, state, **rest)
        if state.step == step:
            (folder / "state.pt").write_bytes(b"half")
            raise ProcessDiedError

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", half)
        assert train(plan_of(), tmp_path)[0] is None
    assert len(curve(tmp_path)) == step and step not in steps(tmp_path) and len(list(tmp_path.glob("partial-*"))) == 1
    result, reported = train(plan_of(), tmp_path)
    assert reported[0] == step - 1 and result == straight[1] and not list(tmp_path.glob("partial-*"))
    assert_equal_runs(tmp_path, straight[0])


def test_a_run_whose_newest_checkpoint_is_damaged_resumes_from_the_previous_one(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """One bit of the weights is flipped: loaded as they are, they would be other weights without notice."""
    train(plan_of(), tmp_path, until=9)
    weights = tmp_path / "checkpoint_00000008" / "state.pt"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with refused("checkpoint", tmp_path / "checkpoint_00000008", "state.pt", remedy=tmp_path / "checkpoint_00000006"):
        train(plan_of(), tmp_path)
    printed: list[str] = []
    assert settle(tmp_path, printed.append) == tmp_path / "checkpoint_00000006" and "state.pt" in printed[0]
    result, reported = train(plan_of(), tmp_path)
    assert reported[0] == 7 and result == straight[1]
    assert_equal_runs(tmp_path, straight[0])


def test_a_finished_run_is_not_trained_again(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    train(plan_of(), tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(plan_of(), tmp_path) == (straight[1], [])
    assert (tmp_path / "metrics.jsonl").read_text() == before


# Checkpoints


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [10, 12]),
        ({"checkpoint__keep": 1}, [12]),
        ({"checkpoint__keep": 50}, [2, 4, 6, 8, 10, 12]),
        ({"checkpoint__every_steps": None}, [6, 12]),
        ({"checkpoint__every_steps": 5, "checkpoint__keep": 9}, [5, 6, 10, 12]),
    ],
    ids=str,
)
def test_the_newest_checkpoints_are_kept(plan_of: Callable[..., Plan], tmp_path: Path, changes: dict, kept: list[int]) -> None:
    most = changes.get("checkpoint__keep", 2)
    counts: list[int] = []
    fit_inline(plan_of(**changes), tmp_path, lambda line: counts.append(len(steps(tmp_path))))
    assert steps(tmp_path) == kept and max(counts) <= most
    # The held-out embeddings are those of the end, and are in the run's folder.
    assert read_held_out(tmp_path)["step"] == STEPS and [path.parent for path in tmp_path.rglob("*.npz")] == [tmp_path]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("metric", [BEST, "loss"])
def test_the_best_checkpoint_outlives_the_newest(plan_of: Callable[..., Plan], tmp_path: Path, metric: str, mode: str) -> None:
    plan = plan_of(checkpoint__best=metric, checkpoint__mode=mode, checkpoint__keep=1)
    states: dict[int, dict[str, torch.Tensor]] = {}

    def report(line: dict[str, Any]) -> None:
        if line["step"] in steps(tmp_path):
            states[line["step"]] = torch.load(tmp_path / f"checkpoint_{line['step']:08d}" / "state.pt", weights_only=True)[
                "encoder"
            ]

    fit_inline(plan, tmp_path, report)
    found = {line["step"]: line[metric] for line in curve(tmp_path) if line["step"] in states and metric in line}
    value = (max if mode == "max" else min)(found.values())
    step = next(step for step in found if found[step] == value)
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == {"metric": metric, "value": value, "step": step}
    best = torch.load(tmp_path / "best" / "state.pt", weights_only=True)["encoder"]
    assert all(torch.equal(tensor, states[step][name]) for name, tensor in best.items())
    left = {"metrics.jsonl", "best", "newest_checkpoint.json", f"checkpoint_{STEPS:08d}", "held_out.json", "held_out.npz"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_loss_that_is_not_finite_ends_the_run_with_the_reason(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of(optimizer__name="sgd", optimizer__lr=1e30)
    with refused("", "step", remedy="optimizer.lr") as caught:
        train(plan, tmp_path)
    assert isinstance(caught.value, DivergenceError)
    assert all(np.isfinite(line.get("loss", 0.0)) for line in curve(tmp_path)) and len(curve(tmp_path)) < STEPS
    # The next start ends in the same way.
    with pytest.raises(DivergenceError):
        train(plan, tmp_path)


def test_a_poisoned_batch_is_skipped_and_counted(plan_of: Callable[..., Plan], tmp_path: Path, poison: Poison) -> None:
    """Its line has no loss, and the run goes on; a run that was interrupted after it ends the same."""
    poison(4, 9)
    result, _ = train(plan_of(), tmp_path / "straight")
    assert result is not None and (result["step"], result["skipped"]) == (STEPS, 2)
    lines = curve(tmp_path / "straight")
    assert [line["skipped"] for line in lines] == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [line["step"] for line in lines if "loss" not in line] == [4, 9]
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, int | float))
    for until in (4, 5, 9):
        folder = tmp_path / f"until-{until}"
        train(plan_of(), folder, until)
        assert train(plan_of(), folder)[0] == result
        assert_equal_runs(folder, tmp_path / "straight")


def test_a_run_whose_steps_keep_being_skipped_ends_with_the_reason(
    plan_of: Callable[..., Plan], tmp_path: Path, poison: Poison
) -> None:
    """Before the next report, and at the next start again; the checkpoints before it are kept."""
    poison(*range(6, STEPS + 1))
    plan = plan_of(log_every=100, checkpoint__every_steps=4)
    for _ in range(2):
        with refused("", "6 of 11", "step 11", "nan", remedy="optimizer.lr"):
            train(plan, tmp_path)
    assert steps(tmp_path) == [4, 6], "saved at 6, where it was scored, and not at 8"
    saved = torch.load(tmp_path / "checkpoint_00000006" / "state.pt", weights_only=True)
    assert saved["skipped"] == saved["failing"] == 1
    assert all(bool(value.isfinite().all()) for value in saved["encoder"].values())


def test_a_run_whose_steps_are_all_skipped_has_failed(plan_of: Callable[..., Plan], tmp_path: Path, poison: Poison) -> None:
    poison(*range(1, STEPS + 1))
    with refused("", "every step", "step 2", "nan", remedy="optimizer.lr"):
        train(plan_of(epochs=1, evaluation__every_epochs=1), tmp_path)


@pytest.mark.parametrize("part", ["weights", "embeddings"])
def test_what_is_not_finite_is_neither_saved_nor_scored(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """A step that counted may overflow a weight, and finite weights may overflow an embedding."""
    step = loop.train_step

    def overflow(state: Any, *rest: Any) -> Any:
        found = step(state, *rest)
        if state.step == 6:
            with torch.no_grad():
                next(iter(state.encoder.image_head.parameters())).fill_(torch.inf if part == "weights" else 3e38)
        return found

    monkeypatch.setattr(loop, "train_step", overflow)
    with refused("", part, "step 6", remedy="optimizer.lr"):
        train(plan_of(), tmp_path)
    assert steps(tmp_path) == [2, 4] and curve(tmp_path)[-1]["step"] == 5


def test_too_many_unusable_rows_end_a_run_that_did_not_diverge(
    plan_of: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep's samplers avoid settings that diverge; broken images say nothing about the settings."""
    stream = Stream.training

    def broken(self: Stream, *arguments: Any) -> Iterator[Batch]:
        *_, failed = arguments
        for number, batch in enumerate(stream(self, *arguments)):
            failed(Unusable(number, "truncated"))
            yield batch

    monkeypatch.setattr(Stream, "training", broken)
    monkeypatch.setattr(loop, "_ENOUGH", 2 * BATCH)
    with refused("data.max_unusable_rate", f"2 of {2 * BATCH}", "0.1", remedy="unusable.jsonl") as caught:
        train(plan_of(), tmp_path)
    assert not isinstance(caught.value, DivergenceError) and steps(tmp_path) == [2], "the step is saved"


# By the clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock on which a step takes half a minute, and nothing else takes time."""
    now = SimpleNamespace(seconds=1000.0)
    step = loop.train_step

    def slow(*arguments: Any) -> Any:
        now.seconds += 30
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", slow)
    monkeypatch.setattr("training.cadence.time", SimpleNamespace(monotonic=lambda: now.seconds, perf_counter=lambda: now.seconds))
    return now


@pytest.mark.parametrize(("minutes", "end"), [(0.01, 3), (1.5, 3), (1.51, 6), (2.9, 6), (4, 9), (5.5, 12), (100, 12)])
def test_a_run_ends_at_the_first_evaluation_after_its_time(
    plan_of: Callable[..., Plan], tmp_path: Path, clock: SimpleNamespace, minutes: float, end: int
) -> None:
    """Evaluations are at steps 3, 6, 9 and 12, after 1.5, 3, 4.5 and 6 minutes."""
    plan = plan_of(max_minutes=minutes, evaluation__every_epochs=1)
    result, reported = train(plan, tmp_path)
    assert result is not None and (result["step"], result["samples"]) == (end, end * BATCH)
    lines = curve(tmp_path)
    assert reported == [line["step"] for line in lines] == list(range(1, end + 1)) and BEST in lines[-1]
    assert "images" in last(tmp_path)[1] and steps(tmp_path)[-1] == end
    # The next start finds it ended, however much later.
    clock.seconds += 10**6
    assert train(plan, tmp_path) == (result, []) and curve(tmp_path) == lines


def test_a_resumed_run_has_only_the_time_that_is_left(
    plan_of: Callable[..., Plan], tmp_path: Path, clock: SimpleNamespace
) -> None:
    """It dies between steps 4 and 5 and resumes an hour later: it ends at the step where it would have ended."""
    plan = plan_of(max_minutes=4, evaluation__every_epochs=1)
    assert train(plan, tmp_path, until=5)[0] is None
    clock.seconds += 3600
    result, reported = train(plan, tmp_path)
    assert result is not None and result["step"] == 9 and reported == [5, 6, 7, 8, 9]


def test_seconds_of_training_add_up_over_all_sessions(
    plan_of: Callable[..., Plan], tmp_path: Path, clock: SimpleNamespace
) -> None:
    """Half a minute a step; neither time between sessions nor steps that were lost with a session count."""
    for until in (1, 5, 8, None):
        train(plan_of(), tmp_path, until)
        clock.seconds += 12345
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["seconds"] for line in lines] == [30 * step for step in range(1, STEPS + 1)]


# Extra datasets


def test_extra_datasets_are_scored_like_the_runs_own(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], root: Path, tmp_path: Path
) -> None:
    """They do not change the training; the embeddings of each are kept, and its scores are computed from them."""
    plan = plan_of(evaluation__extra_datasets=[{"path": str(root / "others"), "templates": ["one {}", "{}"]}])
    assert plan.scored[1].data.prompts == [prompt for hue in ("blue", "green", "red") for prompt in (f"one {hue}", hue)]
    assert train(plan, tmp_path)[0] == straight[1]
    before, after = curve(straight[0]), curve(tmp_path)
    added = [set(line) - set(old) for line, old in zip(after, before, strict=True)]
    names = {
        *(f"retrieval/others/{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 2)),
        *(f"zero_shot/others_hue/{measure}" for measure in ("top1", "top5", "mean_per_class")),
    }
    assert added == [names if BEST in line else set() for line in before]
    assert [{key: line[key] for key in old} for line, old in zip(after, before, strict=True)] == before
    assert {path.name for path in tmp_path.rglob("*.npz")} == {"held_out.npz", "held_out-others.npz"}
    for scored, file in zip(plan.scored, ("held_out.npz", "held_out-others.npz"), strict=True):
        metrics = score(scored.data, **np.load(tmp_path / file)).metrics
        assert len(metrics) == 7 and metrics.items() <= after[-1].items()
        assert metrics.items() <= read_held_out(tmp_path)["metrics"].items()
    ours, theirs = (np.load(tmp_path / name)["images"] for name in ("held_out.npz", "held_out-others.npz"))
    assert ours.shape == theirs.shape == (TEST, 8) and not np.allclose(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [({"retrieval": False}, {"zero_shot/others_hue"}), ({"labels": []}, {"retrieval/others"})],
    ids=["classes-only", "retrieval-only"],
)
def test_an_extra_dataset_may_have_only_one_kind_of_score(
    plan_of: Callable[..., Plan], root: Path, tmp_path: Path, changes: dict, kinds: set[str]
) -> None:
    plan = plan_of(evaluation__extra_datasets=[{"path": str(root / "others")} | changes], epochs=1)
    train(plan, tmp_path)
    assert {name.rpartition("/")[0] for name in curve(tmp_path)[-1] if "others" in name} == kinds
    rows = np.load(tmp_path / "held_out-others.npz")
    assert rows["images"].shape == (TEST, 8)
    assert len(rows["texts"]) == (0 if "retrieval" in changes else TEST) and len(rows["prompts"]) == (
        3 if "retrieval" in changes else 0
    )


@pytest.mark.parametrize("others", [["again"], ["squares"], ["others", "others"]])
def test_two_datasets_of_one_name_are_refused(plan_of: Callable[..., Plan], root: Path, others: list[str]) -> None:
    """Their scores would have one name, and their embeddings one file."""
    name = "others" if "others" in others else "squares"
    with refused(f"evaluation.extra_datasets[{len(others) - 1}].path", root / others[-1], f"'{name}'", remedy="prepare"):
        plan_of(evaluation__extra_datasets=[{"path": str(root / other)} for other in others])


def test_what_an_extra_dataset_lacks_is_named(plan_of: Callable[..., Plan], root: Path) -> None:
    with refused("evaluation.extra_datasets[0].labels", "'colour'", root / "others", "hue"):
        plan_of(evaluation__extra_datasets=[{"path": str(root / "others"), "labels": ["colour"]}])
    with refused("evaluation.extra_datasets[0].path", root / "nowhere", remedy="python -m pipelines"):
        plan_of(evaluation__extra_datasets=[{"path": str(root / "nowhere")}])
