"""One poisoned step equals a skipped one, to the last bit, for every objective: NaN in an image, in a caption, in the teacher.

Skipped is written down here as what may change: counters of steps, and the scaler's scale. In real processes; the encoder has
BatchNorm, whose statistics are state as well.
"""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch
from tests.training.gloo import Gloo
from tests.training.objectives.test_laws import (
    EMBED_DIM,
    NAMES,
    ROWS,
    SOFT,
    TASK,
    VARIANTS,
    Linear,
    batch_of,
    part_of,
    settings_of,
)
from training import distributed
from training.config import TrainSettings
from training.objectives.base import Embeddings
from training.state import TrainState
from training.step import train_step
from training.teacher import NoTeacher

POISONED = 7  # the row of the global batch: of two workers, the second one's
SCALE = 2.0**10


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(2) as workers:
        yield workers


class Normed(Linear):
    """With BatchNorm behind the image half."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(EMBED_DIM, dtype=torch.float64)

    def forward(self, batch: Batch) -> Embeddings:
        found = super().forward(batch)
        image = self.norm(found.image_projection)
        return found._replace(image=F.normalize(image), image_projection=image)


def state_of(settings: TrainSettings, scaled: bool, seed: int) -> TrainState:
    torch.manual_seed(seed)
    encoder: Any = Normed()
    objective, teacher = settings.objective.build(TASK).double(), settings.objective.build_teacher(encoder, TASK)
    if distributed.world_size() > 1:
        encoder = DistributedDataParallel(encoder, broadcast_buffers=False)
    optimizer = settings.optimizer.build([encoder, objective])
    return TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", SCALE, enabled=scaled))


def poisoned(batch: Batch, state: TrainState, kind: str) -> Batch:
    """A row of the global batch becomes NaN: in this worker's part, or in what the teacher will say of it."""
    columns = {"image": ("image_features", "strong"), "text": ("text_features", "other_text"), "teacher": ()}[kind]
    if kind == "teacher" and isinstance(state.teacher, NoTeacher):
        columns = ("frozen_image_features", "frozen_text_features")
    row = POISONED - distributed.rank() * len(batch["image_id"])
    if not 0 <= row < len(batch["image_id"]):
        return batch
    found: Any = {name: column.clone() for name, column in batch.items()}  # type: ignore[attr-defined]
    for name in columns:
        found[name][row] = torch.nan
    if kind == "teacher" and not columns:
        found["sick"] = torch.arange(len(batch["image_id"])) == row
    return found


def sicken(state: TrainState) -> None:
    """A teacher that says NaN of the rows that are marked."""
    forward = state.teacher.forward

    def sick(batch: Any) -> Any:
        found = forward(batch)
        if "sick" in batch:
            for name in [name for name in found if name.startswith("teacher_")]:
                found[name] = found[name].clone()
                found[name][batch["sick"]] = torch.nan
        return found

    state.teacher.forward = sick  # type: ignore[method-assign]


def skipped(saved: dict[str, Any], overflow: bool = True) -> dict[str, Any]:
    """What a state is after a step that did not count; the scaler goes by gradients alone."""
    after = copy.deepcopy(saved)
    after["step"] += 1
    after["samples"] += ROWS
    after["skipped"] += 1
    after["failing"] += 1
    if "step" in after["objective"]:
        after["objective"]["step"] += 1
    if after["scaler"]:
        growing = after["scaler"]["_growth_tracker"] + 1
        after["scaler"] |= {"scale": SCALE / 2, "_growth_tracker": 0} if overflow else {"_growth_tracker": growing}
    return after


def step_of(state: TrainState, settings: TrainSettings, kind: str = "") -> None:
    batch = part_of(batch_of(state.step))
    train_step(state, poisoned(batch, state, kind) if kind else batch, settings, settings.optimizer.lr)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested dicts and lists, with their places."""
    if isinstance(value, dict | list | tuple):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, f"{path}.{key}")
    else:
        yield path, value


def assert_equal(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    ours, theirs = dict(leaves(found)), dict(leaves(expected))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        same = torch.equal(value, theirs[name]) if isinstance(value, Tensor) else value == theirs[name]
        assert same, f"{what}: {name} is {value} instead of {theirs[name]}"


def poison(objective: dict[str, Any], scaled: bool, accumulate: int) -> None:
    """After two steps: each kind of poison, in a run that has just been resumed; then the next step of a run resumed again."""
    settings = settings_of(objective, accumulate)
    settings = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"name": "adamw"})})
    state = state_of(settings, scaled, seed=0)
    for _ in range(2):
        step_of(state, settings)
    saved = through_a_file(state.state_dict())
    assert saved["skipped"] == saved["failing"] == 0
    assert all(bool(p.grad is not None and p.grad.any()) for p in state.encoder.parameters())
    taught = settings.objective.needs.frozen_encoders != "no" or not isinstance(state.teacher, NoTeacher)
    for kind in ("image", "text", "teacher") if taught else ("image", "text"):
        state = state_of(settings, scaled, seed=99)
        state.load_state_dict(through_a_file(saved))
        sicken(state)
        step_of(state, settings, kind)
        # A sick teacher may leave gradients alone, as where its rows only fill a queue.
        after = skipped(saved, overflow=kind != "teacher" or state.scaler.get_scale() < SCALE)
        assert_equal(through_a_file(state.state_dict()), after, f"NaN in {kind}")
    ends = []
    for start in (state.state_dict(), after):
        state = state_of(settings, scaled, seed=5)
        state.load_state_dict(through_a_file(start))
        step_of(state, settings)
        ends.append(state.state_dict())
    assert_equal(*ends, "the next step")
    assert (ends[0]["skipped"], ends[0]["failing"]) == (1, 0)


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_poisoned_step_is_a_skipped_one(variant: str) -> None:
    poison(VARIANTS[variant], scaled=False, accumulate=1)
    poison(VARIANTS[variant], scaled=True, accumulate=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_poisoned_row_of_one_worker_is_skipped_by_both(gloo: Gloo, name: str) -> None:
    gloo(2, poison, SOFT[name], True, 1)
    gloo(2, poison, SOFT[name], False, 2)


def found_by_the_objective_alone() -> None:
    """A loss that is finite, and gradients that are, while one of the two workers would write NaN into its state."""
    settings = settings_of(VARIANTS["onlineclr"])
    state = state_of(settings, False, seed=0)
    step_of(state, settings)
    forward, saved = state.objective.forward, through_a_file(state.state_dict())

    def sick(*arguments: Any) -> Any:
        loss = forward(*arguments)
        return loss._replace(state={"log_means": loss.state["log_means"] * (torch.nan if distributed.rank() else 1)})

    state.objective.forward = sick  # type: ignore[method-assign]
    step_of(state, settings)
    assert_equal(through_a_file(state.state_dict()), skipped(saved), "NaN in what would be written")


def test_what_would_be_written_is_looked_at_on_all_workers(gloo: Gloo) -> None:
    gloo(2, found_by_the_objective_alone)
