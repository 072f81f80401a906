"""Optimizers by name, which parameters decay, and the learning rate of a step."""

import math

import pytest
import torch
import yaml
from torch import nn

from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from training.encoder import MlpHead
from training.learning_rate import ScheduleSettings
from training.objectives.base import Task
from training.objectives.clip import ClipSettings
from training.optimizer import OptimizerSettings
from training.towers.image import ConvSettings
from training.towers.text import TransformerSettings


def groups(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    """Weight decay by parameter."""
    return {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


def test_only_weights_of_two_and_more_dimensions_decay() -> None:
    image, text = ConvSettings(name="conv").build(), TransformerSettings(name="transformer", width=16, layers=1).build(70)
    head = MlpHead(name="mlp").build(16, 8)
    sizes = {"num_images": 1, "num_texts": 1, "embed_dim": 8, "image_width": 16}
    clip = ClipSettings().build(Task(**sizes, steps_per_epoch=1, total_steps=1, seed=0))
    modules: dict[str, nn.Module] = {"image": image, "text": text, "head": head, "objective": clip}
    decay = groups(OptimizerSettings(weight_decay=0.05).build(modules.values()))
    named = {f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()}
    assert len(decay) == len(named)
    for name, parameter in named.items():
        module = modules[name.split(".")[0]].get_submodule(".".join(name.split(".")[1:-1]))
        exempt = name.endswith("bias") or isinstance(module, nn.LayerNorm | nn.GroupNorm) or name == "objective.scale.log"
        assert decay[id(parameter)] == (0.0 if exempt else 0.05), name
    assert decay[id(clip.scale.log)] == 0.0


def test_what_is_frozen_is_not_given_to_the_optimizer() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.requires_grad_(False)
    assert set(groups(OptimizerSettings().build([layer]))) == {id(layer.bias)}


def test_decay_alone_shrinks_weights_and_spares_the_rest() -> None:
    """With zero gradients AdamW multiplies by 1 - lr * decay what decays, and nothing else moves."""
    layer = nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = OptimizerSettings(lr=0.1, weight_decay=0.5).build([layer])
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * 0.95)
    assert torch.equal(layer.bias.detach(), before["bias"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD), ("lion", object), ("lamb", object)],
)
def test_optimizers_by_name_take_a_step(name: str, kind: type) -> None:
    layer = nn.Linear(3, 2)
    optimizer = OptimizerSettings(name=name, lr=0.01).build([layer])
    assert isinstance(optimizer, kind)
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_options_reach_the_optimizer_and_wrong_ones_are_named() -> None:
    optimizer = OptimizerSettings(options={"betas": [0.9, 0.98], "eps": 1e-6}).build([nn.Linear(2, 2)])
    assert optimizer.defaults["betas"] == (0.9, 0.98) and optimizer.defaults["eps"] == 1e-6
    assert OptimizerSettings(name="sgd", momentum=0.7).build([nn.Linear(2, 2)]).defaults["momentum"] == 0.7


@pytest.mark.parametrize(
    ("keys", "named", "remedy"),
    [
        ({"options": {"beta": 0.5}}, ["adamw", "'beta'"], "betas, eps"),
        ({"options": {"betas": [0.9, 2]}}, ["adamw", "'betas': [0.9, 2]"], ""),
        ({"options": {"betas": 0.9}}, ["adamw", "'betas': 0.9"], ""),
        ({"name": "lion", "options": {"eps": 1e-8}}, ["lion", "'eps'"], "betas"),
        ({"name": "sgd", "momentum": 0, "options": {"dampenin": 1}}, ["sgd", "'dampenin'"], "dampening?"),
    ],
    ids=str,
)
def test_options_that_an_optimizer_does_not_take(keys: dict, named: list[str], remedy: str) -> None:
    """Found by a step on a toy, before there is anything to train."""
    OptimizerSettings(name=keys.get("name", "adamw")).check()
    with refused("optimizer.options", *named, remedy=remedy):
        OptimizerSettings(**keys).check()


def test_a_number_without_a_dot_which_yaml_takes_for_text_is_a_number() -> None:
    assert OptimizerSettings(options=yaml.safe_load("{eps: 1e-6}")).build([nn.Linear(2, 2)]).defaults["eps"] == 1e-6


def test_sgd_may_have_no_momentum() -> None:
    """The settings allow 0; timm's `sgd` is Nesterov's, which does not."""
    layer = nn.Linear(2, 2, bias=False)
    before = layer.weight.detach().clone()
    optimizer = OptimizerSettings(name="sgd", momentum=0.0, lr=0.5, weight_decay=0.0).build([layer])
    layer(torch.eye(2)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before - 0.5)


