"""Several captions at once: the mean of CLIP's losses, each with the captions of its place."""

import pytest
import torch

from tests.training.objectives.reference import REPEATED, assert_near, build, clip_loss, ids, random_pairs
from training.objectives.base import Embeddings
from training.objectives.captions import CaptionsSettings

OTHERS = [[7, 8, 7, 2, 9, 5], [0, 1, 3, 2, 4, 4]]  # ids of the second and third captions


@pytest.mark.parametrize("mask", [True, False])
def test_value_against_clip_of_every_place(mask: bool) -> None:
    """In a place, rows with the same image or the same caption there are no negatives of one another."""
    (x, y), (second, third) = random_pairs(6), random_pairs(6, seed=1)
    objective = build(CaptionsSettings(temperature=0.2, captions=3, mask_false_negatives=mask))
    rows = Embeddings(x, y, x, y, more_projection=torch.stack([2 * second, 3 * third], dim=1))
    found = objective(rows, {**ids(*REPEATED), "more_id": torch.tensor(OTHERS).T} if mask else {})
    each = [
        clip_loss(x.tolist(), texts.tolist(), 5.0, *((REPEATED[0], captions) if mask else ([*range(6)], [*range(6)])))
        for texts, captions in ((y, REPEATED[1]), (second, OTHERS[0]), (third, OTHERS[1]))
    ]
    assert_near(found.total, sum(each) / 3, 1e-12)
    assert_near(found.metrics["first"], each[0], 1e-12)
    assert_near(found.metrics["others"], sum(each[1:]) / 2, 1e-12)


def test_all_captions_teach() -> None:
    (x, y), (second, third) = random_pairs(6), random_pairs(6, seed=1)
    more = torch.stack([second, third], dim=1).requires_grad_()
    objective = build(CaptionsSettings(temperature=0.2, captions=3))
    objective(Embeddings(x, y, x, y, more_projection=more), {**ids(6), "more_id": torch.tensor(OTHERS).T}).total.backward()
    assert more.grad is not None and bool((more.grad.abs().sum(-1) > 0).all())
