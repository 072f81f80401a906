"""Several dual encoders teach one student: what it is shown, what its folder holds, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset.stream import Item
from tests.refusals import refused
from tests.training.inline_runs import train
from training.checkpoint import load_embedder
from training.plan import Plan, keep_towers


def test_two_runs_teach_together(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    """A cosine of the rows that the student sees is the mean of the teachers' cosines; without them it resumes and opens."""
    pairs: list[dict[str, Any]] = []
    for seed in (0, 1):
        train(plan_of(seed=seed), tmp_path / f"teacher-{seed}")
        half = {"name": "run", "path": str(tmp_path / f"teacher-{seed}")}
        pairs.append({"image_encoder": half | {"image_size": 32}, "text_encoder": half | {"max_tokens": 8}})
    given = {"objective": {"name": "distill"}, "frozen_encoders": pairs[0] | {"others": pairs[1:]}}
    plan = plan_of(**given)
    ids = np.arange(6)
    batch = plan.stream.here(Item(ids, 0))
    images = [Image.open(Path(plan.stream.prepared.path) / f"{i}.png").convert("RGB") for i in ids]
    captions = plan.stream.prepared.table("captions")["captions"].to_pylist()
    expected = []
    for seed in (0, 1):
        teacher = load_embedder(str(tmp_path / f"teacher-{seed}"))
        expected.append(teacher.embed_images(images) @ teacher.embed_texts([captions[i][0] for i in ids]).T)
    shown = [batch[name][:, 0].numpy() for name in ("frozen_image_features", "frozen_text_features")]
    assert shown[0].shape == (6, 16)
    np.testing.assert_allclose(shown[0] @ shown[1].T, np.mean(expected, axis=0), atol=2e-3)  # stored in half precision
    train(plan, tmp_path / "student")
    keep_towers(plan, tmp_path / "student")
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"teacher-{seed}")
    assert load_embedder(str(tmp_path / "student")).embed_images(images).shape == (6, 8)
    assert len(list((tmp_path / "student" / "towers").glob("frozen_encoders.*"))) == 4


@pytest.mark.parametrize("name", ["clip-ping", "mcd"])
def test_an_objective_of_one_teacher_refuses_others(plan_of: Callable[..., Plan], name: str) -> None:
    half = {"image_encoder": {"name": "run", "path": "a", "image_size": 32}}
    half["text_encoder"] = {"name": "run", "path": "a", "max_tokens": 8}
    with refused("frozen_encoders.others", name, remedy="distill"):
        plan_of(objective={"name": name}, frozen_encoders=half | {"others": [half]})
    with refused("frozen_encoders.views", 3, remedy="live=false"):
        plan_of(objective={"name": name}, frozen_encoders=half | {"views": 3})
