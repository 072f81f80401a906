"""CLIP-PING against worked numbers and plain loops: which neighbours, and the contrast with them."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.features.frozen_encoders import nearest
from tests.training.objectives.reference import X, Y, assert_near, build, clip_loss, ids, random_pairs, unit
from training.objectives.base import Embeddings, Loss
from training.objectives.clip_ping import ClipPing, ClipPingSettings, guidance

IMAGE_FEATURES = unit([[1, 0], [3, 1], [0, 1], [1, 3], [3, 2]])
TEXT_FEATURES = unit([[1, 0, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1], [0, 1, 3]])
BATCH, NEAR_IMAGE, NEAR_TEXT = [0, 2, 4], [1, 3, 1], [3, 4, 2]
P_IMAGE, P_TEXT = unit([[2, 1], [1, 2], [1, 1]]), unit([[1, 0, 1], [0, 1, 0], [1, 1, 1]])
HALF = {"temperature": 0.5, "neighbour_temperature": 0.5}


def near(features: Tensor) -> list[int]:
    keys, everybody = features.float().numpy(), np.arange(len(features))
    return nearest(keys, keys, everybody, everybody).tolist()


def g(rows: Tensor, features: Tensor, names: list[int], temperature: float = 0.5) -> float:
    return float(guidance(rows, features, torch.tensor(names), torch.tensor(1 / temperature, dtype=torch.float64)))


def test_neighbours_among_the_stored_features() -> None:
    assert near(IMAGE_FEATURES) == [1, 4, 3, 2, 1]
    assert near(TEXT_FEATURES) == [3, 2, 4, 0, 2]


@pytest.mark.parametrize(
    ("rows", "features", "names", "plain", "masked"),
    [
        (P_IMAGE, IMAGE_FEATURES, NEAR_IMAGE, 0.935110, 0.624647),
        (P_TEXT, TEXT_FEATURES, NEAR_TEXT, 1.019043, 1.019043),
        (P_IMAGE, IMAGE_FEATURES, NEAR_TEXT, 1.277079, 1.277079),
        (P_TEXT, TEXT_FEATURES, NEAR_IMAGE, 2.104477, 1.963162),
    ],
)
def test_guidance_by_neighbours(rows: Tensor, features: Tensor, names: list[int], plain: float, masked: float) -> None:
    assert_near(torch.tensor(g(rows, features[names], names)), masked)
    assert_near(torch.tensor(g(rows, features[names], [7, 8, 9])), plain)


def naive(rows: list[list[float]], features: list[list[float]], names: list[int], temperature: float) -> float:
    """Row by row, both ways, over rows that have a neighbour."""
    there = [i for i, name in enumerate(names) if name >= 0]
    total = 0.0
    for i in there:
        others = [i, *(j for j in there if names[j] != names[i])]
        for one, other in ((rows, features), (features, rows)):
            logits = [sum(p * q for p, q in zip(one[i], other[j], strict=True)) / temperature for j in others]
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[0]
    return total / (2 * len(there))


@pytest.mark.parametrize("names", [[0, 1, 2, 3, 4, 5], [3, 3, 1, 3, 0, 1], [3, -1, 1, 3, -1, 1]])
def test_against_plain_loops(names: list[int]) -> None:
    """With the same neighbour several times, and rows without one."""
    rows, features = random_pairs(6)
    assert g(rows, features, names, 0.2) == pytest.approx(naive(rows.tolist(), features.tolist(), names, 0.2), abs=1e-10)


def test_one_neighbour_for_all_leaves_nothing_to_tell_apart() -> None:
    rows, features = random_pairs(6)
    assert g(rows, features[:1].expand(6, -1), [2] * 6) == pytest.approx(0.0, abs=1e-12)
    assert g(rows, features, [-1] * 6) == 0.0


def ping(settings: ClipPingSettings, x: Tensor, y: Tensor) -> tuple[Loss, ClipPing]:
    """Of the batch above, with heads that give P_IMAGE and P_TEXT of projections that are axes."""
    objective = build(settings, embed_dim=3, frozen_widths=(2, 3))
    objective.neighbour_scale.log.data.fill_(-math.log(settings.neighbour_temperature))
    for name, weight in (("image_head", P_IMAGE), ("text_head", P_TEXT), ("image_cross", P_TEXT), ("text_cross", P_IMAGE)):
        if hasattr(objective, name):
            getattr(objective, name).weight.data = 3 * weight.T.contiguous()
            getattr(objective, name).bias.data.zero_()
    every = [BATCH, NEAR_IMAGE, NEAR_TEXT]
    batch = ids(3) | {
        "neighbour_ids": torch.tensor(every).T,
        "frozen_image_features": torch.stack([IMAGE_FEATURES[i] for i in every], dim=1),
        "frozen_text_features": torch.stack([TEXT_FEATURES[i] for i in every], dim=1),
    }
    axes = torch.eye(3, dtype=torch.float64)
    return objective(Embeddings(x, y, axes, axes), batch), objective  # type: ignore[arg-type]


def test_the_sum_of_all() -> None:
    found, _ = ping(ClipPingSettings(**HALF), X, Y)
    assert_near(found.total, 3.298149)
    assert_near(found.metrics["nearest"], (0.624647 + 1.019043) / 2)
    assert_near(found.metrics["cross_nearest"], (1.277079 + 1.963162) / 2)


def test_weights_and_the_other_reading_of_cross() -> None:
    clip = clip_loss(X.tolist(), Y.tolist(), 2.0, [0, 1, 2], [0, 1, 2])
    assert_near(ping(ClipPingSettings(**HALF, nearest=0, cross_nearest=0), X, Y)[0].total, clip)
    own = (
        naive(P_IMAGE.tolist(), IMAGE_FEATURES[BATCH].tolist(), BATCH, 0.5)
        + naive(P_TEXT.tolist(), TEXT_FEATURES[BATCH].tolist(), BATCH, 0.5)
    ) / 2
    assert_near(ping(ClipPingSettings(**HALF, nearest=0, cross_nearest=0, own_features=2), X, Y)[0].total, clip + 2 * own, 1e-10)
    crossed = ClipPingSettings(**HALF, nearest=0, cross_nearest=3, cross="other_modality")
    texts = naive(P_TEXT.tolist(), TEXT_FEATURES[NEAR_IMAGE].tolist(), NEAR_IMAGE, 0.5)
    images = naive(P_IMAGE.tolist(), IMAGE_FEATURES[NEAR_TEXT].tolist(), NEAR_TEXT, 0.5)
    assert_near(ping(crossed, X, Y)[0].total, clip + 3 * (texts + images) / 2, 1e-10)


def test_both_temperatures_stay_within_bounds() -> None:
    found, objective = ping(ClipPingSettings(**HALF), X, Y)
    objective.neighbour_scale.log.data.fill_(9.0)
    objective.scale.log.data.fill_(-1.0)
    objective.update(ids(3), found)
    assert float(objective.neighbour_scale.log.detach()) == pytest.approx(math.log(100))
    assert float(objective.scale.log.detach()) == 0.0
