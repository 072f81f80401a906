"""One optimizer step: the same for any number of parts, replayable, clipped, and counted."""

import copy
import math
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipelines.dataset.batch import Batch
from pipelines.program.randomness import torch_seed
from pipelines.program.settings import validate
from training.config import TrainSettings
from training.encoder import build_encoder
from training.objectives.base import Embeddings, Task
from training.state import TrainState
from training.step import train_step
from training.teacher import NoTeacher

ROWS, TOKENS, VOCABULARY = 8, 6, 70


def settings_of(**changes: object) -> TrainSettings:
    tree = {
        "name": "t",
        "data": {"path": "x"},
        "image_tower": {"name": "conv", "image_size": 16, "channels": [16, 32]},
        "text_tower": {"name": "transformer", "width": 16, "layers": 1, "max_tokens": TOKENS},
        "embed_dim": 8,
        "optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.01},
        "epochs": 1,
        "global_batch_size": ROWS,
    }
    return validate(TrainSettings, tree | changes, "t")


DROPOUT = {
    "text_tower": {"name": "transformer", "width": 16, "layers": 1, "max_tokens": TOKENS, "dropout": 0.3},
    "image_head": {"name": "mlp", "hidden": 16, "dropout": 0.4},
}


def task_of(embed_dim: int, image_width: int) -> Task:
    sizes = {"embed_dim": embed_dim, "image_width": image_width}
    return Task(num_images=100, num_texts=100, steps_per_epoch=4, total_steps=8, seed=0, **sizes)


def state_of(settings: TrainSettings) -> TrainState:
    torch.manual_seed(7)
    towers, heads = (settings.image_tower, settings.text_tower), settings.heads
    encoder = build_encoder(*towers, heads, settings.embed_dim, (None, None), VOCABULARY).train()
    task = task_of(embed_dim=settings.embed_dim, image_width=8)
    objective, teacher = settings.objective.build(task), settings.objective.build_teacher(encoder, task)
    optimizer = settings.optimizer.build([encoder, objective])
    return TrainState(encoder, objective, teacher, optimizer, torch.amp.GradScaler("cpu", enabled=False))


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (ROWS, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "text": torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=generator),
        "text_mask": (torch.arange(TOKENS) < torch.arange(ROWS)[:, None] % TOKENS + 1).long(),
        "image_id": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),  # rows 0 and 7 show the same image
        "text_id": torch.arange(ROWS),
    }


