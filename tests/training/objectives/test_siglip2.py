"""SigLIP 2: its decoder and its losses in plain loops over floats."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.dataset.batch import Needs
from pipelines.dataset.stream import Item
from pipelines.features.pool import Pool
from pipelines.program.display import Display
from pipelines.program.settings import validate
from tests.refusals import refused
from tests.training.objectives.reference import (
    REPEATED,
    Rows,
    assert_near,
    build,
    cross_entropy,
    dot,
    embeddings,
    ids,
    random_pairs,
    rivals,
    softmax,
    task,
)
from tests.training.squares import TRAIN, prepared_by_hand
from training.config import TrainSettings
from training.objectives.ops.draws import uniforms
from training.objectives.ops.own_teacher import half
from training.objectives.siglip2 import SigLip2, SigLip2Settings
from training.plan import plan_of
from training.state import TrainState
from training.step import train_step

DRAWS = [3, 2**62 + 5, 77, 1234567890123, 9, 2**63 - 1]
TOKENS = [[5, 1, 7, 7], [2, 8, 0, 0], [4, 0, 0, 0], [1, 2, 3, 0], [6, 6, 6, 6], [8, 3, 0, 0]]
LENGTHS = [4, 2, 1, 3, 4, 2]
TEACHER: dict[str, Any] = {
    **{"begin": 0.0, "momentum": 0.7, "parts": 2, "prototypes": 5, "hidden": 4, "bottleneck": 3},
    **{"student_temperature": 0.3, "teacher_temperature": 0.2, "centre_momentum": 0.6},
}
SMALL: dict[str, Any] = {
    **{"temperature": 0.2, "bias": -1.0, "decoder": {"width": 4, "layers": 2, "heads": 2}, "teacher": TEACHER},
    **{"captioning": 0, "self_distillation": 0, "masked_prediction": 0},
}


def objective_of(**keys: Any) -> SigLip2:
    torch.manual_seed(0)
    return build(objective_of_settings(**keys), image_states_width=3, vocabulary_size=9)


def objective_of_settings(**keys: Any) -> SigLip2Settings:
    return SigLip2Settings.model_validate(SMALL | keys)


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


def test_without_its_terms_it_is_siglip() -> None:
    objective = objective_of()
    assert objective_of_settings().needs == Needs(ids=True)
    x, y = random_pairs(6)
    assert_near(objective(embeddings(x, y), ids(*REPEATED)).total, sigmoid_loss(x.tolist(), y.tolist()), 1e-12)
    assert {name for name, _ in objective.named_parameters()} == {"bias", "scale.log"}


def answer(w: dict[str, Any], row: list[float]) -> list[float]:
    """A head's cosines with its prototypes."""
    for layer in (0, 2, 4):
        row = linear(row, w[f"layers.{layer}.weight"], w[f"layers.{layer}.bias"])
        row = row if layer == 4 else [gelu(v) for v in row]
    lengths = [math.sqrt(dot(p, p)) * math.sqrt(dot(row, row)) for p in w["prototypes"]]
    return [dot(row, p) / length for p, length in zip(w["prototypes"], lengths, strict=True)]


def lesson(w: dict[str, dict[str, Any]], centre: list[float], pairs: list[tuple[list[float], list[float]]]) -> float:
    """The mean over pairs of what the student says and what it is taught."""
    total = 0.0
    for said, taught in pairs:
        target = softmax([(z - c) / 0.2 for z, c in zip(answer(w["teacher"], taught), centre, strict=True)])
        total += cross_entropy(target, [z / 0.3 for z in answer(w["student"], said)])
    return total / len(pairs)


def weights_of(module: Any) -> dict[str, dict[str, Any]]:
    return {name: {key: v.tolist() for key, v in getattr(module, name).state_dict().items()} for name in ("student", "teacher")}


