"""One similarity block per worker: its images against all texts, from which both directions of the contrast are computed.

Sums over texts are complete on the image's worker. Sums over images are partial on every worker; they are exchanged, one
float per text and worker, and added up. So only texts are gathered, and each worker computes one product instead of two.
The gradient convention is that of `training.distributed`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipelines.dataset.batch import Batch
from training.distributed import all_gather, first_row, stacked
from training.objectives.base import Embeddings
from training.objectives.ops.blocks import Candidates, in_blocks
from training.objectives.ops.losses import log_sums
from training.precision import exact


class Contrast(NamedTuple):
    """Results for this worker's b pairs, each as image and as text, against the global batch."""

    own: Tensor  # [b] cosine of the row's own pair
    image: Tensor  # [b] log-sum-exp over texts, at the image's scale
    text: Tensor  # [b] log-sum-exp over images, at the text's scale


def contrast(
    embeddings: Embeddings, candidates: Candidates, image_scale: Tensor, text_scale: Tensor, own: bool = True
) -> Contrast:
    """Scales: 1/temperature, the same scalar twice, or [b] each; `own`: whether the own pair is in the sums."""
    image, text = exact(embeddings.image), exact(embeddings.text)
    texts = all_gather(text)
    column_scale = text_scale if text_scale.ndim == 0 else all_gather(text_scale)
    rows, columns = log_sums(image, texts, image_scale, column_scale, candidates, own)
    return Contrast((image * text).sum(1), rows, _over_workers(columns, len(image)))


def hinged_sums(embeddings: Embeddings, candidates: Candidates, scale: Tensor, hinge: float) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over negatives of scale max(0, x + hinge)^2, x the cosine minus the own pair's: [b] of images, [b] of texts."""
    image, text = exact(embeddings.image), exact(embeddings.text)
    texts, own = all_gather(text), (image * text).sum(1)
    all_own = all_gather(own)

    def block(candidates: Candidates, image: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            cosines = image @ texts.T
            rows, columns = (scale * (cosines - level + hinge).clamp(min=0).square() for level in (own[:, None], all_own))
            return candidates.leave_out(rows, own=False).logsumexp(1), candidates.leave_out(columns, own=False).logsumexp(0)

    rows, columns = zip(*in_blocks(block, len(texts), candidates, image, own), strict=True)
    return torch.cat(rows), _over_workers(torch.stack(columns).logsumexp(0), len(image))


def _over_workers(columns: Tensor, rows: int) -> Tensor:
    """The log-sum-exp of this worker's `rows` texts, from every worker's log-sum-exp [B] over its own images."""
    partial = stacked(columns)  # [world_size, B]
    start = first_row(rows)
    mine = partial[:, start : start + rows]
    return mine.logsumexp(0) if len(mine) > 1 else mine[0]


def find_candidates(embeddings: Embeddings, batch: Batch, ids: bool) -> Candidates:
    """The own pair of every row of this worker, and, with `ids`, the pairs with the same image or caption."""
    rows = len(embeddings.image)
    targets = torch.arange(rows, device=embeddings.image.device) + first_row(rows)
    if not ids:
        return Candidates(targets)
    own = pair_ids(batch)
    everywhere = all_gather(own)
    # Most batches have no duplicates, and then need no mask.
    if all(len(column.unique()) == len(column) for column in everywhere.unbind(1)):
        return Candidates(targets)
    return Candidates(targets, own, everywhere)


def pair_ids(batch: Batch) -> Tensor:
    """int64 [b, 2]: image and caption."""
    return torch.stack([batch["image_id"], batch["text_id"]], dim=1)
