"""MP-NCE and UniCLIP against worked numbers and plain loops."""

import math

import pytest
import torch
from torch import Tensor

from tests.training.objectives.reference import PRINTED, A, X, Y, assert_near, build, ids, random_pairs, rotation
from training.objectives.base import Embeddings, Loss
from training.objectives.ops.contrast import find_candidates
from training.objectives.ops.mp_nce import mp_nce
from training.objectives.uniclip import UniClipSettings

# Kinds of rows X, Y, A: image, text, image; of each pair, which table entry it is.
PAIRS = [["II", "IT", "II"], ["IT", "TT", "IT"], ["II", "IT", "II"]]
TABLES = ({"II": 0.5, "IT": 0.4, "TT": 0.6}, {"II": 0.1, "IT": 0.0, "TT": -0.1}, {"II": 0.5, "IT": 2.0, "TT": 1.0})
EVEN = ({"II": 0.5, "IT": 0.5, "TT": 0.5}, dict.fromkeys(TABLES[0], 0.0), dict.fromkeys(TABLES[0], 1.0))


def table(values: dict[str, float], pairs: list[list[str]] = PAIRS) -> Tensor:
    return torch.tensor([[values[pair] for pair in row] for row in pairs], dtype=torch.float64)


def of(
    rows: list[Tensor],
    tables: tuple[dict[str, float], ...] = EVEN,
    self_pair: bool = True,
    pairs: list[list[str]] = PAIRS,
    image_id: list[int] | None = None,
) -> Tensor:
    temperature, offset, weight = (table(values, pairs) for values in tables)
    x, y = rows[0], rows[1]
    batch = ids(len(x)) if image_id is None else ids(image_id, list(range(len(x))))
    candidates = find_candidates(Embeddings(x, y, x, y), batch, ids=image_id is not None)
    return mp_nce(rows, 1 / temperature, offset, weight, candidates, self_pair)


def naive(rows: list[Tensor], tables: tuple[dict[str, float], ...], self_pair: bool, image_id: list[int]) -> float:
    """Anchor by anchor, positive by positive."""
    temperature, offset, weight = tables
    everything = [(kind, sample, row) for kind, part in enumerate(rows) for sample, row in enumerate(part)]

    def similarity(one: tuple[int, int, Tensor], other: tuple[int, int, Tensor]) -> float:
        pair = PAIRS[one[0]][other[0]]
        return (float(one[2] @ other[2]) - offset[pair]) / temperature[pair]

    total = 0.0
    for anchor in everything:
        denominator = sum(math.exp(similarity(anchor, q)) for q in everything if image_id[q[1]] != image_id[anchor[1]])
        positives = [p for p in everything if p[1] == anchor[1] and (self_pair or p[0] != anchor[0])]
        own = [(weight[PAIRS[anchor[0]][p[0]]], math.exp(similarity(anchor, p))) for p in positives]
        terms = [-w * math.log(value / (value + denominator)) for w, value in own]
        total += sum(terms) / len(terms)
    return total / len(everything)


@pytest.mark.parametrize(("self_pair", "expected"), [(True, 1.446417), (False, 1.541206)])
def test_three_samples_of_two_views_and_a_caption(self_pair: bool, expected: float) -> None:
    assert_near(of([X, Y, A], self_pair=self_pair).mean(), expected)


def test_anchor_by_anchor() -> None:
    expected = [[1.193768, 1.611334, 1.218251], [1.677364, 1.139860, 1.745174], [1.480255, 1.625746, 1.326001]]
    assert_near(of([X, Y, A]), expected)


@pytest.mark.parametrize(("self_pair", "expected"), [(True, 1.098904), (False, 1.276584)])
def test_a_view_and_a_caption(self_pair: bool, expected: float) -> None:
    assert_near(of([X, Y], self_pair=self_pair, pairs=[["II", "IT"], ["IT", "TT"]]).mean(), expected)