def test_parts_tell_the_whole_and_hidden_places_what_is_there() -> None:
    """Over two steps: the losses, then the teacher's heads and the centres that the next step finds."""
    objective = objective_of(self_distillation=0.8, masked_prediction=0.3)
    x, y = random_pairs(6)
    centres = {name: [0.0] * 5 for name in ("self_distillation", "masked_prediction")}
    for step in range(2):
        random = torch.Generator().manual_seed(step)
        parts, whole = (torch.randn(6, *shape, generator=random, dtype=torch.float64) for shape in ((2, 5), (5,)))
        masked, states = torch.randn(2, 6, 4, 3, generator=random, dtype=torch.float64)
        orders = [sorted(range(4), key=plain_uniforms(draw, 4, 1).__getitem__) for draw in DRAWS]
        places = [sorted(order[:2]) for order in orders]
        hidden = torch.tensor([[place in row for place in range(4)] for row in places])
        assert torch.equal(half(torch.tensor(DRAWS), 4), hidden)
        batch: Any = ids(*REPEATED) | columns() | {"teacher_whole": whole, "teacher_states": states, "hidden": hidden}
        found = objective(embeddings(x, y)._replace(strong_projection=parts, masked_states=masked), batch)
        pairs = {
            "self_distillation": [(part, whole[i].tolist()) for i in range(6) for part in parts[i].tolist()],
            "masked_prediction": [
                (masked[i, place].tolist(), states[i, place].tolist()) for i in range(6) for place in places[i]
            ],
        }
        before = {name: weights_of(module) for name, module in objective.lessons.items()}
        expected = {name: lesson(before[name], centres[name], given) for name, given in pairs.items()}
        for name, value in expected.items():
            assert_near(found.metrics[name], value, 1e-12)
        total = 0.8 * expected["self_distillation"] + 0.3 * expected["masked_prediction"]
        assert_near(found.total, sigmoid_loss(x.tolist(), y.tolist()) + total, 1e-12)
        found.total.backward()
        with torch.no_grad():
            for parameter in objective.lessons.parameters():
                assert parameter.requires_grad == (parameter.grad is not None)
                parameter.add_(0 if parameter.grad is None else -parameter.grad)
        moved = {name: weights_of(module)["student"] for name, module in objective.lessons.items()}
        objective.update(batch, found)
        for name, module in objective.lessons.items():
            answers = [answer(before[name]["teacher"], taught) for _, taught in pairs[name]]
            means = [sum(column) / len(answers) for column in zip(*answers, strict=True)]
            centres[name] = [0.6 * old + 0.4 * new for old, new in zip(centres[name], means, strict=True)]
            assert_near(module.centre, centres[name], 1e-12)
            for key, value in module.teacher.state_dict().items():
                old, new = (torch.tensor(part[key], dtype=torch.float64) for part in (before[name]["teacher"], moved[name]))
                assert_near(value, 0.7 * old + 0.3 * new, 1e-12)


def test_before_its_time_the_teacher_is_the_student_and_nothing_is_learned_from_it() -> None:
    """Of ten steps the last two have views; then the teacher lags behind."""
    teaching = {"self_distillation": 1.0, "masked_prediction": 1.0, "teacher": TEACHER | {"begin": 0.8}}
    settings = objective_of_settings(**teaching)
    views = settings.needs.strong
    assert views is not None and [step for step in range(10) if step >= views.first_step(10)] == [8, 9]
    objective, (x, y) = objective_of(**teaching), random_pairs(6)
    found = objective(embeddings(x, y), ids(*REPEATED) | columns())
    assert_near(found.total, sigmoid_loss(x.tolist(), y.tolist()), 1e-12)
    with torch.no_grad():
        for parameter in objective.lessons.parameters():
            parameter.add_(0.5 if parameter.requires_grad else 0.0)
    objective.update(ids(*REPEATED), found)
    for module in objective.lessons.values():
        for own, new in zip(module.teacher.parameters(), module.student.parameters(), strict=True):
            assert torch.equal(own, new)
        assert not module.centre.any()
    student = torch.nn.Linear(1, 1)
    teacher: Any = settings.build_teacher(student, task(total_steps=10))
    apart = []
    for step in range(10):
        torch.nn.init.constant_(student.weight, float(step + 1))
        teacher.update(student, step)
        apart.append(float(student.weight.detach() - teacher.encoder.weight))
    assert apart == pytest.approx([0.0] * 8 + [0.7, 0.7 * 1.7])
    assert teacher({"image": x}) == {"image": x}


