"""Distillation against plain loops, torch's own divergence, and what must hold where student and teacher agree."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.refusals import refused
from tests.training.objectives.reference import (
    REPEATED,
    assert_near,
    build,
    clip_loss,
    cross_entropy,
    dot,
    ids,
    random_pairs,
    rivals,
    softmax,
)
from training.objectives.base import Embeddings, Loss
from training.objectives.distill import Distill, DistillSettings

OWN = {"temperature": 0.3, "teacher_temperature": 0.2}


def distill(settings: DistillSettings, x: Tensor, y: Tensor, u: Tensor, v: Tensor, pair_ids: Any = None) -> tuple[Loss, Distill]:
    """With heads that hand everything on."""
    objective = build(settings, frozen_widths=(5, 5))
    for head in (objective.image_head, objective.text_head):
        torch.nn.init.eye_(head.weight)
        head.bias.data.zero_()
    batch = ids(len(x)) if pair_ids is None else ids(*pair_ids)
    batch |= {"frozen_image_features": u[:, None], "frozen_text_features": v[:, None]}
    return objective(Embeddings(x, y, 2 * x, 3 * y), batch), objective


def test_against_plain_loops() -> None:
    """With images and captions that come twice: these are left out on both sides."""
    (x, y), (u, v), n = random_pairs(6), random_pairs(6, seed=1), 6
    settings = DistillSettings(**OWN, contrastive=0.5, relation=2.0, feature=3.0, interactive=0.7)
    found, _ = distill(settings, x, y, u, v, REPEATED)
    rows = {name: part.tolist() for name, part in zip("xyuv", (x, y, u, v), strict=True)}
    relation = interactive = feature = 0.0
    for i, others in enumerate(rivals(*REPEATED)):
        columns = [i, *others]
        for one, other, taught, keys in (("x", "y", "u", "v"), ("y", "x", "v", "u")):
            target = softmax([dot(rows[taught][i], rows[keys][j]) / 0.2 for j in columns])
            relation += cross_entropy(target, [dot(rows[one][i], rows[other][j]) / 0.3 for j in columns]) / (2 * n)
            hard = [1.0] + [0.0] * len(others)
            interactive += cross_entropy(hard, [dot(rows[one][i], rows[keys][j]) / 0.3 for j in columns]) / (2 * n)
            feature += sum((p - q) ** 2 for p, q in zip(rows[one][i], rows[taught][i], strict=True)) / n
    for name, expected in (("relation", relation), ("interactive", interactive), ("feature", feature)):
        assert_near(found.metrics[name], expected, 1e-9)
    plain = clip_loss(rows["x"], rows["y"], 1 / 0.3, *REPEATED)
    assert_near(found.total, 0.5 * plain + 2 * relation + 3 * feature + 0.7 * interactive, 1e-9)


def test_the_relation_is_torchs_divergence_and_the_teachers_entropy() -> None:
    (x, y), (u, v) = random_pairs(6), random_pairs(6, seed=1)
    found, _ = distill(DistillSettings(**OWN), x, y, u, v)
    expected = 0.0
    for student, teacher in ((x @ y.T, u @ v.T), (y @ x.T, v @ u.T)):
        target = (teacher / 0.2).softmax(1)
        divergence = F.kl_div((student / 0.3).log_softmax(1), target, reduction="batchmean")
        expected += float(divergence - (target * target.log()).sum(1).mean()) / 2
    assert_near(found.metrics["relation"], expected, 1e-9)


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_it() -> None:
    """At one temperature neither relation nor features pull at it."""
    u, v = random_pairs(6)
    x, y = u.clone().requires_grad_(), v.clone().requires_grad_()
    settings = DistillSettings(temperature=0.3, teacher_temperature=0.3, contrastive=0, interactive=0)
    found, _ = distill(settings, x, y, u, v)
    assert float(found.metrics["feature"]) == pytest.approx(0.0, abs=1e-12)
    found.total.backward()
    assert x.grad is not None and y.grad is not None
    assert float(x.grad.abs().max()) < 1e-9 and float(y.grad.abs().max()) < 1e-9


def test_without_a_teacher_it_is_clip() -> None:
    (x, y), (u, v) = random_pairs(6), random_pairs(6, seed=1)
    found, _ = distill(DistillSettings(**OWN, relation=0, feature=0, interactive=0), x, y, u, v)
    assert_near(found.total, clip_loss(x.tolist(), y.tolist(), 1 / 0.3, list(range(6)), list(range(6))), 1e-9)


def test_the_teachers_length_and_direction_are_what_features_follow() -> None:
    """A step against the gradient brings the student's rows nearer to the teacher's."""
    (x, y), (u, v) = random_pairs(6), random_pairs(6, seed=1)
    x.requires_grad_()
    found, _ = distill(DistillSettings(**OWN, contrastive=0, relation=0, interactive=0), x, y, u, v)
    found.total.backward()
    assert x.grad is not None
    moved = F.normalize(x.detach() - 0.5 * x.grad)
    assert bool(((moved * u).sum(1) > (x.detach() * u).sum(1)).all())
    assert float(found.metrics["feature"]) == pytest.approx(
        sum(2 - 2 * dot(p, q) for p, q in zip([*x.tolist(), *y.tolist()], [*u.tolist(), *v.tolist()], strict=True)) / 6
    )
    assert math.isfinite(float(found.total.detach()))


def test_encoders_of_two_spaces_are_no_teacher() -> None:
    with refused("frozen_encoders", "distill", 1280, 384):
        build(DistillSettings(), frozen_widths=(1280, 384))


def test_without_heads_embeddings_are_compared_as_they_are() -> None:
    (x, y), (u, v) = random_pairs(6), random_pairs(6, seed=1)
    settings = DistillSettings(**OWN, heads=False, contrastive=0, relation=0, interactive=0)
    objective = build(settings, frozen_widths=(5, 5))
    assert {name for name, _ in objective.named_parameters()} == {"scale.log"}
    batch = ids(6) | {"frozen_image_features": u[:, None], "frozen_text_features": v[:, None]}
    found = objective(Embeddings(x, y, 2 * x, 3 * y), batch)
    assert_near(found.metrics["feature"], float(((x - u).square().sum(1) + (y - v).square().sum(1)).mean()), 1e-9)
    with refused("objective.heads", 7, 5, remedy="embed_dim=7"):
        build(settings, frozen_widths=(7, 7))