def test_temperatures_offsets_and_weights_by_what_is_compared() -> None:
    even = (*TABLES[:2], EVEN[2])
    assert_near(of([X, Y, A], even).mean(), 1.467147)
    assert_near(of([X, Y, A], even, self_pair=False).mean(), 1.468283)
    assert_near(of([X, Y, A], TABLES).mean(), 1.774796)


def test_equal_rows_are_told_apart_by_chance() -> None:
    """One of seven: itself and six negatives, whichever positive it is."""
    same = torch.ones(3, 4, dtype=torch.float64) / 2
    assert_near(of([same, same, same]), [[math.log(7)] * 3] * 3)


@pytest.mark.parametrize("self_pair", [True, False])
@pytest.mark.parametrize("image_id", [[0, 1, 2, 3, 4, 5], [0, 0, 2, 3, 4, 3]])
def test_against_plain_loops(image_id: list[int], self_pair: bool) -> None:
    """With an image in two rows: neither positives nor negatives."""
    rows = [*random_pairs(6), random_pairs(6, seed=3)[0]]
    assert_near(of(rows, TABLES, self_pair, image_id=image_id).mean(), naive(rows, TABLES, self_pair, image_id), 1e-10)


def test_positives_do_not_compete() -> None:
    """An image and its caption twice: each pair is held against all negatives, and never against the other positive."""
    x, y = random_pairs(5)
    found = of([x, y, y], self_pair=False, pairs=[["II", "IT", "IT"], ["IT", "TT", "TT"], ["IT", "TT", "TT"]])[0]
    cosines, images = 2 * x @ y.T, 2 * x @ x.T
    for i in range(5):
        others = [j for j in range(5) if j != i]
        negatives = torch.cat([cosines[i][others], cosines[i][others], images[i][others]])
        assert_near(found[i], -cosines[i, i] + torch.cat([cosines[i, i][None], negatives]).logsumexp(0), 1e-10)


def test_permuted_and_rotated_samples_are_the_same() -> None:
    rows, order, turn = [*random_pairs(6), random_pairs(6, seed=3)[0]], torch.tensor([3, 1, 5, 0, 4, 2]), rotation()
    assert_near(of([part[order] @ turn for part in rows], TABLES), of(rows, TABLES)[:, order], 1e-10)


def forward(x: Tensor, y: Tensor, a: Tensor, **settings: float) -> tuple[Loss, torch.nn.Module]:
    objective = build(UniClipSettings(**settings))
    temperatures = [objective._settings.temperature, objective._settings.image_temperature, objective._settings.text_temperature]
    for scale, temperature in zip(objective.scales, temperatures, strict=True):
        scale.log.data.fill_(-math.log(temperature))
    strong = (3 * a)[:, None]
    return objective(Embeddings(x, y, x, y, strong_projection=strong), ids(len(x))), objective


def test_the_objective_compares_images_texts_and_views_at_temperatures_of_their_own() -> None:
    """Worked numbers by its keys; views come as projections and are compared as unit rows."""
    found, _ = forward(X, Y, A, temperature=0.5, image_temperature=0.5, text_temperature=0.5)
    assert_near(found.total, 1.446417)
    found, objective = forward(X, Y, A, temperature=0.4, image_temperature=0.5, text_temperature=0.6)
    objective.offsets.data.copy_(torch.tensor([0.0, 0.1, -0.1]))
    strong = A[:, None]
    assert_near(objective(Embeddings(X, Y, X, Y, strong_projection=strong), ids(3)).total, 1.467147)
    assert float(found.metrics["temperature"]) == pytest.approx(0.4, abs=PRINTED)


def test_temperatures_stay_within_bounds() -> None:
    found, objective = forward(X, Y, A)
    for scale, value in zip(objective.scales, (-1.0, 9.0, 3.0), strict=True):
        scale.log.data.fill_(value)
    objective.update(ids(3), found)
    assert [float(scale.log) for scale in objective.scales] == pytest.approx([0.0, math.log(100), 3.0])
