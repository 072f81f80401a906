"""`evaluation.extra_datasets`: further datasets that a run is scored on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.suite import score
from tests.refusals import refused
from tests.training.inline_runs import curve, train
from tests.training.squares import BEST, TEST
from training.held_out import read_held_out
from training.plan import Plan


def test_extra_datasets_are_scored_like_the_runs_own(
    plan_of: Callable[..., Plan], straight: tuple[Path, dict[str, Any]], squares: Path, tmp_path: Path
) -> None:
    """They do not change the training; the embeddings of each are kept, and its scores are computed from them."""
    plan = plan_of(evaluation__extra_datasets=[{"path": str(squares / "others"), "templates": ["one {}", "{}"]}])
    assert plan.scored[1].data.prompts == [prompt for hue in ("blue", "green", "red") for prompt in (f"one {hue}", hue)]
    assert train(plan, tmp_path)[0] == straight[1]
    before, after = curve(straight[0]), curve(tmp_path)
    added = [set(line) - set(old) for line, old in zip(after, before, strict=True)]
    names = {
        *(f"retrieval/others/{direction}_recall@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 2)),
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
    plan_of: Callable[..., Plan], squares: Path, tmp_path: Path, changes: dict, kinds: set[str]
) -> None:
    plan = plan_of(evaluation__extra_datasets=[{"path": str(squares / "others")} | changes], epochs=1)
    train(plan, tmp_path)
    assert {name.rpartition("/")[0] for name in curve(tmp_path)[-1] if "others" in name} == kinds
    rows = np.load(tmp_path / "held_out-others.npz")
    assert rows["images"].shape == (TEST, 8)
    assert len(rows["texts"]) == (0 if "retrieval" in changes else TEST) and len(rows["prompts"]) == (
        3 if "retrieval" in changes else 0
    )


@pytest.mark.parametrize("others", [["again"], ["squares"], ["others", "others"]])
def test_two_datasets_of_one_name_are_refused(plan_of: Callable[..., Plan], squares: Path, others: list[str]) -> None:
    """Their scores would have one name, and their embeddings one file."""
    name = "others" if "others" in others else "squares"
    with refused(f"evaluation.extra_datasets[{len(others) - 1}].path", squares / others[-1], f"'{name}'", remedy="prepare"):
        plan_of(evaluation__extra_datasets=[{"path": str(squares / other)} for other in others])


def test_what_an_extra_dataset_lacks_is_named(plan_of: Callable[..., Plan], squares: Path) -> None:
    with refused("evaluation.extra_datasets[0].labels", "'colour'", squares / "others", "hue"):
        plan_of(evaluation__extra_datasets=[{"path": str(squares / "others"), "labels": ["colour"]}])
    with refused("evaluation.extra_datasets[0].path", squares / "nowhere", remedy="python -m pipelines"):
        plan_of(evaluation__extra_datasets=[{"path": str(squares / "nowhere")}])
