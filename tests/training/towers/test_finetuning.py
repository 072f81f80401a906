"""Depth in towers, and what follows from it: the learning rate of each parameter, and which are frozen."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models import group_parameters
from torch import Tensor

from pipelines.program.errors import UserError
from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.test_step import ROWS, TOKENS, batch, settings_of, state_of  # noqa: F401  (a fixture)
from tests.training.towers.text_models import DUAL, SIZE, TEXT, save
from training.config import TrainSettings
from training.encoder import DualEncoder, LinearHead, build_encoder
from training.half_cosine import half_cosine
from training.step import train_step
from training.towers.depth import depth_of
from training.towers.image import ConvSettings, HuggingFaceVisionSettings, TimmSettings
from training.towers.open_clip import OpenClipImageSettings, OpenClipTextSettings
from training.towers.text import HuggingFaceTextSettings, TransformerSettings
from training.towers.text_reading import any_tokens

MODEL = "raylign-test-depth"


def pixels(size: int) -> tuple[Tensor]:
    return (torch.zeros(1, 3, size, size, dtype=torch.uint8),)


def tokens(length: int, vocabulary: int = 60) -> tuple[Tensor, Tensor]:
    ids = any_tokens(vocabulary, length)
    return ids, torch.ones_like(ids)


def open_clip_of(folder: Path) -> None:
    import open_clip

    vision = {"image_size": SIZE, "layers": 3, "width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    (folder / f"{MODEL}.json").write_text(json.dumps({"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(folder)


def tower_of(name: str, folder: Path) -> tuple[Any, tuple[Tensor, ...]]:
    """A tower, and what it takes."""
    if name == "transformer":
        return TransformerSettings(name="transformer", width=16, layers=3).build(60), tokens(8)
    if name == "conv":
        return ConvSettings(name="conv", channels=(8, 16, 24)).build(), pixels(48)
    if name in ("open_clip-image", "open_clip-text"):
        open_clip_of(folder)
        if name == "open_clip-image":
            return OpenClipImageSettings(name="open_clip", model=MODEL, image_size=SIZE).build(), pixels(SIZE)
        return OpenClipTextSettings(name="open_clip", model=MODEL).build(0), tokens(77)
    if name.startswith("timm-"):
        return TimmSettings(name="timm", model=name.removeprefix("timm-"), image_size=64).build(), pixels(64)
    kinds = TEXT | DUAL
    weights = str(save(kinds[name.removesuffix("-image")][0], kinds[name.removesuffix("-image")][1], folder))
    if name.endswith("-image"):
        settings = HuggingFaceVisionSettings(name="huggingface", weights=weights, image_size=SIZE, projected=True)
        return settings.build(), pixels(SIZE)
    return HuggingFaceTextSettings(name="huggingface", weights=weights, max_tokens=16).build(20), tokens(16)


# Of each tower: the name of its k-th block, how many it has, and names of what comes after the last.
BLOCKS = {
    "transformer": (r"blocks\.layers\.(\d+)\.", 3, r"blocks\.norm\."),
    "open_clip-image": (r"resblocks\.(\d+)\.", 3, r"ln_post|\.proj$"),
    "open_clip-text": (r"resblocks\.(\d+)\.", 2, r"ln_final|text_projection"),
    "timm-vit_tiny_patch16_224": (r"blocks\.(\d+)\.", 12, r"network\.norm\."),
    "bert": (r"layer\.(\d+)\.", 2, "nothing"),
    "mpnet": (r"layer\.(\d+)\.", 2, "nothing"),  # its positions are one bias of all blocks, beside them
    "t5": (r"block\.(\d+)\.", 2, "final_layer_norm"),
    "modernbert": (r"layers\.(\d+)\.", 2, "final_norm"),
    "gpt2": (r"\.h\.(\d+)\.", 2, "ln_f"),
    "clip-image": (r"layers\.(\d+)\.", 2, "post_layernorm|visual_projection"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_depth_of_each_parameter(name: str, tmp_path: Path) -> None:
    tower, inputs = tower_of(name, tmp_path)
    block, count, after = BLOCKS[name]
    found = depth_of(tower, inputs)
    assert len(found.blocks) == count
    expected = {}
    for parameter, tensor in tower.named_parameters():
        inside = re.search(block, parameter)
        if tensor.requires_grad:
            expected[parameter] = int(inside[1]) + 1 if inside else count + 1 if re.search(after, parameter) else 0
    assert {parameter: found.of[parameter] for parameter in expected} == expected
    assert {0, *range(1, count + 1)} <= set(expected.values())


def test_what_lies_between_two_blocks_is_as_deep_as_the_later_one(tmp_path: Path) -> None:
    found = depth_of(*tower_of("conv", tmp_path))
    places = {int(name.split(".")[1]): depth for name, depth in found.of.items()}
    # A convolution and a norm, a block, and again; then the norm at the end.
    assert places == {0: 0, 1: 0, 3: 1, 4: 2, 5: 2, 7: 2, 8: 3, 9: 3, 11: 3, 14: 4}


def test_depth_in_a_network_of_convolutions_is_timms(tmp_path: Path) -> None:
    tower, inputs = tower_of("timm-mobilenetv3_small_050", tmp_path)
    theirs = group_parameters(tower.network, tower.network.group_matcher(coarse=False), reverse=True)
    assert {name.removeprefix("network."): depth for name, depth in depth_of(tower, inputs).of.items()} == theirs


def lrs(optimizer: torch.optim.Optimizer) -> dict[int, float]:
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def trained(**changes: Any) -> TrainSettings:
    return settings_of(
        text_tower={"name": "transformer", "width": 16, "layers": 3, "max_tokens": TOKENS} | changes,
        optimizer={"name": "sgd", "lr": 0.1, "momentum": 0, "weight_decay": 0.0},
    )


def test_the_learning_rate_of_each_parameter(batch: Any) -> None:  # noqa: F811
    """As written out: 0.5 for the tower, 0.7 less for each block before its end; heads, image tower and temperature as always."""
    state = state_of(trained(lr_scale=0.5, layer_decay=0.7))
    encoder: Any = state.encoder
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    lr = half_cosine(0.1, 0.0, 0.25)
    train_step(state, batch, trained(lr_scale=0.5, layer_decay=0.7), lr)
    found = lrs(state.optimizer)
    for name, parameter in encoder.named_parameters():
        scale = 1.0
        if name.startswith("text_tower."):
            block = re.search(r"layers\.(\d+)\.", name)
            steps = 0 if "blocks.norm" in name else 3 - int(block[1]) if block else 4
            scale = 0.5 * 0.7**steps
        assert found[id(parameter)] == pytest.approx(lr * scale, rel=1e-12), name
        torch.testing.assert_close(parameter.detach(), before[name] - lr * scale * parameter.grad, msg=name)
    assert {found[id(p)] for p in state.objective.parameters()} == {lr}
    # Without these keys there are the two groups of before, so that optimizers of earlier checkpoints fit.
    assert [set(group) & {"lr_scale"} for group in state_of(settings_of()).optimizer.param_groups] == [set(), set()]


def test_what_is_frozen_stays_as_it_was_bit_for_bit(batch: Any) -> None:  # noqa: F811
    """Weights and the statistics of BatchNorm, over steps that move all others. `test_resnet` has BatchNorm in its blocks."""
    image = {"name": "timm", "model": "test_resnet", "image_size": 32, "frozen_blocks": 2}
    settings = settings_of(image_tower=image, text_tower=trained(frozen_blocks=0).text_tower.model_dump())
    batch["image"] = torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8)
    state = state_of(settings)
    encoder: Any = state.encoder
    before = copy.deepcopy(encoder.state_dict())
    for _ in range(2):
        train_step(state, batch, settings, 0.1)
    moved = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    still = before.keys() - moved
    first = re.compile(r"image_tower\.network\.(conv1|bn1|layer1|layer2)\.|text_tower\.(tokens|positions)")
    assert {name for name in before if first.match(name)} == still
    assert any("running_mean" in name for name in still) and any("running_mean" in name for name in moved)
    given = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for name, p in encoder.named_parameters() if name in moved} | {
        id(p) for p in state.objective.parameters()
    }


def build(key: str, **changes: Any) -> DualEncoder:
    settings = settings_of(**{key: settings_of().model_dump(mode="json")[key] | changes})
    head = LinearHead(name="linear")
    return build_encoder(settings.image_tower, settings.text_tower, (head, head), 8, (None, None), 70)


@pytest.mark.parametrize(
    ("key", "changes", "named"),
    [
        ("text_tower.frozen_blocks", {"frozen_blocks": 2}, ["2", "1 block"]),
        ("image_tower.frozen_blocks", {"frozen_blocks": 9}, ["9", "2 block"]),
        ("text_tower.layer_decay", {"name": "bag", "width": 16, "max_tokens": 6, "layer_decay": 0.5}, ["bag"]),
    ],
)
def test_depths_that_a_tower_has_not_are_named(key: str, changes: dict[str, Any], named: list[str]) -> None:
    tower = key.split(".")[0]
    if "name" in changes:
        settings = settings_of(**{tower: changes})
        make: Callable[[], Any] = lambda: state_of(settings)  # noqa: E731
    else:
        make = lambda: build(tower, **changes)  # noqa: E731
    with refused(key, *named):
        make()


@pytest.mark.parametrize("mode", ["frozen", "locked"])
@pytest.mark.parametrize("changes", [{"lr_scale": 0.1}, {"layer_decay": 0.5}, {"frozen_blocks": 0}], ids=str)
def test_a_tower_that_does_not_train_has_no_learning_rate(mode: str, changes: dict[str, Any]) -> None:
    tower = {"name": "timm", "model": "test_vit", "image_size": 160, "mode": mode}
    tree = settings_of().model_dump(mode="json") | {"image_tower": tower}
    validate(TrainSettings, tree, "c.yaml")
    (key,) = changes
    with pytest.raises(UserError) as caught:
        validate(TrainSettings, tree | {"image_tower": tower | changes}, "c.yaml")
    assert key in str(caught.value) and mode in str(caught.value) and "mode=trainable" in str(caught.value)


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_are_the_same_bit_for_bit_if_activations_are_recomputed(batch: Any, parts: int) -> None:  # noqa: F811
    """With dropout, several parts, a teacher that copies the encoder, and frozen blocks; and each block does run twice."""
    text = {"name": "transformer", "width": 16, "layers": 3, "max_tokens": TOKENS, "dropout": 0.3, "frozen_blocks": 1}
    image = {"name": "timm", "model": "test_vit", "image_size": 160, "options": {"proj_drop_rate": 0.2}}
    batch["image"] = torch.randint(0, 256, (ROWS, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, runs = [], []
    for recompute in (False, True):
        towers = {"image_tower": image | {"recompute": recompute}, "text_tower": text | {"recompute": recompute}}
        settings = settings_of(**towers, accumulate=parts, objective={"name": "psd"}, image_head={"name": "linear"})
        state = state_of(settings)
        encoder: Any = state.encoder
        counts = {"image": 0, "text": 0}
        blocks = {"image": encoder.image_tower.network.blocks[2], "text": encoder.text_tower.blocks.layers[2]}
        for side, block in blocks.items():
            block.norm1.register_forward_hook(lambda *_, side=side, counts=counts: counts.update({side: counts[side] + 1}))
        train_step(state, batch, settings, 0.1)
        found.append({name: p.grad for name, p in encoder.named_parameters()})
        runs.append(counts)
    assert found[0].keys() == found[1].keys() and sum(g is not None for g in found[0].values()) > 40
    for name, gradient in found[0].items():
        assert (gradient is None and found[1][name] is None) or torch.equal(gradient, found[1][name]), name
    assert all(runs[1][side] == count + parts for side, count in runs[0].items()), runs
