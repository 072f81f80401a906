"""MCD and masked words against worked numbers, plain loops and torch's cross entropy."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.training.objectives.reference import A, M, X, Y, assert_near, build, ids, random_pairs, task, unit
from training.objectives.base import Embeddings, Loss
from training.objectives.mcd import Mcd, McdSettings
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.log_ratio import misalignments
from training.objectives.ops.mlm import masked_loss
from training.teacher import EmaTeacher, NoTeacher

N = unit([[2, 1, 1], [0, 3, 1], [1, 0, 3]])  # the teacher's strong views
SETTINGS = McdSettings(temperature=0.5, mlm=0)


def mcd(
    x: Tensor, y: Tensor, a: Tensor, taught: tuple[Tensor, Tensor], step: int = 0, settings: McdSettings = SETTINGS, **batch: Any
) -> tuple[Loss, Mcd]:
    """At a step of a run of four."""
    objective = build(settings, total_steps=4)
    objective.step.fill_(step)
    columns: Any = (ids(len(x)) | batch) | {"teacher_image": taught[0], "teacher_strong": taught[1][:, None]}
    strong = (2 * a)[:, None]
    return objective(Embeddings(x, y, x, y, strong_projection=strong), columns), objective


def parts(x: Tensor, y: Tensor, a: Tensor, taught: tuple[Tensor, Tensor], distance: Any = "square") -> list[float]:
    """L_pos, L_neg and L_noisy."""
    candidates = find_candidates(Embeddings(x, y, x, y), ids(len(x)), ids=False)
    return [float(part.detach()) for part in misalignments(y, [x, a, *taught], candidates, distance)]


def naive(x: Tensor, y: Tensor, a: Tensor, taught: tuple[Tensor, Tensor], image_id: list[int]) -> list[float]:
    """The three means of squares, pair by pair."""

    def log_distance(u: Tensor, v: Tensor) -> float:
        return 0.5 * math.log(max(2 - 2 * float(u @ v), 0.0) + 1e-6)

    def ratio(i: int, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> float:
        student = log_distance(y[i], one[0]) - log_distance(y[i], other[0])
        return (student - (log_distance(y[i], one[1]) - log_distance(y[i], other[1]))) ** 2

    rows = range(len(x))
    pairs = [(i, j) for i in rows for j in rows if image_id[i] != image_id[j]]
    plain, strong = list(zip(x, taught[0], strict=True)), list(zip(a, taught[1], strict=True))
    positive = [ratio(i, plain[i], strong[i]) for i in rows]
    negative = [ratio(i, plain[j], strong[j]) for i, j in pairs]
    noisy = [ratio(i, plain[i], plain[j]) for i, j in pairs]
    return [sum(values) / len(values) for values in (positive, negative, noisy)]


def random_views(rows: int = 6) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    x, y = random_pairs(rows)
    return x, y, random_pairs(rows, seed=1)[0], random_pairs(rows, seed=2)


def test_two_distances() -> None:
    """One caption, an image at 0.5 and its view at 1; the teacher sees them at 0.8 and 1."""

    def at(distance: float) -> Tensor:
        cosine = 1 - distance**2 / 2
        return torch.tensor([[cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)

    positive, negative, noisy = parts(at(0.5), at(0.0), at(1.0), (at(0.8), at(1.0)))
    assert positive == pytest.approx(0.220903, abs=1e-5)  # the floor of 1e-6 is in it
    assert negative == noisy == 0.0, "one pair has no others"


H = {"square": lambda z: z * z, "absolute": abs, "huber": lambda z: z * z / 2 if abs(z) < 1 else abs(z) - 0.5}


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ("square", (0.137954, 0.173587, 0.415024)),
        ("absolute", (0.339179, 0.361775, 0.528692)),
        ("huber", (0.068977, 0.086794, 0.207399)),
    ],
)
def test_three_samples(distance: str, expected: tuple[float, ...]) -> None:
    assert parts(X, Y, A, (M, N), distance=distance) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.446417), (2, 1.403159), (4, 1.359900)])
def test_the_total_of_three_samples(step: int, expected: float) -> None:
    """The worked totals, less their 0.2 x 1.5 of masked words."""
    assert_near(mcd(X, Y, A, (M, N), step=step)[0].total, expected, 2e-6)


def test_the_slope_of_the_positive_part() -> None:
    a = A.clone().requires_grad_()
    candidates = find_candidates(Embeddings(X, Y, X, Y), ids(3), ids=False)
    misalignments(Y, [X, a, M, N], candidates, "square")[0].backward()
    assert_near(a.grad, [[0.301746, 0, 0.301746], [0, -0.230518, 0], [0.696701, 0.696701, 0.696701]], 2e-5)


@pytest.mark.parametrize("distance", H)
def test_against_plain_loops(distance: str) -> None:
    x, y, a, taught = random_views()
    found = parts(x, y, a, taught, distance=distance)
    if distance == "square":
        assert found == pytest.approx(naive(x, y, a, taught, list(range(6))), abs=1e-9)

    def log_distance(u: Tensor, v: Tensor) -> float:
        return 0.5 * math.log(2 - 2 * float(u @ v) + 1e-6)

    differences = [
        log_distance(y[i], x[i]) - log_distance(y[i], a[i]) - log_distance(y[i], taught[0][i]) + log_distance(y[i], taught[1][i])
        for i in range(6)
    ]
    assert found[0] == pytest.approx(sum(map(H[distance], differences)) / 6, abs=1e-9)


def test_the_total_is_the_sum_of_its_parts() -> None:
    """At half of the run l is 0.5: positives with a strong view weigh half."""
    x, y, a, taught = random_views()
    found, _ = mcd(x, y, a, taught, step=2)
    assert_near(found.metrics["distil"], sum(naive(x, y, a, taught, list(range(6)))), 1e-9)
    assert_near(found.total, float(found.metrics["contrast"]) + 0.5 * float(found.metrics["distil"]), 1e-12)
    first, _ = mcd(x, y, a, taught, step=0)
    assert_near(first.total, float(first.metrics["contrast"]), 1e-12)


@pytest.mark.parametrize(("step", "contrast"), [(0, 1.446417), (2, 1.039876), (4, 0.633335)])
def test_strong_views_weigh_less_and_less_in_the_contrast(step: int, contrast: float) -> None:
    found, _ = mcd(X, Y, A, (M, N), step=step)
    assert_near(found.metrics["contrast"], contrast)


@pytest.mark.parametrize(
    "weights", [(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0), (0.5, 2.0, 3.0)], ids=["row c", "row d", "row e", "any"]
)
@pytest.mark.parametrize("progress", [None, 0.3, 1.0])
def test_the_three_terms_have_weights_and_progress_may_stand_still(weights: tuple[float, ...], progress: float | None) -> None:
    """Rows c, d and e of the paper's ablation, at half of the run."""
    x, y, a, taught = random_views()
    names = dict(zip(("positive", "negative", "noisy"), weights, strict=True))
    settings = SETTINGS.model_copy(update=names | {"progress": progress})
    found, _ = mcd(x, y, a, taught, step=2, settings=settings)
    distil = sum(w * part for w, part in zip(weights, naive(x, y, a, taught, list(range(6))), strict=True))
    grown = 0.5 if progress is None else progress
    positives = float(found.metrics["contrast"])
    assert_near(found.total, positives + grown * distil, 1e-9)
    # Positives with a strong view weigh 1 - l: at 0.3, as much as 30 % of the way from none to all of the discount.
    ends = [float(mcd(x, y, a, taught, step=step)[0].metrics["contrast"]) for step in (0, 4)]
    assert positives == pytest.approx((1 - grown) * ends[0] + grown * ends[1], abs=1e-9)


