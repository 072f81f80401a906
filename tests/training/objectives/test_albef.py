"""ALBEF: worked reference values, plain loops over a run whose queue wraps round, and targets that grow soft in an epoch."""

import math
from collections import deque
from typing import Any

import pytest
import torch

from tests.training.objectives.reference import (
    DISTINCT,
    PRINTED,
    M,
    X,
    Y,
    assert_near,
    batches_of_a_run,
    build,
    clip_loss,
    cross_entropy,
    dot,
    ids,
    random_pairs,
    run,
    slope,
    slopes,
    softmax,
    step,
    task,
    taught,
)
from training.objectives.albef import Albef, AlbefSettings
from training.objectives.ops.blocks import Candidates
from training.objectives.ops.losses import soft_cross_entropy
from training.teacher import EmaTeacher


def objective(temperature: float = 0.5, run: dict[str, int] | None = None, **keys: Any) -> Albef:
    return build(AlbefSettings(temperature=temperature, **keys), **run or {})


@pytest.mark.parametrize(("share", "total"), [(0.0, 0.856183), (0.4, 0.923455)])
def test_reference_losses(share: float, total: float) -> None:
    """The teacher's images are M, its texts Y, and the candidates the student's own."""
    scale, shares = torch.tensor(2.0, dtype=torch.float64), torch.full((3,), share, dtype=torch.float64)
    candidates = Candidates(torch.arange(3))
    image = soft_cross_entropy((X, Y, scale), (M, Y, scale), shares, candidates, alike_is_own=True)
    text = soft_cross_entropy((Y, X, scale), (Y, M, scale), shares, candidates, alike_is_own=True)
    assert float((image + text).mean() / 2) == pytest.approx(total, abs=PRINTED)


Entry = tuple[list[float], list[float], int, int]  # the teacher's image and text, image and caption
Side = tuple[list[list[float]], list[list[float]]]  # candidates, targets


def naive_targets(batch: list[Entry], queue: list[Entry], scale: float, share: float) -> tuple[Side, Side]:
    """For images and for texts: candidates, and the targets of every row of the batch."""
    found = []
    for side in (0, 1):
        entries = batch + queue
        candidates, targets = [entry[1 - side] for entry in entries], []
        for i, row in enumerate(batch):
            soft = softmax([scale * dot(row[side], candidate) for candidate in candidates])
            alike = [j == i or row[2] == entry[2] or row[3] == entry[3] for j, entry in enumerate(entries)]
            targets.append([share * s + (1 - share) * a / sum(alike) for s, a in zip(soft, alike, strict=True)])
        found.append((candidates, targets))
    return found[0], found[1]


def naive(rows: list[list[float]], scale: float, side: Side) -> float:
    candidates, targets = side
    total = 0.0
    for row, target in zip(rows, targets, strict=True):
        total += cross_entropy(target, [scale * dot(row, candidate) for candidate in candidates])
    return total / len(rows)


@pytest.mark.parametrize("queue", [0, 4, 8, 65536])
def test_a_run_against_plain_loops(queue: int) -> None:
    """Six pairs a step: a queue they do not fit in, one that wraps round, and one as long as the data, which has ten images.

    Images and captions are met again, in their own batch and in the queue; three steps make an epoch.
    """
    albef = objective(0.25, {"steps_per_epoch": 3}, queue=queue, teacher_weight=0.6)
    past: deque[Entry] = deque(maxlen=min(queue, 10))
    for at, (pair_ids, (x, y)) in enumerate(batches_of_a_run(7)):
        others = random_pairs(6, seed=100 + at)
        share = 0.6 * min(1.0, at / 3)
        found = step(albef, x, y, taught(ids(*pair_ids), *others))
        batch = list(zip(*(rows.tolist() for rows in others), *pair_ids, strict=True))
        image, text = naive_targets(batch, list(past), 4.0, share)

        def value(x: Any, y: Any, scale: float = 4.0, image: Side = image, text: Side = text) -> float:
            return (naive(x, scale, image) + naive(y, scale, text)) / 2

        assert found.total == pytest.approx(value(x.tolist(), y.tolist()), abs=1e-12)
        dx, dy = slopes(value, x, y)
        assert_near(found.dx, dx, 1e-7)
        assert_near(found.dy, dy, 1e-7)
        by_log = slope(lambda log, v=value, x=x, y=y: v(x.tolist(), y.tolist(), math.exp(log)), math.log(4))
        assert float(albef.scale.log.grad) == pytest.approx(by_log, abs=1e-8)
        assert float(found.loss.metrics["soft_share"]) == pytest.approx(share, abs=1e-12)
        assert int(found.loss.metrics["queue"]) == len(past)
        past.extend(batch)
        held = [
            (*entry, *pair) for *entry, pair in zip(albef.images.tolist(), albef.texts.tolist(), albef.ids.tolist(), strict=True)
        ]
        assert sorted(held[: len(past)]) == sorted(past)


