"""Contrast of images with the nearest neighbours of their captions among past captions: DeCLIP's nearest-neighbour supervision.

Li et al., arXiv 2110.05208, section 3.2; `declip` explains why a caption does not find itself.
"""

import torch
from torch import Tensor

from training.distributed import all_gather, mean_over_workers
from training.objectives.ops.blocks import Candidates, same
from training.objectives.ops.losses import log_sums
from training.objectives.ops.queue import at, nearest
from training.precision import exact, unit


def neighbours(rows: Tensor, queue: Tensor, ids: Tensor, queue_ids: Tensor) -> Tensor:
    """int64 [b]: for each row [b, D], the entry of the queue [Q, D] with the largest cosine among those of another image and
    another caption, by `ids` [b, 2] and `queue_ids` [Q, 2]; -1 if there is none.
    """
    return nearest(unit(rows), unit(queue).to(rows.dtype), ids, queue_ids)


def ids_of(places: Tensor, ids: Tensor, queue_ids: Tensor) -> Tensor:
    """int64 [b, 2]: the ids of the queue's entries at `places`; of a caption of several images, the smallest eligible image id.

    Equal captions have equal rows, so any of them may be the nearest.
    """
    captions, images = at(queue_ids, places)[:, 1], []
    for own, caption in zip(ids.split(1024), captions.split(1024), strict=True):
        others = (caption[:, None] != queue_ids[:, 1]) | same(own, queue_ids)
        images.append(queue_ids[:, 0].expand(others.shape).masked_fill(others, torch.iinfo(torch.int64).max).amin(1))
    return torch.stack([torch.cat(images), captions], 1)


def neighbour_contrast(
    views: list[Tensor],
    texts: list[Tensor],
    ids: Tensor,
    past: tuple[Tensor, Tensor],
    targets: Tensor,
    scale: Tensor,
    mask: bool,
) -> Tensor:
    """L_NNS: mean over views and texts of the contrast of views with the neighbours of texts; 0 if no text has one.

    Args:
        views, texts: unit rows [b, D] each.
        ids: int64 [b, 2], image and caption of the rows.
        past: the queue's rows [Q, D] and their ids [Q, 2].
        targets: int64 [b], the column of the row's own pair among those of all workers.
        mask: whether to leave out keys that are the row's own pair, equal its target, or belong to a pair like it.
    """
    queue, queue_ids = past
    losses = []
    for text in texts:
        places = neighbours(text.detach(), queue, ids, queue_ids)
        has_neighbour, near = places >= 0, unit(at(queue, places)).to(text.dtype)
        candidates = Candidates(targets, group=has_neighbour, all_groups=all_gather(has_neighbour))
        if mask and len(queue):
            near_ids = ids_of(places, ids, queue_ids)
            own_ids, key_ids = torch.cat([ids, near_ids, ids], 1), torch.cat([near_ids, near_ids, ids], 1)
            candidates = candidates._replace(ids=own_ids, all_ids=all_gather(key_ids))
        keys = all_gather(near)
        for view in views:
            sums, _ = log_sums(view, keys, scale, None, candidates)
            rows = torch.where(has_neighbour, sums - scale * (exact(view) * near).sum(1), 0.0)
            losses.append(mean_over_workers(rows, has_neighbour))
    return torch.stack(losses).mean()