def named(state: TrainState) -> dict[str, nn.Parameter]:
    return dict([*state.encoder.named_parameters(), *state.objective.named_parameters()])


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in named(state).items() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_give_the_gradient_and_the_step_of_the_whole(batch: Batch, parts: int) -> None:
    """A contrastive loss of parts is another loss: only if all parts meet in it does this hold."""
    whole, split = state_of(settings_of()), state_of(settings_of())
    one, norm_one = train_step(whole, batch, settings_of(), 0.1)
    two, norm_two = train_step(split, batch, settings_of(accumulate=parts), 0.1)
    assert float(one.total.detach()) == pytest.approx(float(two.total.detach()), rel=1e-5)
    assert float(norm_one) == pytest.approx(float(norm_two), rel=1e-4)
    found, expected = gradients(split), gradients(whole)
    assert found.keys() == expected.keys() and "scale.log" in found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    for name, parameter in named(whole).items():
        torch.testing.assert_close(named(split)[name], parameter, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_copies_no_column_of_the_batch(batch: Batch, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are most of a step's memory; what the objective is handed after the step lies where the stream put it."""
    state, seen = state_of(settings_of(accumulate=parts)), []
    monkeypatch.setattr(state.objective, "update", lambda given, _: seen.append(given))
    train_step(state, batch, settings_of(accumulate=parts), 0.1)
    assert {name: column.data_ptr() for name, column in seen[0].items()} == {name: c.data_ptr() for name, c in batch.items()}


class Compiled(nn.Module):
    """As torch.compile's wrapper: it draws other random numbers than the module inside, and others again without a graph."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self._orig_mod = module

    def forward(self, batch: Batch) -> Embeddings:
        torch.rand(1 if torch.is_grad_enabled() else 2)
        return self._orig_mod(batch)


@pytest.mark.parametrize("wrapped", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("parts", [1, 2])
def test_with_dropout_the_gradient_is_that_of_the_loss_that_was_reported(batch: Batch, parts: int, wrapped: bool) -> None:
    """By hand: every part under its own seed, in one graph. Were the second pass to draw other numbers, this would fail."""
    settings = settings_of(accumulate=parts, **DROPOUT)
    state, by_hand = state_of(settings), state_of(settings)
    if wrapped:
        state, by_hand = (replace(found, encoder=Compiled(found.encoder)) for found in (state, by_hand))
    state.step = by_hand.step = 5
    loss, _ = train_step(state, batch, settings, 0.1)
    seed, size = torch_seed("step", settings.seed, 5, 0), ROWS // parts
    found = []
    for part in range(parts):
        torch.manual_seed(seed + part)
        rows = slice(part * size, (part + 1) * size)
        found.append(by_hand.encoder({name: column[rows] for name, column in batch.items()}))  # type: ignore[index]
    embeddings = joined(found)
    total = by_hand.objective(embeddings, batch).total
    total.backward()
    assert float(loss.total.detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    expected = gradients(by_hand)
    for name, gradient in gradients(state).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def joined(parts: list[Embeddings]) -> Embeddings:
    """The rows of all parts."""
    return Embeddings(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


class Dropped(nn.Module):
    """Two linear maps with dropout, quickly compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, batch: Batch) -> Embeddings:
        image = F.dropout(self.image(batch["image_features"]), 0.4, self.training)
        text = F.dropout(self.text(batch["text_features"]), 0.4, self.training)
        return Embeddings(F.normalize(image), F.normalize(text), image, text)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_parts_of_a_compiled_encoder_see_the_masks_of_the_loss(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code draws its own masks: those of the first pass must be those of the second."""
    settings = settings_of(accumulate=2)
    torch.manual_seed(7)
    encoder, objective = Dropped(), settings.objective.build(task_of(embed_dim=4, image_width=6))
    features = {name: torch.randn(ROWS, 6) for name in ("image_features", "text_features")}
    batch = Batch(**features, image_id=batch["image_id"], text_id=batch["text_id"])
    # Quickly compiled: without a process for every core, nor a look at which instructions this one has, nor headers for later.
    quick: Any = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False, "aot_inductor.debug_compile": True}
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    compiled: Any = torch.compile(encoder, options=quick)
    optimizer, scaler = settings.optimizer.build([encoder, objective]), torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(compiled, objective, NoTeacher(), optimizer, scaler)
    train_step(state, batch, settings, 0.0)
    expected, seed = [p.grad for p in encoder.parameters()], torch_seed("step", settings.seed, 0, 0)
    encoder.zero_grad()
    found = []
    for part in range(2):
        torch.manual_seed(seed + part)
        found.append(compiled({name: column.chunk(2)[part] for name, column in batch.items()}))  # type: ignore[attr-defined]
    objective(joined(found), batch).total.backward()
    for parameter, gradient in zip(encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_step_can_be_replayed_whatever_was_drawn_before(batch: Batch) -> None:
    settings = settings_of(**DROPOUT)
    losses = []
    for step, junk in [(3, 0), (3, 10), (4, 0)]:
        state = state_of(settings)
        state.step = step
        torch.manual_seed(junk)
        losses.append(float(train_step(state, batch, settings, 0.1)[0].total.detach()))
    assert losses[0] == losses[1] != losses[2]


def test_the_gradient_is_capped_and_its_norm_reported_uncapped(batch: Batch) -> None:
    free, capped = state_of(settings_of()), state_of(settings_of())
    _, norm = train_step(free, batch, settings_of(), 0.1)
    direct = math.sqrt(sum(float((g**2).sum()) for g in gradients(free).values()))
    assert float(norm) == pytest.approx(direct, rel=1e-5) and direct > 0.01
    _, reported = train_step(capped, batch, settings_of(clip_norm=direct / 10), 0.1)
    assert float(reported) == pytest.approx(direct, rel=1e-5)
    for name, gradient in gradients(capped).items():
        torch.testing.assert_close(gradient, gradients(free)[name] / 10, rtol=1e-3, atol=1e-8, msg=name)


def test_an_overflow_of_the_scaled_gradient_skips_the_step(batch: Batch) -> None:
    """The loss is a number, its gradient times the scale is none in float32: only the scale falls, until a step counts."""
    settings = settings_of(objective={"name": "sogclr", "grad_scale": "unit"}, optimizer={"name": "adamw", "lr": 0.1})
    state = replace(state_of(settings), scaler=torch.amp.GradScaler("cpu", 2.0**127))
    before = copy.deepcopy(state.state_dict())
    loss, norm = train_step(state, batch, settings, 0.1)
    assert loss.total.isfinite() and not norm.isfinite() and state.scaler.get_scale() == 2.0**126
    assert (state.step, state.samples, state.skipped) == (1, ROWS, 1)
    after = state.state_dict()
    assert after["optimizer"]["state"] == {}, "no moments"
    for part in ("encoder", "objective"):
        assert all(torch.equal(value, before[part][name]) for name, value in after[part].items())
    while state.skipped == state.step:
        train_step(state, batch, settings, 0.1)
    assert 2 < state.step < 100 and state.finite()
    # What counts is the step that there is without a scale.
    plain = state_of(settings)
    plain.step = state.skipped
    train_step(plain, batch, settings, 0.1)
    for name, parameter in named(plain).items():
        torch.testing.assert_close(named(state)[name], parameter, rtol=1e-4, atol=1e-6, msg=name)
    assert (plain.skipped, state.failing) == (0, state.skipped - 1)


def test_the_learning_rate_is_the_one_given_and_progress_is_counted(batch: Batch) -> None:
    settings = settings_of(optimizer={"name": "momentum", "lr": 9.0, "weight_decay": 0.0, "momentum": 0.0})
    state = state_of(settings)
    before = copy.deepcopy({name: p.detach() for name, p in named(state).items()})
    train_step(state, batch, settings, 0.25)
    for name, parameter in named(state).items():
        torch.testing.assert_close(parameter.detach(), before[name] - 0.25 * gradients(state)[name], msg=name)
    assert (state.step, state.samples) == (1, ROWS)
    train_step(state, batch, settings, 0.25)
    assert (state.step, state.samples) == (2, 2 * ROWS)


def test_the_objective_is_updated_after_the_step(batch: Batch) -> None:
    """Its scale is above its cap: after the step it is clamped."""
    settings = settings_of(objective={"name": "clip", "max_scale": 50.0})
    state = state_of(settings)
    with torch.no_grad():
        state.objective.scale.log.fill_(math.log(100))
    train_step(state, batch, settings, 1e-6)
    assert float(state.objective.scale().detach()) == pytest.approx(50.0, rel=1e-5)


def test_nothing_is_left_of_the_last_gradient(batch: Batch) -> None:
    once, twice = state_of(settings_of()), state_of(settings_of())
    for parameter in named(twice).values():
        parameter.grad = torch.ones_like(parameter)
    train_step(once, batch, settings_of(), 0.1)
    train_step(twice, batch, settings_of(), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(named(once).values(), named(twice).values(), strict=True))


@pytest.mark.parametrize("parts", [1, 2])
def test_the_encoder_may_run_in_bfloat16(batch: Batch, parts: int) -> None:
    settings = settings_of(precision="bf16", accumulate=parts)
    single, half = state_of(settings_of()), state_of(settings)
    one, _ = train_step(single, batch, settings_of(), 0.1)
    two, _ = train_step(half, batch, settings, 0.1)
    assert two.total.dtype == torch.float32 and all(p.dtype == torch.float32 for p in named(half).values())
    assert float(one.total.detach()) != float(two.total.detach())
    assert float(one.total.detach()) == pytest.approx(float(two.total.detach()), rel=0.05)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_loss_falls(batch: Batch, optimizer: str) -> None:
    settings = settings_of(optimizer={"name": optimizer, "lr": 0.02, "weight_decay": 0.0})
    state = state_of(settings)
    losses = [float(train_step(state, batch, settings, 0.02)[0].total.detach()) for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]
