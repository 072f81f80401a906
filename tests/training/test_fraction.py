"""A run that trains on a fraction of its training split: on that alone, and all counts and look-ups agree."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.dataset.batch import columns
from pipelines.dataset.stream import Worker
from pipelines.dataset.tokenizer import train_tokenizer
from pipelines.features.frozen_encoders import FrozenFeatures
from pipelines.program.errors import UserError
from pipelines.program.settings import difference
from tests.refusals import refused
from tests.training.squares import BATCH, TRAIN
from training.data import make_order
from training.in_process import fit_inline
from training.plan import Plan
from training.run import result_of

FEW: dict[str, Any] = {"data__fraction": 0.6, "seed": 1}


def test_a_run_sees_its_fraction_and_nothing_else_of_the_split(plan_of: Callable[..., Plan], tmp_path: Path) -> None:
    plan = plan_of(**FEW)
    fraction = set(plan.order.ids.tolist())
    assert BATCH <= len(fraction) < TRAIN and plan.total_steps == len(fraction) // BATCH * plan.settings.epochs
    wanted = columns(plan.settings.objective.needs, True, True) | {"sample_id"}
    stream = replace(plan.stream, columns=frozenset(wanted))
    batches = stream.training(plan.order, 0, plan.total_steps, Worker(0, 1, torch.device("cpu"), 1))
    seen = {int(i) for batch in batches for i in batch["sample_id"]}
    assert seen <= fraction and len(seen) > BATCH
    # It holds out the same samples as a run on the whole split.
    assert np.array_equal(plan.held_out.sample_ids, plan_of().held_out.sample_ids)
    result = result_of(plan, tmp_path, fit_inline(plan, tmp_path, lambda line: None), {"training": 1.0})
    assert (result["dataset"]["train_samples"], result["dataset"]["fraction"]) == (len(fraction), 0.6)
    assert (result["machine"]["workers"], result["machine"]["worker_history"]) == (1, [1])


def test_a_tokenizer_is_trained_on_the_captions_of_the_fraction(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(**FEW, text_tower={"name": "bag", "width": 8, "vocabulary_size": 120, "max_tokens": 8, "mode": "trainable"})
    captions = plan.stream.prepared.table("captions")["captions"].to_pylist()
    mine = [captions[i][0] for i in plan.order.ids]
    assert plan.tokenizer.json == train_tokenizer(mine, 120, 8).json
    assert plan.tokenizer.json != train_tokenizer([captions[i][0] for i in range(TRAIN)], 120, 8).json


def test_neighbours_are_searched_in_the_fraction(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(**FEW)
    assert plan.stream.image_features and plan.stream.text_features
    frozen = FrozenFeatures(plan.order, plan.stream.image_features, plan.stream.text_features, support=65536)
    found = frozen.near(np.arange(TRAIN), 0, "cpu")
    assert set(found.ravel().tolist()) <= set(plan.order.ids.tolist())


def test_the_fraction_identifies_a_run(plan_of: Callable[..., Plan]) -> None:
    changed = difference(plan_of().settings.identity(), plan_of(data__fraction=0.9).settings.identity())
    assert changed == ["data.fraction: 1.0 -> 0.9"]


def test_a_fraction_without_a_batch_is_refused_before_anything_starts(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    few = plan.settings.model_copy(update={"data": plan.settings.data.model_copy(update={"fraction": 0.1})})
    with refused("data.fraction", "0.1", "'train'", "seed=0", remedy="data.fraction"):
        make_order(few, plan.stream.prepared)


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01])
def test_a_fraction_is_more_than_0_and_at_most_1(plan_of: Callable[..., Plan], fraction: float) -> None:
    with pytest.raises(UserError) as caught:
        plan_of(data__fraction=fraction)
    assert "data.fraction: " in str(caught.value) and f"(value {fraction})" in str(caught.value)
