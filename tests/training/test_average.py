"""A moving average of the weights: what it is, that it is what is scored and opened, and that it comes back from a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.inline_runs import assert_equal_runs, train
from tests.training.squares import BATCH, STEPS, TRAIN, Poison
from training import loop
from training.checkpoint import load_embedder
from training.plan import Plan
from training.state import unwrap
from training.tensor_tree import load_tree

HALF = 8 * BATCH  # samples
KEPT = 0.5 ** (1 / 8)  # by each step


def test_a_runs_average_is_scored_opened_and_resumed(
    plan_of: Callable[..., Plan], poison: Poison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run with a step that is skipped: by hand from the weights of each step; interrupted, it ends the same."""
    poison(3)
    step, weights, counts = loop.train_step, [], []

    def recorded(state: Any, batch: Any, *rest: Any) -> Any:
        if not weights:
            weights.append({name: value.double().clone() for name, value in unwrap(state.encoder).state_dict().items()})
        skipped = state.skipped
        result = step(state, batch, *rest)
        counts.append(state.skipped == skipped)
        weights.append({name: value.double().clone() for name, value in unwrap(state.encoder).state_dict().items()})
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", recorded)
        train(plan_of(ema={"half_life": HALF}), tmp_path / "straight")
    assert counts == [number != 3 for number in range(1, STEPS + 1)]
    expected = weights[0]
    for after, counted in zip(weights[1:], counts, strict=True):
        if counted:
            expected = {name: KEPT * value + (1 - KEPT) * after[name] for name, value in expected.items()}
    last = tmp_path / "straight" / f"checkpoint_{STEPS:08d}"
    saved = load_tree(last, "state")
    assert saved["average"].keys() == saved["encoder"].keys() == expected.keys()
    for name, value in saved["average"].items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(value, saved["encoder"][name]) for name, value in saved["average"].items())

    plan = plan_of(ema={"half_life": HALF})
    rows = np.load(tmp_path / "straight" / "held_out.npz")
    embedder = load_embedder(str(last))
    images = [Image.open(Path(plan.stream.prepared.path) / f"{i}.png").convert("RGB") for i in range(TRAIN, TRAIN + 10)]
    for name, found in (("images", embedder.embed_images(images)), ("texts", embedder.embed_texts(plan.held_out.texts))):
        np.testing.assert_allclose(found, rows[name], atol=1e-3)  # features are stored in half precision
    embedder._encoder.load_state_dict(saved["encoder"], strict=False)
    assert np.abs(embedder.embed_images(images) - rows["images"]).max() > 0.1, "the last weights would have other rows"

    assert train(plan_of(ema={"half_life": HALF}), tmp_path / "again", until=5)[0] is None
    train(plan_of(ema={"half_life": HALF}), tmp_path / "again")
    assert_equal_runs(tmp_path / "again", tmp_path / "straight")
    average = load_tree(tmp_path / "again" / last.name, "state")["average"]
    assert all(torch.equal(value, average[name]) for name, value in saved["average"].items())
