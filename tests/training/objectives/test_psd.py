"""PSD: worked reference values, the growing share of soft pairs, plain loops, and the ways in which it could collapse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    REPEATED,
    M,
    Rows,
    X,
    Y,
    assert_near,
    build,
    clip_loss,
    cross_entropy,
    dot,
    ids,
    random_pairs,
    rivals,
    run,
    slope,
    slopes,
    softmax,
    step,
    taught,
)
from training.objectives.clip import ClipSettings
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.losses import soft_cross_entropy
from training.objectives.psd import Psd, PsdSettings
from training.teacher import EmaTeacher, NoTeacher

Soft = set[int]


def objective(soft: Soft, rows: int = 3, teacher: str = "self", temperature: float = 0.5, **keys: Any) -> Psd:
    """One whose first step makes exactly these pairs soft: the seed that draws them is looked for."""
    share = min((len(soft) + 0.2) / rows, 0.99)
    settings = PsdSettings(soft_fraction=share, schedule="constant", teacher={"name": teacher}, temperature=temperature, **keys)
    for seed in range(1000):
        psd: Psd = build(settings, seed=seed)
        if set(psd.soft(rows, 0).nonzero()[:, 0].tolist()) == soft:
            return psd
    raise AssertionError(f"no seed makes {soft} of {rows} pairs soft")


@pytest.mark.parametrize(
    ("soft", "image_to_text", "text_to_image", "total"),
    [
        (set(), 0.862561, 0.849806, 0.856183),
        ({1}, 0.844924, 0.912897, 0.878911),
        ({0, 2}, 0.971835, 0.904562, 0.938198),
        ({0, 1, 2}, 0.954198, 0.967652, 0.960925),
    ],
)
def test_reference_losses(soft: Soft, image_to_text: float, text_to_image: float, total: float) -> None:
    """Temperature 0.5, sharpening 0.5, the student as its own teacher."""
    scale, candidates = torch.tensor(2.0, dtype=torch.float64), Candidates(torch.arange(3))
    share = torch.tensor([float(i in soft) for i in range(3)], dtype=torch.float64)
    image = soft_cross_entropy((X, Y, scale), (X, Y, 2 * scale), share, candidates).mean()
    text = soft_cross_entropy((Y, X, scale), (Y, X, 2 * scale), share, candidates).mean()
    assert float(image) == pytest.approx(image_to_text, abs=PRINTED)
    assert float(text) == pytest.approx(text_to_image, abs=PRINTED)
    assert run(objective(soft, sharpening=0.5, swap_directions=False), X, Y).total == pytest.approx(total, abs=PRINTED)


def test_reference_gradient() -> None:
    expected = [[-0.140283, 0.191046, -0.140283], [0.139274, 0.006891, 0.139274], [-0.071949, -0.129861, -0.071949]]
    assert_near(run(objective({1}, sharpening=0.5, swap_directions=False), X, Y).dx, expected)


def test_reference_targets() -> None:
    """A student that knows nothing predicts 1/3 each; its gradient is prediction minus target."""
    axes, scale = torch.eye(3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)

    def targets(queries: Tensor, keys: Tensor, share: list[float]) -> Tensor:
        student = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        shares = torch.tensor(share, dtype=torch.float64)
        soft_cross_entropy(
            (student, axes, scale), (queries, keys, 4 * scale), shares, Candidates(torch.arange(3))
        ).sum().backward()
        assert student.grad is not None
        return 1 / 3 - student.grad

    assert_near(targets(X, Y, [0, 1, 0]), [[1, 0, 0], [0.146278, 0.334935, 0.518788], [0, 0, 1]])
    assert_near(targets(Y, X, [0, 1, 0]), [[1, 0, 0], [0.041839, 0.707859, 0.250303], [0, 0, 1]])
    assert_near(targets(X, Y, [1, 0.3, 1]).sum(1), [1, 1, 1], 1e-12)


@pytest.mark.parametrize(
    ("keys", "total"),
    [
        ({"sharpening": 1.0, "swap_directions": False}, 0.915479),
        ({"sharpening": 1.0, "swap_directions": True}, 0.944239),
        ({"sharpening": 0.5, "swap_directions": True}, 0.929366),
        ({}, 0.944239),
    ],
)
def test_reference_losses_of_a_student_that_teaches_itself(keys: dict[str, Any], total: float) -> None:
    assert run(objective({1}, **keys), X, Y).total == pytest.approx(total, abs=PRINTED)


def test_reference_loss_with_a_moving_average_as_teacher() -> None:
    """Its images are M, its texts Y; without a word about it, the targets are not swapped."""
    batch = taught(ids(3), M, Y)
    assert run(objective({1}, teacher="ema"), X, Y, batch).total == pytest.approx(0.906222, abs=PRINTED)
    swapped = run(objective({1}, teacher="ema", swap_directions=True), X, Y, batch).total
    assert swapped != pytest.approx(0.906222, abs=1e-3)


@pytest.mark.parametrize(
    ("schedule", "share", "expected"),
    [
        ("cosine", 0.8, [0, 0.117157, 0.4, 0.682843, 0.8]),
        ("linear", 0.9, [0, 0.45, 0.9, 0.9, 0.9]),
        ("constant", 0.7, [0.7] * 5),
    ],
)
def test_the_share_grows_as_scheduled(schedule: str, share: float, expected: list[float]) -> None:
    psd = build(PsdSettings(schedule=schedule, soft_fraction=share), total_steps=40)
    assert [psd.share(done) for done in (0, 10, 20, 30, 40)] == pytest.approx(expected, abs=PRINTED)


def test_soft_pairs_are_as_many_as_the_share_and_drawn_from_seed_and_step_alone() -> None:
    psd, twin, other = (build(PsdSettings(), total_steps=20, seed=seed) for seed in (3, 3, 4))
    drawn = [psd.soft(30, at) for at in range(20)]
    assert [int(soft.sum()) for soft in drawn] == [round(psd.share(at) * 30) for at in range(20)]
    torch.manual_seed(1)
    step(twin, *random_pairs(6), batch=taught(ids(6), *random_pairs(6, seed=1)))
    assert all(torch.equal(soft, twin.soft(30, at)) for at, soft in enumerate(drawn))
    assert not torch.equal(drawn[5], other.soft(30, 5))
    assert not torch.equal(drawn[15], drawn[16])
    assert bool(torch.stack(drawn).any(0).all())


def test_training_passes_from_clip_to_soft_targets() -> None:
    """The share that a step reports is the one of its own number of steps before."""
    psd, (x, y) = build(PsdSettings(temperature=0.5), total_steps=8), random_pairs(6)
    batch = taught(ids(6), *random_pairs(6, seed=1))
    found = [step(psd, x, y, batch) for _ in range(8)]
    assert [float(one.loss.metrics["soft_share"]) for one in found] == pytest.approx([0, 1 / 6, 0.5, 4 / 6] + [5 / 6] * 4)
    assert found[0].total == pytest.approx(clip_loss(x.tolist(), y.tolist(), 2.0, *DISTINCT), abs=1e-12)
    assert abs(found[-1].total - found[0].total) > 1e-3


Targets = list[tuple[list[int], list[float], list[float]]]


def naive_targets(
    x: Rows, y: Rows, scale: float, soft: Soft, image_id: list[int], text_id: list[int], swap: bool, block: bool
) -> Targets:
    """Of each pair its candidates, the own one first, and the targets of its image and of its text."""
    found = []
    for i, others in enumerate(rivals(image_id, text_id)):
        candidates = [i] + [j for j in others if not block or (i in soft) == (j in soft)]
        image = softmax([scale * dot(x[i], y[j]) for j in candidates])
        text = softmax([scale * dot(y[i], x[j]) for j in candidates])
        if swap:
            image, text = text, image
        if i not in soft:
            image = text = [1.0] + [0.0] * (len(candidates) - 1)
        found.append((candidates, image, text))
    return found


def naive(x: Rows, y: Rows, scale: float, targets: Targets) -> float:
    total = 0.0
    for i, (candidates, image, text) in enumerate(targets):
        total += cross_entropy(image, [scale * dot(x[i], y[j]) for j in candidates])
        total += cross_entropy(text, [scale * dot(y[i], x[j]) for j in candidates])
    return total / (2 * len(x))


@pytest.mark.parametrize(("image_id", "text_id"), [DISTINCT, REPEATED])
@pytest.mark.parametrize(
    ("teacher", "swap", "scope"), [("self", True, "batch"), ("self", False, "block"), ("ema", False, "batch")]
)
def test_value_and_gradient_against_plain_loops(
    teacher: str, swap: bool, scope: str, image_id: list[int], text_id: list[int]
) -> None:
    """Targets have no gradient, neither to the rows nor to the scale that sharpens them."""
    (x, y), others, soft = random_pairs(6), random_pairs(6, seed=9), {0, 2, 3}
    psd = objective(soft, 6, teacher, temperature=0.25, sharpening=0.7, swap_directions=swap, scope=scope)
    batch = taught(ids(image_id, text_id), *others)
    found = run(psd, x, y, batch)
    teachers = [rows.tolist() for rows in (others if teacher == "ema" else (x, y))]
    targets = naive_targets(*teachers, 4.0 / 0.7, soft, image_id, text_id, swap, scope == "block")
    assert found.total == pytest.approx(naive(x.tolist(), y.tolist(), 4.0, targets), abs=1e-12)
    dx, dy = slopes(lambda x, y: naive(x, y, 4.0, targets), x, y)
    assert_near(found.dx, dx, 1e-7)
    assert_near(found.dy, dy, 1e-7)
    by_log = slope(lambda log: naive(x.tolist(), y.tolist(), math.exp(log), targets), math.log(4))
    assert float(psd.scale.log.grad) == pytest.approx(by_log, abs=1e-8)


def test_ones_own_prediction_teaches_nothing_unless_it_is_swapped() -> None:
    everything = {0, 1, 2}
    found = run(objective(everything, swap_directions=False), X, Y)
    assert_near(found.dx, torch.zeros(3, 3), 1e-12)
    assert_near(found.dy, torch.zeros(3, 3), 1e-12)
    assert float(run(objective(everything), X, Y).dx.abs().max()) > 0.01
    assert float(run(objective(everything, swap_directions=False, sharpening=0.5), X, Y).dx.abs().max()) > 0.01


def test_with_no_soft_pair_it_is_clip() -> None:
    x, y = random_pairs(6)
    batch = taught(ids(*REPEATED), *random_pairs(6, seed=1))
    for keys in ({"teacher": {"name": "self"}}, {"teacher": {"name": "ema"}}, {"scope": "block"}):
        psd = build(PsdSettings(soft_fraction=0.0, temperature=0.2, **keys))
        clip = build(ClipSettings(temperature=0.2))
        ours, theirs = run(psd, x, y, batch), run(clip, x, y, batch)
        assert ours.total == pytest.approx(theirs.total, abs=1e-12)
        assert_near(ours.dx, theirs.dx, 1e-12)
        assert_near(psd.scale.log.grad, clip.scale.log.grad, 1e-12)


def test_a_sharp_teacher_who_is_right_is_clip() -> None:
    axes = torch.eye(3, dtype=torch.float64)
    batch = taught(ids(3), axes, axes)
    sharp = run(objective({0, 1, 2}, teacher="ema", sharpening=0.01), X, Y, batch)
    clip = run(build(ClipSettings(temperature=0.5)), X, Y)
    assert sharp.total == pytest.approx(clip.total, abs=1e-12)
    assert_near(sharp.dx, clip.dx, 1e-12)


def test_pairs_may_come_in_another_order_when_their_softness_comes_along() -> None:
    first = run(objective({0, 2}, sharpening=0.5, swap_directions=False), X, Y)
    order = [2, 0, 1]
    second = run(objective({0, 1}, sharpening=0.5, swap_directions=False), X[order], Y[order])
    assert second.total == pytest.approx(first.total, abs=1e-12)
    assert_near(second.dx, first.dx[order], 1e-12)


def test_blocks_are_two_smaller_problems_weighted_by_their_sizes() -> None:
    x, y = random_pairs(6)
    hard, soft = [1, 4], [0, 2, 3, 5]
    whole = run(objective({*soft}, 6, scope="block"), x, y).total
    alone = run(objective({0, 1, 2, 3}, 4), x[soft], y[soft]).total
    clip = run(build(ClipSettings(temperature=0.5)), x[hard], y[hard]).total
    assert whole == pytest.approx((4 * alone + 2 * clip) / 6, abs=1e-12)


def test_the_teacher_is_a_moving_average_unless_the_student_teaches_itself() -> None:
    student = torch.nn.Linear(2, 2)
    assert isinstance(PsdSettings().build_teacher(student, build(PsdSettings())._task), EmaTeacher)
    alone = PsdSettings(teacher={"name": "self"})
    assert isinstance(alone.build_teacher(student, build(alone)._task), NoTeacher)
    assert alone.swapped and not PsdSettings().swapped


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("soft_fraction", 1.0),
        ("soft_fraction", -0.1),
        ("temperature", 0.0),
        ("sharpening", 0.0),
        ("schedule", "step"),
        ("scope", "row"),
    ],
)
def test_a_mistake_in_the_settings_is_named(key: str, value: object) -> None:
    """A share of 1 would let the constant embedding teach itself."""
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        PsdSettings(**{key: value})


def test_a_teacher_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match=r"(?m)^teacher\n.*'oracle'"):
        PsdSettings(teacher={"name": "oracle"})