@pytest.mark.parametrize("keys", [{"progress": 0}, {"positive": 0, "negative": 0, "noisy": 0}])
def test_without_distillation_it_is_mp_nce_and_runs_no_teacher(keys: dict[str, float]) -> None:
    """Row a of the ablation: the worked value of MP-NCE over X, Y and A, and a batch without a teacher's columns."""
    settings = McdSettings(temperature=0.5, mlm=0, **keys)
    assert isinstance(settings.build_teacher(nn.Linear(2, 2), task()), NoTeacher)
    strong = (2 * A)[:, None]
    found = build(settings, total_steps=4)(Embeddings(X, Y, X, Y, strong_projection=strong), ids(3))
    assert_near(found.total, 1.446417, 2e-6)
    assert isinstance(McdSettings().build_teacher(nn.Linear(2, 2), task()), EmaTeacher)


def test_a_teacher_that_sees_the_same_leaves_nothing_to_learn() -> None:
    x, y, a, _ = random_views()
    x, y, a = (part.requires_grad_() for part in (x, y, a))
    found, _ = mcd(x, y, a, (x.detach(), a.detach()), step=4)
    assert float(found.metrics["distil"]) == pytest.approx(0.0, abs=1e-12)
    assert parts(x, y, x, (x.detach(), x.detach()))[:2] == [0.0, 0.0]


