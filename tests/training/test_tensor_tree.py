"""Trees of tensors and values come back bit for bit, of whatever they consist; and no file's content is trusted."""

import errno
import math
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.refusals import refused
from training.optimizer import OptimizerSettings
from training.tensor_tree import decode, encode, load_tree, save_tree
from training.timm_names import optimizers

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]


def same(ours: Any, theirs: Any) -> bool:
    """Equal in type and in every bit."""
    if isinstance(ours, torch.Tensor):
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (ours, theirs)]
        about = [(t.dtype, t.shape, t.stride(), t.device) for t in (ours, theirs)]
        return about[0] == about[1] and torch.equal(*bits)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and repr(ours) == repr(theirs)


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    """Any numbers, some not finite, and any order of memory."""
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    width = torch.zeros((), dtype=dtype).element_size()
    count = math.prod(shape)
    data = draw(st.binary(min_size=count * width, max_size=count * width))
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.zeros(0, dtype=dtype)
    flat = flat != 0 if dtype == torch.bool else flat
    order = draw(st.permutations(range(len(shape))))
    return flat.reshape(shape).permute(order)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors()
KEYS = st.text(max_size=4) | st.integers(-3, 3) | st.sampled_from(["$", "a.b", "a", "b", "0"])
TREES = st.recursive(
    VALUES,
    lambda t: st.lists(t, max_size=4) | st.lists(t, max_size=4).map(tuple) | st.dictionaries(KEYS, t, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_any_tree_comes_back(tree: Any) -> None:
    assert same(decode(*encode(tree)), tree)


def test_a_file_holds_shared_memory_once(tmp_path: Path) -> None:
    whole = torch.arange(24.0)
    tree = OrderedDict(tied=whole, again=whole, part=whole[3:7], other=whole[5:9], rows=whole.view(4, 6).t())
    save_tree(tree | {"every": whole[::2]}, tmp_path, "gaps")
    assert torch.equal(load_tree(tmp_path, "gaps")["every"], whole[::2])
    save_tree(tree, tmp_path, "x")
    assert same(load_tree(tmp_path, "x"), dict(tree))


def test_an_error_of_the_disk_is_one(tmp_path: Path) -> None:
    """A run starts its workers again after such an error; after any other one of the tree it ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # as if the disk had no more room
    try:
        with pytest.raises(OSError) as caught:
            save_tree({"a": torch.zeros(1000)}, tmp_path, "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and "x.safetensors" in str(caught.value)


# Those of bitsandbytes and APEX need CUDA, and AdaHessian a gradient that has a graph.
HERE = [name for name in sorted(optimizers("adamw")) if not name.startswith(("bnb", "fused")) and name != "adahessian"]


@pytest.mark.parametrize("name", HERE)
def test_every_optimizers_state_comes_back(name: str, tmp_path: Path) -> None:
    """Moments, counters and whatever else an optimizer keeps after two steps."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), nn.Flatten(), nn.Linear(4, 2))
    optimizer = OptimizerSettings(name=name).build([network])
    with torch.compiler.set_stance("force_eager"):  # some compile their step, for a minute
        for _ in range(2):
            network(torch.ones(2, 3, 3, 3)).square().sum().backward()
            optimizer.step()
    state = optimizer.state_dict()
    save_tree(state, tmp_path, "state")
    assert same(load_tree(tmp_path, "state"), state)


@pytest.mark.parametrize("value", [{1, 2}, torch.Size([1]), object(), torch.zeros(2).to_sparse(), 3j])
def test_what_cannot_come_back_is_refused_when_it_is_saved(value: Any) -> None:
    with refused("checkpoint", "a.1", type(value).__name__, remedy="state_dict"):
        encode({"a": [0, value]})


@pytest.mark.parametrize(
    "text", ["", "[1", '{"$": "tensor", "name": "b"}', '{"$": "tensor"}', '{"$": "code"}', '{"$": "dict", "items": 3}']
)
def test_a_text_of_another_kind(text: str) -> None:
    with pytest.raises(ValueError):
        decode({"a": torch.zeros(2)}, text)