@pytest.mark.slow
def test_each_term_is_learned_from_pixels(tmp_path: Path) -> None:
    """Of squares of one colour: pairs and captions throughout; in the second half, what parts and hidden places are taught.

    Its loss alone would fall, too, if all images got one answer. So the lessons of other images must fit ever less.
    """
    view: dict[str, Any] = {"jitter": 0, "gray": 0, "blur": 0}  # a colour is all that there is to tell
    teacher = {
        **{"begin": 0.5, "parts": 2, "prototypes": 32, "hidden": 32, "bottleneck": 16, "momentum": 0.9},
        **{"part": view | {"crop_scale": [0.05, 0.4]}, "whole": view | {"crop_scale": [0.4, 1.0]}},
    }
    run = {
        **{"name": "squares", "data": {"path": str(prepared_by_hand(tmp_path / "squares", "squares").path)}},
        "objective": {
            **{"name": "siglip2", "temperature": 0.2, "bias": -3.0, "teacher": teacher},
            "decoder": {"width": 16, "layers": 1, "heads": 2},
        },
        "image_tower": {"name": "conv", "image_size": 16, "channels": [16, 24]},
        "text_tower": {"name": "bag", "width": 16, "max_tokens": 8},
        **{"embed_dim": 16, "epochs": 120, "global_batch_size": TRAIN, "optimizer": {"name": "adamw", "lr": 1e-2}},
    }
    settings = validate(TrainSettings, run, "squares")
    plan = plan_of(settings, Pool(0), Display(quiet=True))
    encoder, objective, averaged = plan.build()
    optimizer = settings.optimizer.build([encoder, objective])
    state = TrainState(encoder.train(), objective, averaged, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    seen, lessons = plan.stream.here(Item(plan.order.batch(0, 0, 1), 0)), objective.lessons

    @torch.no_grad()
    def gaps() -> list[float]:
        """By how much what the student says fits what another image is taught less than what it is taught itself."""
        batch = averaged(seen)
        rows, hidden = encoder(batch), batch["hidden"]
        masked, states = (part[hidden].unflatten(0, (TRAIN, -1)) for part in (rows.masked_states, batch["teacher_states"]))
        given = {
            "self_distillation": (rows.strong_projection, batch["teacher_whole"][:, None]),
            "masked_prediction": (masked, states),
        }
        return [float(lessons[name](a, b.roll(1, 0))[0] - lessons[name](a, b)[0]) for name, (a, b) in given.items()]  # type: ignore[operator]

    found: dict[str, list[float]] = {}
    begin, untaught = plan.stream.strong_from, list[float]()
    assert (begin, plan.total_steps) == (60, 120)
    for step in range(plan.total_steps):
        if step == begin:
            untaught = gaps()
        item = Item(plan.order.batch(step, 0, 1), plan.order.epoch_of(step), strong=step >= begin)
        loss, _ = train_step(state, plan.stream.here(item), settings, 1e-2)
        for name, value in loss.metrics.items():
            found.setdefault(name, []).append(float(value))
    for name, first in (("siglip", 0), ("captioning", 0), ("self_distillation", begin), ("masked_prediction", begin)):
        assert sum(found[name][-5:]) < 0.5 * sum(found[name][first : first + 5])
        assert not any(found[name][:first])
    assert all(after > 2 + before for before, after in zip(untaught, gaps(), strict=True))


def test_a_locked_image_tower_has_no_places_to_tell_captions_from() -> None:
    run: dict[str, Any] = {"name": "t", "data": {"path": "d"}, "epochs": 1, "global_batch_size": 8, "text_tower": {"name": "bag"}}
    run |= {"image_tower": {"name": "conv", "mode": "locked"}, "objective": {"name": "siglip2"} | SMALL}
    assert validate(TrainSettings, run, "t").objective.needs == Needs(ids=True)
    run["objective"] = run["objective"] | {"captioning": 1.0}
    with refused("objective.name", "image_tower.mode=locked", remedy="frozen"):
        validate(TrainSettings, run, "t")


def test_heads_must_share_the_decoders_width() -> None:
    with refused("objective.decoder.heads", 3, 4):
        objective_of(decoder={"width": 4, "heads": 3})