def test_an_unknown_optimizer_gets_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"name.*'adamwx'.*\badamw\b"):
        validate(OptimizerSettings, {"name": "adamwx"}, "c.yaml")


# --- schedule ---


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.25, 0.853553), (0.5, 0.5), (0.75, 0.146447), (1.0, 0.0)])
def test_the_cosine(share: float, value: float) -> None:
    assert ScheduleSettings().lr_at(int(share * 1000), 7, 1000, 1.0) == pytest.approx(value, abs=1e-6)
    # The same between a peak and a floor, after a warm-up.
    schedule = ScheduleSettings(warmup_steps=100, final_lr=0.2)
    assert schedule.lr_at(100 + int(share * 1000), 7, 1100, 3.0) == pytest.approx(0.2 + 2.8 * value, abs=1e-5)


def test_the_warm_up_rises_linearly_to_the_peak_without_a_jump() -> None:
    schedule = ScheduleSettings(warmup_steps=4)
    assert [schedule.lr_at(step, 10, 100, 2.0) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    falling = [schedule.lr_at(step, 10, 100, 2.0) for step in range(4, 100)]
    assert falling == sorted(falling, reverse=True) and 0 < falling[-1] < 0.01


def test_a_constant_stays_and_a_long_warm_up_never_divides_by_zero() -> None:
    schedule = ScheduleSettings(name="constant", warmup_steps=2)
    assert [schedule.lr_at(step, 5, 10, 0.3) for step in (0, 1, 2, 9)] == pytest.approx([0.15, 0.3, 0.3, 0.3])
    all_warm = [ScheduleSettings(warmup_steps=50).lr_at(step, 5, 10, 1.0) for step in range(10)]
    assert all(math.isfinite(v) for v in all_warm) and all_warm[-1] == pytest.approx(0.2)
    assert ScheduleSettings(warmup_steps=10).lr_at(10, 5, 10, 1.0) == pytest.approx(1.0)


def test_stairs_of_a_warm_up_and_of_epochs() -> None:
    """Three steps at a time from a start of one's own, then a cosine over all of the run, warm-up included, by epochs."""
    schedule = ScheduleSettings(name="epoch_cosine", warmup_steps=6, warmup_stair=3, start_lr=0.0, final_lr=0.2)
    found = [schedule.lr_at(step, 4, 16, 1.0) for step in range(16)]
    second, third, fourth = (0.2 + 0.4 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (1, 2, 3))
    assert found == pytest.approx([0.0] * 3 + [0.5] * 3 + [second] * 2 + [third] * 4 + [fourth] * 4)
    # Without a start of its own a warm-up rises by whole stairs too, and ends as it would have ended.
    stairs = ScheduleSettings(name="constant", warmup_steps=4, warmup_stair=2)
    assert [stairs.lr_at(step, 4, 16, 2.0) for step in range(5)] == pytest.approx([0.5, 0.5, 1.5, 1.5, 2.0])
    # A constant and the plain cosine know no epochs.
    for name in ("constant", "cosine"):
        plain = ScheduleSettings(name=name)
        assert [plain.lr_at(step, 4, 16, 1.0) for step in range(16)] == [plain.lr_at(step, 1, 16, 1.0) for step in range(16)]


def test_the_schedule_of_small_batch_global_contrast_code() -> None:
    """As public SogCLR code runs it: five stairs from 1e-5 to 2e-4, then a cosine to 1e-6 over thirty epochs of 781 steps."""
    schedule = ScheduleSettings(name="epoch_cosine", warmup_steps=500, warmup_stair=100, start_lr=1e-5, final_lr=1e-6)

    def at(step: int) -> float:
        return schedule.lr_at(step, 781, 30 * 781, 2e-4)

    stairs = [1e-5, 4.8e-5, 8.6e-5, 1.24e-4, 1.62e-4, 2e-4]
    assert [at(100 * stair) for stair in range(6)] == pytest.approx(stairs, rel=1e-12)
    assert [at(100 * stair + 99) for stair in range(5)] == pytest.approx(stairs[:5], rel=1e-12)
    assert {at(step) for step in range(500, 781)} == {2e-4}
    for epoch, lr in ((1, 1.99455e-4), (15, 1.005e-4), (29, 1.545e-6)):
        for step in (0, 390, 780):
            assert at(781 * epoch + step) == pytest.approx(lr, rel=3e-4)