def test_the_share_grows_over_the_first_epoch() -> None:
    albef, (x, y) = objective(run={"steps_per_epoch": 4}), random_pairs(3)
    batch = taught(ids(3), *random_pairs(3, seed=1))
    shares = [float(step(albef, x, y, batch).loss.metrics["soft_share"]) for _ in range(7)]
    assert shares == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_a_teacher_that_is_the_student_gives_clip_at_the_first_step_but_no_gradient_through_candidates() -> None:
    x, y = random_pairs(6)
    found = run(objective(0.2), x, y, taught(ids(6), x, y))
    assert found.total == pytest.approx(clip_loss(x.tolist(), y.tolist(), 5.0, *DISTINCT), abs=1e-12)
    frozen = y.tolist()
    dx, _ = slopes(lambda x, _: clip_loss(x, frozen, 5.0, *DISTINCT), x, y)
    assert float((found.dx - dx).abs().max()) > 0.01


def test_a_candidate_in_the_queue_with_the_same_image_shares_the_target() -> None:
    """Its exact double: half of the target each, and as likely as one another."""
    axes = torch.eye(3, dtype=torch.float64)
    albef = objective(0.5, {"embed_dim": 3}, teacher_weight=0.0)
    batch = taught(ids(3), axes, axes)
    alone = step(albef, axes, axes, batch).total
    doubled = run(albef, axes, axes, batch).total
    assert doubled == pytest.approx(alone + math.log(2), abs=1e-12)


def test_a_student_that_agrees_with_nobody_learns_from_the_one_who_is_alike() -> None:
    """A text of the queue pulls an image where their images are one, and pushes it elsewhere."""
    axes, past = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[[3]]
    pulls = []
    for image in (0, 9):
        albef = objective(0.5, {"embed_dim": 4}, teacher_weight=0.0)
        albef.update({}, run(albef, past, past, taught(ids([image], [9]), past, past)).loss)
        found = run(albef, axes[:1], axes[:1], taught(ids([0]), axes[:1], axes[:1]))
        pulls.append(float(found.dx[0, 3]))
    assert pulls[0] < -0.1 and pulls[1] > 0.1


def test_the_queue_is_no_longer_than_the_data_has_images() -> None:
    assert len(objective(queue=65536).ids) == 10
    assert len(objective(queue=7).ids) == 7


def test_the_teacher_is_a_moving_average_with_one_momentum() -> None:
    settings = AlbefSettings()
    teacher = settings.build_teacher(torch.nn.Linear(2, 2), task())
    assert isinstance(teacher, EmaTeacher)
    assert {teacher.momentum(step) for step in (0, 50, 100)} == {0.995}


def test_the_temperature_may_fall_to_a_thousandth() -> None:
    albef, (x, y) = objective(), random_pairs(3)
    albef.scale.log.data.fill_(9.0)
    step(albef, x, y, taught(ids(3), x, y))
    assert float(albef.scale().detach()) == pytest.approx(1000.0)


@pytest.mark.parametrize(
    ("key", "value"), [("temperature", 0.0), ("teacher_weight", 1.5), ("teacher_weight", -0.1), ("queue", -1)]
)
def test_a_mistake_in_the_settings_is_named(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"(?m)^{key}\n"):
        AlbefSettings(**{key: value})
