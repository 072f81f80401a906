"""A-CLIP-PING against CLIP-PING's worked numbers, and against plain loops that keep the queue in a list."""

import torch

from tests.training.objectives.reference import X, Y, assert_near, build, clip_loss, random_pairs
from tests.training.objectives.test_clip_ping import BATCH, HALF, IMAGE_FEATURES, P_IMAGE, P_TEXT, TEXT_FEATURES, naive
from training.objectives.a_clip_ping import AClipPing, AClipPingSettings
from training.objectives.base import Embeddings

AXES = torch.eye(3, dtype=torch.float64)


def with_heads(settings: AClipPingSettings) -> AClipPing:
    """Heads that give P_IMAGE and P_TEXT of projections that are axes."""
    objective = build(settings, embed_dim=3, frozen_widths=(2, 3))
    objective.neighbour_scale.log.data.copy_(objective.scale.log.data)
    for head, rows in ((objective.image_head, P_IMAGE), (objective.text_head, P_TEXT)):
        head.weight.data = rows.T.contiguous()
        head.bias.data.zero_()
    return objective


def test_with_the_stored_features_in_its_queue_it_is_clip_ping() -> None:
    """The same neighbours, and the same sum of all."""
    objective = with_heads(AClipPingSettings(**HALF, queue=5))
    objective.images[:5], objective.texts[:5] = IMAGE_FEATURES, TEXT_FEATURES
    objective.ids[:5] = torch.arange(5)[:, None]
    objective.pushed.fill_(5)
    batch = {name: torch.tensor(BATCH) for name in ("sample_id", "image_id", "text_id")}
    batch |= {"frozen_image_features": IMAGE_FEATURES[BATCH][:, None], "frozen_text_features": TEXT_FEATURES[BATCH][:, None]}
    assert_near(objective(Embeddings(X, Y, AXES, AXES), batch).total, 3.298149)  # type: ignore[arg-type]


def nearest(row: list[float], queue: list[list[float]], allowed: list[int]) -> int:
    """Of the queue's places, the one with the largest product; -1 where none is allowed."""
    products = {place: sum(p * q for p, q in zip(row, queue[place], strict=True)) for place in allowed}
    return max(products, key=lambda place: products[place]) if products else -1


def test_against_a_queue_in_a_list() -> None:
    """Steps with images that come back; five places, so that the oldest go. Rows whose image fills the queue drop out."""
    settings = AClipPingSettings(**HALF, queue=5, cross_nearest=0.7)
    objective = with_heads(settings)
    queue: list[tuple[int, int, list[float], list[float]]] = []  # sample, image, features
    dropped = 0
    images = [[0, 1, 2], [0, 3, 1], [5, 5, 5], [5, 5, 5], [5, 5, 6], [7, 0, 2], [2, 7, 1]]
    for step, image_id in enumerate(images):
        sample_id = [10 * step + i for i in range(3)]
        f, g = (random_pairs(3, 20 + step, width)[side] for side, width in ((0, 2), (1, 3)))
        batch = {"sample_id": torch.tensor(sample_id), "image_id": torch.tensor(image_id), "text_id": torch.tensor(sample_id)}
        batch |= {"frozen_image_features": f[:, None], "frozen_text_features": g[:, None]}
        loss = objective(Embeddings(X, Y, AXES, AXES), batch)  # type: ignore[arg-type]

        near = []
        for side, rows in ((2, f.tolist()), (3, g.tolist())):
            allowed = [[place for place, entry in enumerate(queue) if entry[1] != image] for image in image_id]
            near.append([nearest(rows[i], [entry[side] for entry in queue], allowed[i]) for i in range(3)])
        dropped += sum(place < 0 for place in near[0]) if step else 0
        expected = clip_loss(X.tolist(), Y.tolist(), 2.0, image_id, sample_id)
        zeros = ([0.0] * 2, [0.0] * 3)
        for weight, (by_image, by_text) in ((1.0, (0, 1)), (0.7, (1, 0))):
            for rows, side, by in ((P_IMAGE, 0, by_image), (P_TEXT, 1, by_text)):
                features = [queue[place][2 + side] if place >= 0 else zeros[side] for place in near[by]]
                names = [queue[place][0] if place >= 0 else -1 for place in near[by]]
                if max(names) >= 0:
                    expected += weight * naive(rows.tolist(), features, names, 0.5) / 2
        assert_near(loss.total, expected, 1e-9)
        assert int(loss.metrics["queue"]) == len(queue)

        objective.update(batch, loss)  # type: ignore[arg-type]
        queue += list(zip(sample_id, image_id, f.tolist(), g.tolist(), strict=True))
        del queue[:-5]
        # In a ring: entry k is at place k modulo 5.
        first = 3 * (step + 1) - len(queue)
        places = [(first + k) % 5 for k in range(len(queue))]
        assert objective.ids[places].tolist() == [[entry[0], entry[1]] for entry in queue]
        # The reference searches its list in the ring's order, so that equal products would be told apart alike.
        order = sorted(range(len(queue)), key=lambda k: places[k])
        ring = [queue[k] for k in order]
        assert torch.equal(objective.images[: len(ring)], torch.tensor([entry[2] for entry in ring], dtype=torch.float64))
    assert dropped > 0, "one image filled the queue"


def test_the_first_step_has_no_neighbours_and_is_clip() -> None:
    objective = with_heads(AClipPingSettings(**HALF))
    batch = {name: torch.arange(3) for name in ("sample_id", "image_id", "text_id")}
    batch |= {"frozen_image_features": IMAGE_FEATURES[:3, None], "frozen_text_features": TEXT_FEATURES[:3, None]}
    loss = objective(Embeddings(X, Y, AXES, AXES), batch)  # type: ignore[arg-type]
    assert_near(loss.total, clip_loss(X.tolist(), Y.tolist(), 2.0, [0, 1, 2], [0, 1, 2]), 1e-10)


def test_the_queue_is_no_longer_than_the_data() -> None:
    assert len(build(AClipPingSettings(), num_images=10, frozen_widths=(2, 3)).images) == 10
