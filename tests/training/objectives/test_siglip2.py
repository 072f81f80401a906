"""SigLIP 2: its decoder and its losses in plain loops over floats."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.refusals import refused
from tests.training.objectives.reference import REPEATED, Rows, assert_near, build, dot, embeddings, ids, random_pairs, rivals
from training.objectives.ops.draws import uniforms
from training.objectives.siglip2 import SigLip2, SigLip2Settings

DRAWS = [3, 2**62 + 5, 77, 1234567890123, 9, 2**63 - 1]
TOKENS = [[5, 1, 7, 7], [2, 8, 0, 0], [4, 0, 0, 0], [1, 2, 3, 0], [6, 6, 6, 6], [8, 3, 0, 0]]
LENGTHS = [4, 2, 1, 3, 4, 2]
SMALL: dict[str, Any] = {"temperature": 0.2, "bias": -1.0, "decoder": {"width": 4, "layers": 2, "heads": 2}}


def objective_of(**keys: Any) -> SigLip2:
    torch.manual_seed(0)
    settings = SigLip2Settings.model_validate(SMALL | keys)
    return build(settings, image_states_width=3, vocabulary_size=9)


def plain_uniforms(draw: int, count: int, purpose: int) -> list[float]:
    """splitmix64 in Python's integers."""
    every, found = 2**64 - 1, []
    for place in range(1, count + 1):
        z = (draw + (place + purpose * 2**32) * 0x9E3779B97F4A7C15) & every
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & every
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & every
        found.append(((z ^ (z >> 31)) >> 40) / 2**24)
    return found


def test_draws_are_uniform_and_known_by_sample_and_purpose() -> None:
    for purpose in (0, 1):
        expected = [plain_uniforms(draw, 5, purpose) for draw in DRAWS]
        assert uniforms(torch.tensor(DRAWS), 5, purpose).tolist() == expected
    many = uniforms(torch.arange(4000), 3, 1)
    assert many.mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.03)
    assert torch.corrcoef(many.T).fill_diagonal_(0).abs().max() < 0.06
    assert uniforms(torch.tensor([0, 1]), 1, 0).tolist() == uniforms(torch.tensor([0, 1]), 4, 0)[:, :1].tolist()


def linear(row: list[float], weight: Rows, bias: list[float]) -> list[float]:
    return [dot(row, out) + b for out, b in zip(weight, bias, strict=True)]


