"""Teachers: the moving average that follows a student, the same on every worker, and comes back from a checkpoint."""

import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.dataset.batch import Batch
from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.training.gloo import Gloo
from training import distributed
from training.config import TrainSettings
from training.encoder import DualEncoder, build_encoder
from training.objectives.base import Embeddings, Task
from training.state import TrainState
from training.step import train_step
from training.teacher import EmaSettings, EmaTeacher, NoTeacher

ROWS, TOKENS, VOCABULARY, STEPS = 8, 6, 70, 4
TASK = Task(num_images=12, num_texts=12, embed_dim=6, image_width=6, steps_per_epoch=2, total_steps=STEPS, seed=0)


@pytest.fixture(scope="module")
def gloo() -> Iterator[Gloo]:
    with Gloo(2) as workers:
        yield workers


class Student(nn.Module):
    """A weight, a weight that is frozen, BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(3, 2), nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm, self.dropout = nn.BatchNorm1d(2), nn.Dropout(0.5)

    def forward(self, batch: Batch) -> Embeddings:
        image = self.dropout(self.norm(self.image(self.frozen(batch["image_features"]))))
        text = self.dropout(self.text(batch["text_features"]))
        return Embeddings(nn.functional.normalize(image), nn.functional.normalize(text), image, text)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student().train()


@pytest.fixture
def batch() -> Batch:
    image, text = torch.randn(2, ROWS, 3, generator=torch.Generator().manual_seed(1)).unbind()
    return {"image_features": image, "text_features": text, "image_id": torch.arange(ROWS)}


def teacher_of(student: nn.Module, momentum: float | None = 0.9, last: float = 0.9, total_steps: int = 10) -> EmaTeacher:
    return EmaSettings(momentum=momentum, final_momentum=last).build(student, total_steps)


def test_a_teacher_begins_as_its_student(student: Student) -> None:
    teacher = teacher_of(student)
    ours, theirs = teacher.encoder.state_dict(), student.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_an_update_by_hand(student: Student) -> None:
    """A weight of 2 whose student goes to 10 follows to 0.75 x 2 + 0.25 x 10 = 4, and from there to 5.5."""
    with torch.no_grad():
        student.image.weight.fill_(2.0)
    teacher = teacher_of(student, 0.75, 0.75)
    with torch.no_grad():
        student.image.weight.fill_(10.0)
    assert float(teacher.encoder.image.weight[0, 0]) == 2.0
    for step, expected in enumerate((4.0, 5.5)):
        teacher.update(student, step)
        assert teacher.encoder.image.weight.tolist() == [[pytest.approx(expected)] * 3] * 2
        assert student.image.weight.tolist() == [[10.0] * 3] * 2


def test_a_teacher_of_images_runs_no_texts() -> None:
    """It embeds images and strong views, as its copy of the encoder does."""

    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def images(self, batch: Batch) -> dict[str, torch.Tensor]:
            strong = self.layer(batch["strong"])
            return {"image_projection": self.layer(batch["image_features"]), "strong_projection": strong}

    student = Images()
    teacher = EmaSettings(momentum=0.5, final_momentum=0.5).build(student, 10, images_only=True)
    before = student.layer.weight.detach().clone()
    with torch.no_grad():
        student.layer.weight += 1
    teacher.update(student, 0)
    batch: Batch = {"image_features": torch.randn(4, 3), "strong": torch.randn(4, 2, 3)}
    found = teacher(batch)
    assert set(found) == {"image_features", "strong", "teacher_image", "teacher_strong"}
    expected = nn.functional.linear(batch["strong"], before + 0.5, student.layer.bias)
    torch.testing.assert_close(found["teacher_strong"], nn.functional.normalize(expected, dim=-1))
    torch.testing.assert_close(found["teacher_image"].norm(dim=-1), torch.ones(4))


def test_momentum_rises_on_a_half_cosine(student: Student) -> None:
    teacher = teacher_of(student, 0.996, 1.0, total_steps=8)
    found = [teacher.momentum(step) for step in (0, 2, 4, 6, 8)]
    assert found == pytest.approx([0.996, 0.996586, 0.998, 0.999414, 1.0], abs=5e-7)
    constant = teacher_of(student, 0.995, 0.995, total_steps=8)
    assert [constant.momentum(step) for step in (0, 3, 8)] == [0.995] * 3


@pytest.mark.parametrize(("total_steps", "first"), [(10_000, 0.996), (1000, 0.996), (200, 0.98), (8, 0.5), (3, 0.0), (1, 0.0)])
def test_in_a_short_run_a_teacher_remembers_less(student: Student, total_steps: int, first: float) -> None:
    """A quarter of the run at most, where nothing else is asked for."""
    teacher = EmaSettings().build(student, total_steps)
    assert teacher.momentum(0) == pytest.approx(first)
    assert teacher.momentum(total_steps) == 1.0
    assert teacher_of(student, 0.999, 1.0, total_steps).momentum(0) == 0.999


def test_the_momentum_of_an_update_is_that_of_its_step(student: Student) -> None:
    """At the last step of a rising momentum next to nothing is followed, at the first all."""
    teacher = teacher_of(student, 0.0, 1.0, total_steps=10)
    with torch.no_grad():
        student.text.bias.fill_(4.0)
    before = teacher.encoder.text.bias.clone()
    teacher.update(student, 10)
    assert torch.equal(teacher.encoder.text.bias, before)
    teacher.update(student, 5)
    torch.testing.assert_close(teacher.encoder.text.bias, (before + 4) / 2)
    teacher.update(student, 0)
    assert teacher.encoder.text.bias.tolist() == [4.0, 4.0]


def test_statistics_of_batch_norm_are_copied(student: Student, batch: Batch) -> None:
    teacher = teacher_of(student, 0.9, 0.9)
    student(batch)
    assert not torch.equal(teacher.encoder.norm.running_mean, student.norm.running_mean)
    teacher.update(student, 0)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(teacher.encoder.norm, name), getattr(student.norm, name)), name
    assert int(teacher.encoder.norm.num_batches_tracked) == 1
    # Copied, and not shared: the student's next forward is not the teacher's.
    student(batch)
    assert int(teacher.encoder.norm.num_batches_tracked) == 1


def test_a_teacher_is_always_in_eval_mode(student: Student, batch: Batch) -> None:
    """Neither dropout nor statistics of the batch, whatever is done to what holds it."""
    teacher = teacher_of(student)
    nn.ModuleList([teacher, student]).train()
    assert student.training and student.norm.training
    assert not any(module.training for module in teacher.modules())
    before = teacher.encoder.norm.running_mean.clone()
    first, second = teacher(batch), teacher(batch)
    assert torch.equal(first["teacher_image"], second["teacher_image"])
    assert torch.equal(first["teacher_text"], second["teacher_text"])
    assert torch.equal(teacher.encoder.norm.running_mean, before)
    one, two = student(batch), student(batch)
    assert not torch.equal(one.image, two.image), "else this would test nothing"
    assert torch.equal(teacher_of(student)(batch)["teacher_image"], student.eval()(batch).image)


def test_a_teacher_only_adds_columns(student: Student, batch: Batch) -> None:
    found = teacher_of(student)(batch)
    assert set(found) == {*batch, "teacher_image", "teacher_text"}
    assert all(found[name] is column for name, column in batch.items())  # type: ignore[literal-required]
    assert set(batch) == {"image_features", "text_features", "image_id"}, "the batch itself is as it was"
    for name in ("teacher_image", "teacher_text"):
        assert not found[name].requires_grad  # type: ignore[literal-required]
        torch.testing.assert_close(found[name].norm(dim=1), torch.ones(ROWS))  # type: ignore[literal-required]
    nothing = NoTeacher()
    assert nothing(batch) is batch
    nothing.update(student, 0)
    assert nothing.state_dict() == {}


def test_what_never_changes_is_shared_and_the_rest_is_not_trained(student: Student) -> None:
    teacher = teacher_of(student)
    assert teacher.encoder.frozen.weight is student.frozen.weight
    assert teacher.encoder.image.weight is not student.image.weight
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(p.requires_grad for part in (student.image, student.text, student.norm) for p in part.parameters())
    frozen = student.frozen.weight.clone()
    teacher.update(student, 0)
    assert torch.equal(student.frozen.weight, frozen)


@pytest.mark.parametrize("keys", [{"momentum": 1.1}, {"momentum": -0.1}, {"final_momentum": 1.01}])
def test_a_momentum_is_a_share(keys: dict[str, float]) -> None:
    with pytest.raises(UserError, match="momentum"):
        validate(EmaSettings, keys, "t")


# --- in training ---

EMA = {"name": "ema", "momentum": 0.5, "final_momentum": 0.9}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "psd": {"name": "psd", "teacher": EMA, "schedule": "constant"},
    "albef": {"name": "albef", "teacher": EMA, "queue": 10},
}
every_teacher = pytest.mark.parametrize("objective", OBJECTIVES)


def settings_of(objective: str, **changes: Any) -> TrainSettings:
    tree: dict[str, Any] = {
        "name": "t",
        "data": {"path": "x"},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [16, 24]},
        "text_tower": {"name": "transformer", "width": 16, "layers": 1, "max_tokens": TOKENS},
        "embed_dim": 6,
        "objective": OBJECTIVES[objective],
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.0},
        "epochs": 1,
        "global_batch_size": ROWS,
    }
    return validate(TrainSettings, tree | changes, "t")


def state_of(settings: TrainSettings, seed: int = 0) -> tuple[TrainState, DualEncoder]:
    torch.manual_seed(seed)
    towers, heads = (settings.image_tower, settings.text_tower), settings.heads
    bare = build_encoder(*towers, heads, settings.embed_dim, (None, None), VOCABULARY).train()
    objective, teacher = settings.objective.build(TASK), settings.objective.build_teacher(bare, TASK)
    wrapped = DistributedDataParallel(bare, broadcast_buffers=False) if distributed.world_size() > 1 else bare
    optimizer = settings.optimizer.build([wrapped, objective])
    return TrainState(wrapped, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False)), bare


def part_of(step: int) -> Batch:
    """This worker's rows of a step's batch."""
    random = torch.Generator().manual_seed(step)
    size = ROWS // distributed.world_size()
    own = slice(distributed.rank() * size, (distributed.rank() + 1) * size)
    return {
        "image": torch.randint(0, 256, (ROWS, 3, 16, 16), generator=random, dtype=torch.uint8)[own],
        "text": torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=random)[own],
        "text_mask": torch.ones(ROWS, TOKENS, dtype=torch.int64)[own],
        "image_id": (torch.arange(ROWS) + 3 * step)[own] % TASK.num_images,
        "text_id": (torch.arange(ROWS) + 3 * step)[own] % TASK.num_texts,
    }


def _train(objective: str) -> tuple[str, dict[str, Tensor], list[Tensor], list[float]]:
    """Checksum of the teacher, the teacher, how far it is from its student, and losses of the global batch."""
    settings = settings_of(objective)
    state, bare = state_of(settings)
    losses = []
    for step in range(STEPS):
        loss, _ = train_step(state, part_of(step), settings, settings.optimizer.lr)
        losses.append(float(distributed.mean(loss.total)))
    teacher = {name: value.clone() for name, value in state.teacher.state_dict().items()}
    checksum = hashlib.sha256(b"".join(value.numpy().tobytes() for value in teacher.values())).hexdigest()
    gaps = [(teacher[f"encoder.{name}"] - value).detach().abs().max() for name, value in bare.named_parameters()]
    return checksum, teacher, gaps, losses


@every_teacher
def test_every_worker_has_the_same_teacher(gloo: Gloo, objective: str) -> None:
    """To the last bit, without a word exchanged; and up to rounding the one that a single worker has."""
    found = gloo(2, _train, objective)
    assert found[0][0] == found[1][0]
    _, expected, gaps, losses = _train(objective)
    for name, value in found[1][1].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert found[0][3] == found[1][3] == pytest.approx(losses, rel=1e-4)
    assert all(bool(gap > 0) for gap in gaps), "it follows, and has not arrived"


@every_teacher
def test_a_step_is_judged_by_the_teacher_before_it_and_followed_after(objective: str) -> None:
    """By hand: teacher's columns first, the student's step, then momentum at that step."""
    settings = settings_of(objective)
    state, bare = state_of(settings)
    for step in range(2):
        teacher = {name: value.clone() for name, value in state.teacher.state_dict().items()}
        with torch.no_grad():
            batch = state.teacher(part_of(step))
            expected = state.objective(bare(batch), batch).total
        loss, _ = train_step(state, part_of(step), settings, settings.optimizer.lr)
        assert float(loss.total.detach()) == pytest.approx(float(expected), rel=1e-6)
        keep = state.teacher.momentum(step)  # type: ignore[operator]
        for name, parameter in bare.named_parameters():
            blend = keep * teacher[f"encoder.{name}"] + (1 - keep) * parameter.detach()
            torch.testing.assert_close(state.teacher.state_dict()[f"encoder.{name}"], blend, msg=name)


@every_teacher
def test_parts_of_a_batch_have_one_teacher(objective: str) -> None:
    """It is updated once a step, and its columns are those of the whole batch."""
    outcomes = []
    for parts in (1, 2, 4):
        settings = settings_of(objective, accumulate=parts)
        state, _ = state_of(settings)
        losses = [float(train_step(state, part_of(step), settings, 0.05)[0].total.detach()) for step in range(STEPS)]
        outcomes.append((losses, state.teacher.state_dict()))
    for losses, teacher in outcomes[1:]:
        assert losses == pytest.approx(outcomes[0][0], rel=1e-4)
        for name, value in teacher.items():
            torch.testing.assert_close(value, outcomes[0][1][name], rtol=1e-4, atol=1e-5, msg=name)


@every_teacher
def test_a_teacher_comes_back_from_a_checkpoint(objective: str) -> None:
    """It is not its student, so without it a resumed run would go another way."""
    settings = settings_of(objective)
    straight, _ = state_of(settings)
    for step in range(2):
        train_step(straight, part_of(step), settings, 0.05)
    saved = copy.deepcopy(straight.state_dict())
    resumed, _ = state_of(settings, seed=9)
    resumed.load_state_dict(saved)
    assert saved["teacher"] and not torch.equal(
        saved["teacher"]["encoder.image_head.weight"], straight.encoder.state_dict()["image_head.weight"]
    )
    for name, value in resumed.teacher.state_dict().items():
        assert torch.equal(value, saved["teacher"][name]), name
    for step in range(2, STEPS):
        one, _ = train_step(straight, part_of(step), settings, 0.05)
        two, _ = train_step(resumed, part_of(step), settings, 0.05)
        assert torch.equal(one.total, two.total)


def test_the_optimizer_never_sees_a_teacher() -> None:
    state, _ = state_of(settings_of("psd"))
    trained = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in state.teacher.parameters()}
    before = {name: value.clone() for name, value in state.teacher.state_dict().items()}
    for parameter in state.teacher.parameters():
        assert parameter.grad is None
    batch = state.teacher(part_of(0))
    state.objective(state.encoder(batch), batch).total.backward()
    assert all(parameter.grad is None for parameter in state.teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in state.teacher.state_dict().items())


def test_a_frozen_tower_stands_once_in_memory() -> None:
    """Its teacher reads the student's weights."""
    tower = {"name": "conv", "image_size": 16, "channels": [16, 24], "mode": "frozen"}
    state, bare = state_of(settings_of("psd", image_tower=tower))
    assert isinstance(state.teacher, EmaTeacher)
    own: Any = state.teacher.encoder
    assert bare.image_tower is not None
    assert all(a is b for a, b in zip(own.image_tower.parameters(), bare.image_tower.parameters(), strict=True))
    assert all(a is not b for a, b in zip(own.text_tower.parameters(), bare.text_tower.parameters(), strict=True))
