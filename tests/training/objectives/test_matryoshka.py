"""Matryoshka: CLIP on the first entries of projections, normalised anew."""

import math

import pytest
import torch

from pipelines.program.errors import UserError
from tests.training.objectives.reference import REPEATED, Rows, assert_near, build, clip_loss, ids, slopes
from training.objectives.base import Embeddings
from training.objectives.matryoshka import MatryoshkaSettings


def cut(rows: Rows, width: int) -> Rows:
    """The first entries of every row, at length 1."""
    return [[value / math.sqrt(sum(v * v for v in row[:width])) for value in row[:width]] for row in rows]


def naive(x: Rows, y: Rows, widths: list[int]) -> float:
    return sum(clip_loss(cut(x, width), cut(y, width), 5.0, *REPEATED) for width in widths) / len(widths)


@pytest.mark.parametrize("widths", [(1, 2), (3, 5), ()])
def test_value_and_gradient_against_plain_loops(widths: tuple[int, ...]) -> None:
    """Of projections of any length; the whole width is always one."""
    x, y = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    one, other = x.clone().requires_grad_(), y.clone().requires_grad_()
    unit = [torch.nn.functional.normalize(rows) for rows in (one, other)]
    found = build(MatryoshkaSettings(temperature=0.2, widths=widths))(Embeddings(*unit, one, other), ids(*REPEATED))
    found.total.backward()
    every = sorted({*widths, 5})
    assert_near(found.total, naive(x.tolist(), y.tolist(), every), 1e-12)
    assert [name for name in found.metrics if name.startswith("width")] == [f"width_{width}" for width in every]
    dx, dy = slopes(lambda x, y: naive(x, y, every), x, y)
    assert one.grad is not None and other.grad is not None
    assert_near(one.grad, dx, 1e-7)
    assert_near(other.grad, dy, 1e-7)


def test_widths_halve_by_default_and_must_fit() -> None:
    assert build(MatryoshkaSettings(), embed_dim=256)._widths == [16, 32, 64, 128, 256]
    assert build(MatryoshkaSettings(), embed_dim=24)._widths == [12, 24]
    for wrong in (0, 6):
        with pytest.raises(UserError) as caught:
            build(MatryoshkaSettings(widths=(2, wrong)))
        assert caught.value.key == "objective.widths" and str(wrong) in caught.value.problem