def test_no_gradient_passes_through_the_teacher() -> None:
    """With the student's distances held, captions would be moved by the teacher's alone."""
    x, y, a, taught = random_views()
    y.requires_grad_()
    candidates = find_candidates(Embeddings(x, y, x, y), ids(6), ids=False)
    torch.stack(misalignments(y, [x, a, *taught], candidates, "square")).sum().backward()
    step = 1e-6
    row, column = 2, 3

    def value(shift: float) -> float:
        moved = y.detach().clone()
        moved[row, column] += shift
        student = [0.5 * ((2 - 2 * moved @ part.T).clamp(min=0) + 1e-6).log() for part in (x, a)]
        teacher = [0.5 * ((2 - 2 * y.detach() @ part.T).clamp(min=0) + 1e-6).log() for part in taught]
        shift_of = (student[0] - student[1]) - (teacher[0] - teacher[1])
        own = (student[0].diagonal()[:, None] - student[0]) - (teacher[0].diagonal()[:, None] - teacher[0])
        others = ~torch.eye(6, dtype=torch.bool)
        return float(shift_of.diagonal().square().mean() + shift_of[others].square().mean() + own[others].square().mean())

    assert y.grad is not None
    assert float(y.grad[row, column]) == pytest.approx((value(step) - value(-step)) / (2 * step), abs=1e-5)


def test_the_same_image_twice_is_no_other_image() -> None:
    x, y, a, taught = random_views()
    image_id = [0, 0, 2, 3, 4, 3]
    found, _ = mcd(x, y, a, taught, step=4, image_id=torch.tensor(image_id))
    assert_near(found.metrics["distil"], sum(naive(x, y, a, taught, image_id)), 1e-9)


def test_steps_are_counted() -> None:
    found, objective = mcd(*random_views(), step=1)
    objective.update(ids(6), found)
    assert int(objective.step) == 2


def test_masked_words_against_torch() -> None:
    random = torch.Generator().manual_seed(0)
    head, states = nn.Linear(5, 9).double(), torch.randn(4, 6, 5, generator=random, dtype=torch.float64)
    labels = torch.randint(9, (4, 6), generator=random).masked_fill(torch.rand(4, 6, generator=random) < 0.6, -100)
    assert 0 < int((labels >= 0).sum()) < 24
    found = masked_loss(head, states, labels)
    assert_near(found, float(F.cross_entropy(head(states).flatten(0, 1), labels.flatten(), ignore_index=-100).detach()), 1e-12)


def test_no_hidden_word_is_no_loss_and_still_a_gradient() -> None:
    head, states = nn.Linear(5, 9), torch.randn(4, 6, 5).requires_grad_()
    found = masked_loss(head, states, torch.full((4, 6), -100))
    found.backward()
    assert float(found.detach()) == 0.0
    assert states.grad is not None and not states.grad.any()
    assert head.weight.grad is not None and not head.weight.grad.any()


def test_hidden_words_add_to_the_total() -> None:
    x, y, a, taught = random_views()
    settings = SETTINGS.model_copy(update={"mlm": 0.2})
    objective = build(settings, total_steps=4, states_width=5, vocabulary_size=9)
    states = torch.randn(6, 3, 5, dtype=torch.float64)
    labels = torch.tensor([[1, -100, -100]] * 6)
    strong = a[:, None]
    batch: Any = ids(6) | {"teacher_image": taught[0], "teacher_strong": taught[1][:, None], "masked_labels": labels}
    found = objective(Embeddings(x, y, x, y, strong_projection=strong, text_states=states), batch)
    without, _ = mcd(x, y, a, taught)
    words = float(masked_loss(objective.words, states, labels).detach())
    assert_near(found.total - without.total, 0.2 * words, 1e-10)
    assert settings.model_copy(update={"mlm": 0.0}).needs.masked == "no" and settings.needs.masked == "apart"