def normed(row: list[float], weight: list[float], bias: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    spread = math.sqrt(sum((v - mean) ** 2 for v in row) / len(row) + 1e-5)
    return [(v - mean) / spread * w + b for v, w, b in zip(row, weight, bias, strict=True)]


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def attended(queries: Rows, keys: Rows, w: dict[str, Any], name: str, sees: Any) -> Rows:
    """Two heads of two numbers."""
    (wq, wk, wv), (bq, bk, bv) = (
        [w[f"{name}.in_proj_{kind}"][start : start + 4] for start in (0, 4, 8)] for kind in ("weight", "bias")
    )
    rows = []
    for i, query in enumerate(queries):
        out: list[float] = []
        for head in (slice(0, 2), slice(2, 4)):
            q = linear(query, wq, bq)[head]
            seen = [j for j in range(len(keys)) if sees(i, j)]
            exps = [math.exp(dot(q, linear(keys[j], wk, bk)[head]) / math.sqrt(2)) for j in seen]
            values = [linear(keys[j], wv, bv)[head] for j in seen]
            out += [sum(e * v[d] for e, v in zip(exps, values, strict=True)) / sum(exps) for d in range(2)]
        rows.append(linear(out, w[f"{name}.out_proj.weight"], w[f"{name}.out_proj.bias"]))
    return rows


def plus(one: Rows, other: Rows) -> Rows:
    return [[a + b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)]


def told(w: dict[str, Any], image: Rows, tokens: list[int], length: int, parallel: bool) -> list[float]:
    """The log-probability of each of a caption's tokens."""
    inputs = [w["start"], *(w["tokens.weight"][token] for token in tokens[: length - 1])]
    if parallel:
        inputs = [w["blank"]] * length
    sines = [[math.sin(i), math.sin(i / 100), math.cos(i), math.cos(i / 100)] for i in range(length)]
    rows = plus(inputs, sines)
    memory = [linear(place, w["image.weight"], w["image.bias"]) for place in image]
    for block in ("blocks.layers.0", "blocks.layers.1"):

        def norm(number: int, rows: Rows, block: str = block) -> Rows:
            return [normed(row, w[f"{block}.norm{number}.weight"], w[f"{block}.norm{number}.bias"]) for row in rows]

        own = norm(1, rows)
        rows = plus(rows, attended(own, own, w, f"{block}.self_attn", lambda i, j: parallel or j <= i))
        rows = plus(rows, attended(norm(2, rows), memory, w, f"{block}.multihead_attn", lambda i, j: True))
        inner = [linear(row, w[f"{block}.linear1.weight"], w[f"{block}.linear1.bias"]) for row in norm(3, rows)]
        out = [linear([gelu(v) for v in row], w[f"{block}.linear2.weight"], w[f"{block}.linear2.bias"]) for row in inner]
        rows = plus(rows, out)
    found = []
    for token, row in zip(tokens, rows, strict=False):
        state = normed(row, w["blocks.norm.weight"], w["blocks.norm.bias"])
        logits = linear(state, w["words.weight"], w["words.bias"])
        found.append(logits[token] - math.log(sum(math.exp(v) for v in logits)))
    return found


def sigmoid_loss(x: Rows, y: Rows) -> float:
    total = 0.0
    for i, others in enumerate(rivals(*REPEATED)):
        total += math.log(1 + math.exp(-(5 * dot(x[i], y[i]) - 1)))
        total += sum(math.log(1 + math.exp(5 * dot(x[i], y[j]) - 1)) for j in others)
    return total / len(x)


def columns() -> dict[str, Tensor]:
    mask = (torch.arange(4) < torch.tensor(LENGTHS)[:, None]).long()
    return {"text": torch.tensor(TOKENS), "text_mask": mask, "draw": torch.tensor(DRAWS)}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_captions_are_told_from_what_came_before_or_all_at_once(share: float) -> None:
    objective = objective_of(parallel=share, captioning=0.7)
    x, y = random_pairs(6)
    states = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch: Any = ids(*REPEATED) | columns()
    found = objective(embeddings(x, y)._replace(image_states=states), batch)
    w = {name: value.tolist() for name, value in objective.decoder.state_dict().items()}
    at_once = [plain_uniforms(draw, 1, 0)[0] < share for draw in DRAWS]
    assert share in (0, 1) or {*at_once} == {True, False}
    every = [told(w, *given) for given in zip(states.tolist(), TOKENS, LENGTHS, at_once, strict=True)]
    expected = -sum(sum(tokens) for tokens in every) / sum(LENGTHS)
    assert_near(found.metrics["captioning"], expected, 1e-12)
    assert_near(found.metrics["siglip"], sigmoid_loss(x.tolist(), y.tolist()), 1e-12)
    assert_near(found.total, sigmoid_loss(x.tolist(), y.tolist()) + 0.7 * expected, 1e-12)


def test_without_captions_it_is_siglip_and_has_no_decoder() -> None:
    objective = objective_of(captioning=0)
    x, y = random_pairs(6)
    assert_near(objective(embeddings(x, y), ids(*REPEATED)).total, sigmoid_loss(x.tolist(), y.tolist()), 1e-12)
    assert {name for name, _ in objective.named_parameters()} == {"bias", "scale.log"}


def test_heads_must_share_the_decoders_width() -> None:
    with refused("objective.decoder.heads", 3, 4):
        objective_of(decoder={"width": 4, "heads": 3})
