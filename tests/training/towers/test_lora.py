"""LoRA: every tower begins as it was, trains low-rank changes only, and is a plain tower again when it is loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.test_step import TOKENS, batch, settings_of, state_of  # noqa: F401  (a fixture)
from tests.training.towers.test_finetuning import tower_of
from training.config import TrainSettings
from training.step import train_step
from training.towers import lora
from training.towers.finetuning import prepare
from training.towers.lora import LoraSettings
from training.towers.text import TransformerSettings

RANK, ALPHA = 3, 6.0
LORA = LoraSettings(rank=RANK, alpha=ALPHA)
# Of each tower: matrices in a block, and blocks.
TOWERS = {
    "transformer": (4, 3),  # attention's in and out, and two layers
    "conv": (3, 3),
    "open_clip-image": (4, 3),
    "open_clip-text": (4, 2),
    "timm-vit_tiny_patch16_224": (4, 12),
    "bert": (6, 2),  # query, key and value apart
    "t5": (6, 2),
    "gpt2": (4, 2),
    "clip-image": (6, 2),
}


def adapted(name: str, folder: Path, **changes: Any) -> tuple[nn.Module, nn.Module, tuple[torch.Tensor, ...]]:
    """A tower as it was, the same with LoRA, and what both take."""
    tower, inputs = tower_of(name, folder)
    plain = copy.deepcopy(tower)
    settings = TransformerSettings(name="transformer", lora=LORA, **changes)  # only how it trains is read
    prepare(tower, settings, inputs, "text_tower")
    return plain.eval(), tower.eval(), inputs


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_a_tower_computes_as_with_weights_that_have_changed(name: str, tmp_path: Path) -> None:
    """At first as before; then as the plain tower with W + alpha/rank B A for W, also after loading what was saved."""
    plain, tower, inputs = adapted(name, tmp_path)
    torch.testing.assert_close(tower(*inputs), plain(*inputs), rtol=1e-5, atol=1e-6)
    trained = {n: p for n, p in tower.named_parameters() if p.requires_grad}
    matrices = sorted({n.rpartition(".")[0] for n in trained})
    per_block, blocks = TOWERS[name]
    assert len(matrices) == per_block * blocks and len(trained) == 2 * len(matrices)
    generator = torch.Generator().manual_seed(0)
    for parameter in trained.values():
        parameter.normal_(0, 0.1, generator=generator)
    before, saved = plain(*inputs), lora.merged(tower.state_dict())
    for matrix in matrices:
        a, b = trained[f"{matrix}.a"], trained[f"{matrix}.b"]
        assert len(a) == b.shape[1] == min(RANK, len(b), a.shape[1])
        weight = plain.get_parameter(lora.plain_name(f"{matrix}.a"))
        change = torch.stack([sum(b[i, k] * a[k] for k in range(len(a))) for i in range(len(b))])
        weight += (ALPHA / len(a) * change).reshape(weight.shape)
    assert not torch.allclose(before, plain(*inputs), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tower(*inputs), plain(*inputs), rtol=1e-4, atol=1e-5)
    fresh = tower_of(name, tmp_path)[0].eval()
    fresh.load_state_dict(saved)
    torch.testing.assert_close(fresh(*inputs), plain(*inputs), rtol=1e-4, atol=1e-5)


def test_only_changes_train_and_the_steps_are_those_of_their_blocks(batch: Any) -> None:  # noqa: F811
    text = {"name": "transformer", "width": 16, "layers": 3, "max_tokens": TOKENS, "frozen_blocks": 1, "layer_decay": 0.5}
    settings = settings_of(text_tower=text | {"lora": {"rank": RANK}}, optimizer={"name": "sgd", "lr": 0.1})
    state = state_of(settings)
    encoder: Any = state.encoder
    before = copy.deepcopy(encoder.state_dict())
    for _ in range(2):  # the first moves B alone, as A's gradient is zero then
        train_step(state, batch, settings, 0.1)
    all_moved = {n for n, value in encoder.state_dict().items() if not torch.equal(value, before[n])}
    moved = {n for n in all_moved if n.startswith("text_tower.")}
    trained = {n for n, p in encoder.text_tower.named_parameters(prefix="text_tower") if p.requires_grad}
    assert moved == trained and all("parametrizations" in n for n in trained)
    assert {n.split("layers.")[1][0] for n in moved} == {"1", "2"}
    scales = encoder.text_tower.lr_scales
    assert {(n.split("layers.")[1][0], scale) for n, scale in scales.items()} == {("1", 0.25), ("2", 0.5)}
    assert any(n.startswith("image_tower.") for n in all_moved)


def test_what_cannot_be_adapted_is_named() -> None:
    with refused("text_tower.lora", "bag"):
        state_of(settings_of(text_tower={"name": "bag", "width": 16, "max_tokens": TOKENS, "lora": {}}))
    tower = {"name": "timm", "model": "test_vit", "image_size": 160, "mode": "frozen", "lora": {"rank": 2}}
    with refused("image_tower.lora", "frozen"):
        validate(TrainSettings, settings_of().model_dump(mode="json") | {"image_tower": tower}, "c.yaml")
