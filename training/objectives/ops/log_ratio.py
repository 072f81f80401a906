"""MCD's misalignments: log-ratios of the distances of images to captions, which the student learns from the teacher.

MCD (Kim et al., ICCV 2023, arXiv 2312.12661), equations 6 to 9, after the log-ratio loss of Kim et al., CVPR 2019. The floor
under squared distances and the choice of h are ours, since the paper's text that we have gives neither.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from training.distributed import all_gather, mean_over_workers
from training.objectives.ops.blocks import Candidates, in_blocks
from training.precision import exact

Distance = Literal["square", "absolute", "huber"]
_FLOOR = 1e-6  # of squared distances; keeps the logarithm's slope finite if an image equals its caption


def misalignments(text: Tensor, images: Sequence[Tensor], candidates: Candidates, distance: Distance) -> tuple[Tensor, ...]:
    """L_pos, L_neg and L_noisy, scalars.

    Args:
        text: this worker's captions, unit [b, D].
        images: images and their strong views, of the student and then of the teacher, unit [b, D] each.
        candidates: pairs that are alike do not count as pairs i != j.
        distance: h, applied to differences of log-ratios.
    """
    keys = [all_gather(exact(part)) for part in images]
    width = len(keys[0])

    def block(candidates: Candidates, texts: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(texts.device.type, enabled=False):
            # Log-distances [b, B] of the student's x and x' and the teacher's; no gradient passes through the teacher.
            x, a = (_log_distance(texts @ part.T) for part in keys[:2])
            taught_x, taught_a = (_log_distance(texts.detach() @ part.T) for part in keys[2:])
            shift, targets = (x - a) - (taught_x - taught_a), candidates.targets[:, None]
            own = (x - taught_x).gather(1, targets) - (x - taught_x)
            excluded = candidates.excluded()
            others = torch.ones_like(x, dtype=torch.bool) if excluded is None else ~excluded
            others = others.scatter(1, targets, False)
            negative, noisy = (torch.where(others, _h(part, distance), 0.0).sum(1) for part in (shift, own))
            return _h(shift, distance).gather(1, targets)[:, 0], negative, noisy, others.sum(1).to(x.dtype)

    parts = in_blocks(block, width, candidates, exact(text))
    positive, negative, noisy, counts = (torch.cat(part) for part in zip(*parts, strict=True))
    return positive.mean(), mean_over_workers(negative, counts), mean_over_workers(noisy, counts)


def _h(difference: Tensor, distance: Distance) -> Tensor:
    if distance == "square":
        return difference.square()
    if distance == "absolute":
        return difference.abs()
    return F.huber_loss(difference, torch.zeros_like(difference), reduction="none")


def _log_distance(cosines: Tensor) -> Tensor:
    return 0.5 * ((2 - 2 * cosines).clamp(min=0) + _FLOOR).log()
